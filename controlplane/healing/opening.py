"""Opens a run for an incident, or records why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controlplane.contract.ids import new_id
from controlplane.healing import events as e
from controlplane.healing.gates import Past, admit, matches
from controlplane.healing.killswitch import Control, KillSwitch, Mode
from controlplane.healing.lint import LoadedPlaybook
from controlplane.healing.runs import Runs
from controlplane.healing.state import RunState
from controlplane.healing.writer import RunWriter, fingerprint_token
from controlplane.journal.events import GuardRefused, NewEvent
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics
from controlplane.settings import Autonomy, HealingSettings

REMEMBERED_MAX = 10_000


class Opener:
    """Matches incidents with playbooks and asks the guards. Blocking."""

    def __init__(
        self,
        journal: Journal,
        *,
        runs: Runs,
        kill_switch: KillSwitch,
        writer: RunWriter,
        library: Sequence[LoadedPlaybook],
        settings: HealingSettings,
        metrics: HealingMetrics,
        now_us: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._runs = runs
        self._kill_switch = kill_switch
        self._writer = writer
        self.library = tuple(library)
        self._settings = settings
        self._metrics = metrics
        self._now_us = now_us
        self._suppressed: set[str] = set()  # keys of refusals that are known to be recorded

    def consider(self, incident: e.IncidentView) -> str | None:
        """The run for an incident: the one that is open, or a new one; None when no playbook answers or a guard refuses."""
        past = self._runs.past()
        for run in past:
            if run.fingerprint == incident.fingerprint and not run.ended_us:
                return run.run_id
        for loaded in self.library:
            if matches(loaded.playbook, incident):
                return self._match(loaded, incident, past)
        return None

    def _match(self, loaded: LoadedPlaybook, incident: e.IncidentView, past: Sequence[Past]) -> str | None:
        playbook, now_us, run_id = loaded.playbook, self._now_us(), new_id("run")
        cap = min(
            (self._settings.autonomy, self._settings.overrides.get(playbook.id, Autonomy.AUTO)),
            key=list(Autonomy).index,
        )
        admission = admit(playbook, incident, past, cap=cap, now_us=now_us)
        guard, reason = admission.refused_by, admission.reason
        stopped = why_stopped(self._settings, self._kill_switch.state(), playbook.id, incident.deployment)
        if stopped:
            guard, reason = "kill_switch", stopped
        elif not guard and sum(not run.ended_us for run in past) >= self._settings.runs_max:
            guard, reason = "runs_max", f"{self._settings.runs_max} runs are open"
        matched = e.Matched(
            incident=incident,
            playbook_id=playbook.id,
            playbook_hash=loaded.hash,
            playbook=loaded.text,
            level=admission.level,
            why_level=admission.why_level,
        )
        if guard:
            self._suppress(run_id, matched, guard, reason)
            return None
        token = fingerprint_token(run_id, playbook, incident.fingerprint, now_us)
        try:
            self._writer.append(run_id, RunState(), playbook, (matched,), guards=(token,))
        except GuardRefused:
            return None  # another process was faster
        return run_id

    def _suppress(self, run_id: str, matched: e.Matched, guard: str, reason: str) -> None:
        """Record a refusal, once per incident, playbook and guard."""
        key = f"suppressed/{matched.incident.id}/{matched.playbook_id}/{guard}"
        if key in self._suppressed:
            return
        now_us = self._now_us()
        new = [NewEvent(event, actor="healing", occurred_us=now_us) for event in (matched, e.Suppressed(guard, reason))]
        if not self._journal.append(e.stream_of(run_id), 0, new, dedup_key=key).duplicate:
            self._metrics.refused.labels(reason=guard).inc()
        if len(self._suppressed) >= REMEMBERED_MAX:
            self._suppressed.clear()  # it only saves looking into the journal
        self._suppressed.add(key)


def why_stopped(settings: HealingSettings, control: Control, playbook_id: str, deployment: str) -> str:
    """Why a run must stop, or must not begin; empty if it may go on."""
    if not settings.enabled:
        return "healing is switched off in the settings"
    return control.why(Mode.STOP, playbook_id=playbook_id, deployment=deployment)


def why_shadowed(settings: HealingSettings, control: Control, playbook_id: str, deployment: str) -> str:
    """Why nothing may be applied; empty if it may."""
    if settings.shadow:
        return "shadow mode is on in the settings"
    return control.why(Mode.SHADOW, playbook_id=playbook_id, deployment=deployment)

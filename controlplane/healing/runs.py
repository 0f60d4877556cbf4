"""The runs as people and programs read them: a list, and one run with its timeline. A projection of the journal, never the truth."""

from __future__ import annotations

import threading
from collections.abc import Collection

import msgspec

from controlplane.errors import NotFound
from controlplane.healing import events as e
from controlplane.healing.gates import Past
from controlplane.healing.state import Happened, RunState, Status, evolve
from controlplane.journal.events import Event
from controlplane.journal.journal import Journal

KEPT_MAX = 5000  # ended runs in memory; older ones are still in the journal
_PAGE = 500

RUN_TYPES = tuple(str(kind.__struct_config__.tag) for kind in e.RunEvent.__args__)
"""The types of all events of runs."""


class RunSummary(msgspec.Struct, frozen=True):
    """One line of the list. mode: its autonomy level; cause: why it ended or is ending."""

    id: str
    status: Status
    playbook: str
    level: str
    incident: str
    fingerprint: str
    deployment: str
    matched_us: int
    ended_us: int
    cause: str = ""
    approved_by: str = ""


class TimelineEntry(msgspec.Struct, frozen=True):
    """One event of a run. detail: its payload as JSON."""

    at_us: int
    type: str
    actor: str
    detail: msgspec.Raw


class RunDetail(msgspec.Struct, frozen=True):
    """One run with everything that happened to it."""

    run: RunSummary
    plan: e.Planned | None
    playbook_hash: str
    timeline: tuple[TimelineEntry, ...]


class Runs:
    """Reads runs; safe to call from any thread, blocks shortly. Sees what other processes appended as well."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._codec = e.run_codec()
        self._lock = threading.Lock()
        self._position = 0
        self._open: dict[str, RunState] = {}
        self._summaries: dict[str, RunSummary] = {}  # in the order of matching

    def list(self, *, limit: int = 100, only_open: bool = False, incident: str | None = None) -> list[RunSummary]:
        """At most `limit` runs, the newest first."""
        with self._lock:
            self._refresh()
            wanted = [
                run
                for run in reversed(self._summaries.values())
                if (not only_open or run.ended_us == 0) and (incident is None or run.incident == incident)
            ]
        return wanted[:limit]

    def by_incident(self, incident_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Ids of the runs of incidents, the oldest first; an incident without one is left out. Does not read their events."""
        found: dict[str, list[str]] = {}
        with self._lock:
            self._refresh()
            for run in self._summaries.values():
                if run.incident in incident_ids:
                    found.setdefault(run.incident, []).append(run.id)
        return {incident_id: tuple(run_ids) for incident_id, run_ids in found.items()}

    def show(self, run_id: str) -> RunDetail:
        """One run with its timeline; raises NotFound."""
        appended = self._journal.load(e.stream_of(run_id))
        if not appended:
            raise NotFound(f"there is no run {run_id!r}; `hephaestus playbooks runs` lists them")
        state = RunState()
        for event in appended:
            state = evolve(state, Happened(self._codec.decode(event), event.occurred_us))
        return RunDetail(
            run=_summary(run_id, state),
            plan=state.plan,
            playbook_hash=state.playbook_hash,
            timeline=tuple(TimelineEntry(a.occurred_us, a.type, a.actor, msgspec.Raw(a.data)) for a in appended),
        )

    def past(self) -> tuple[Past, ...]:
        """All runs as guards need them, the oldest first."""
        with self._lock:
            self._refresh()
            return tuple(
                Past(run.id, run.playbook, run.fingerprint, run.status, run.matched_us, run.ended_us)
                for run in self._summaries.values()
            )

    def _refresh(self) -> None:
        head = self._journal.position()  # before reading: what comes later is read the next time
        while True:
            page = self._journal.read(self._position, _PAGE, types=RUN_TYPES)
            for event in page:
                self._position = event.global_pos
                self._apply(event)
            if len(page) < _PAGE:
                break
        self._position = max(self._position, head)
        ended = [run.id for run in self._summaries.values() if run.ended_us]
        for run_id in ended[: max(0, len(ended) - KEPT_MAX)]:
            del self._summaries[run_id]

    def _apply(self, event: Event) -> None:
        run_id = e.run_of(event.stream_id)
        state = evolve(self._open.pop(run_id, RunState()), Happened(self._codec.decode(event), event.occurred_us))
        if state.status is Status.NEW:
            return
        self._summaries[run_id] = _summary(run_id, state)
        self._open[run_id] = state
        if state.ended and not _goes_on(state):
            del self._open[run_id]


def _goes_on(state: RunState) -> bool:
    """Whether an ended run may get one more event in the same append (an end that is then escalated or cancelled)."""
    return state.status in {Status.ROLLED_BACK, Status.EXPIRED}


def _summary(run_id: str, state: RunState) -> RunSummary:
    incident = state.incident
    return RunSummary(
        id=run_id,
        status=state.status,
        playbook=state.playbook_id,
        level=state.level,
        incident="" if incident is None else incident.id,
        fingerprint="" if incident is None else incident.fingerprint,
        deployment=state.target,
        matched_us=state.matched_us,
        ended_us=state.since_us if state.ended else 0,
        cause=state.cause,
        approved_by=state.approved_by,
    )

"""Carries runs out: load, fold, decide, append first, then act. What one worker leaves unfinished, the next one takes up.

One worker at a time looks after a journal. All state is in the journal; what the worker remembers only saves it work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from controlplane.alerts.alert import AlertRouter
from controlplane.clock import US_PER_S
from controlplane.contract.ids import new_id
from controlplane.errors import HephaestusError
from controlplane.healing import actions, measure
from controlplane.healing import events as e
from controlplane.healing import run as r
from controlplane.healing.announce import announce
from controlplane.healing.commands import HappenedCodec
from controlplane.healing.gates import Past, admit, matches, too_far
from controlplane.healing.killswitch import Control, KillSwitch, Mode
from controlplane.healing.lint import LoadedPlaybook
from controlplane.healing.metrics import WorkerMetrics
from controlplane.healing.playbook import Playbook, canonical, content_hash
from controlplane.healing.runs import Runs
from controlplane.healing.state import Happened, RunState, Status, StepState, evolve
from controlplane.journal.events import (
    Guard,
    GuardRefused,
    NewEvent,
    NewOutbox,
    NewTimer,
    VersionConflict,
)
from controlplane.journal.fold import Changes, append_changes, fold
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics
from controlplane.settings import Autonomy, HealingSettings

MOVES_MAX = 100  # of one run in one turn
RETRY_S = 5.0  # between two tries to start a deferred run
_FAR_US = 2**62
_RUNS_PREFIX = "run-"

log = structlog.get_logger(__name__)


class Healing:
    """Opens runs for incidents and carries them out."""

    def __init__(
        self,
        journal: Journal,
        world: actions.World,
        library: Sequence[LoadedPlaybook],
        settings: HealingSettings,
        *,
        alerts: AlertRouter,
        metrics: HealingMetrics,
        registry: CollectorRegistry,
    ) -> None:
        self._journal = journal
        self._world = world
        self._library = tuple(library)
        self._settings = settings
        self._alerts = alerts
        self._metrics = metrics
        self._worker_metrics = WorkerMetrics(registry)
        self.runs = Runs(journal)
        self.kill_switch = KillSwitch(journal)
        self._codec = HappenedCodec()
        self._control = Control()
        self._up_since_us = world.clock.now_us()
        self._waiting: dict[str, tuple[int, int]] = {}  # stream: (due_us of its timer, do not look before)
        self._probed_us: dict[str, int] = {}
        self._playbooks: dict[str, Playbook] = {}  # by content hash

    def use_library(self, library: Sequence[LoadedPlaybook]) -> None:
        """Take other playbooks for runs from now on; open runs keep theirs."""
        self._library = tuple(library)

    async def consider(self, incident: e.IncidentView) -> str | None:
        """Open a run for an incident if a playbook answers it and guards allow; the run's id, new or already open.

        Call it as often as the incident is seen; a refusal is recorded once per incident and reason. Call it for firing incidents.
        """
        return await asyncio.to_thread(self._consider, incident)

    async def run(self) -> None:
        """Turn for ever, until cancelled."""
        while True:
            try:
                await self.turn()
            except HephaestusError as error:  # the journal is away: nothing is lost, look again later
                self._worker_metrics.errors.inc()
                log.exception("healing turn failed", error=str(error))
            await self._world.clock.sleep(self._settings.poll_every_s)

    async def turn(self) -> None:
        """One look at all open runs: each goes on as far as it can without waiting."""
        with self._worker_metrics.turn_seconds.time():
            now_us = self._world.clock.now_us()
            control = await asyncio.to_thread(self.kill_switch.state)
            if control != self._control:
                self._control = control
                self._waiting.clear()
            timers = await asyncio.to_thread(
                self._journal.due_timers, _FAR_US, self._settings.runs_max * 4, stream_prefix=_RUNS_PREFIX
            )
            self._metrics.open.set(len(timers))
            self._metrics.enabled.set(0 if self._stopped("", "") else 1)
            self._forget({timer.stream_id for timer in timers})
            due = [timer for timer in timers if now_us >= self._not_before_us(timer.stream_id, timer.due_us)]
            await asyncio.gather(*(self._advance(timer.stream_id) for timer in due))

    def _not_before_us(self, stream: str, due_us: int) -> int:
        if self._control.engaged or self._settings.shadow or not self._settings.enabled:
            return 0  # every run must hear of it now
        known = self._waiting.get(stream)
        return known[1] if known is not None and known[0] == due_us else due_us

    def _forget(self, open_streams: set[str]) -> None:
        for remembered in (self._waiting, self._probed_us):
            for stream in [stream for stream in remembered if stream not in open_streams]:
                remembered.pop(stream, None)

    # Opening a run.

    def _consider(self, incident: e.IncidentView) -> str | None:
        past = self.runs.past()
        for run in past:
            if run.fingerprint == incident.fingerprint and not run.ended_us:
                return run.run_id
        for loaded in self._library:
            if matches(loaded.playbook, incident):
                return self._match(loaded, incident, past)
        return None

    def _match(self, loaded: LoadedPlaybook, incident: e.IncidentView, past: Sequence[Past]) -> str | None:
        playbook, now_us = loaded.playbook, self._world.clock.now_us()
        cap = min(
            (self._settings.autonomy, self._settings.overrides.get(playbook.id, Autonomy.AUTO)),
            key=list(Autonomy).index,
        )
        admission = admit(playbook, incident, past, cap=cap, now_us=now_us)
        guard, reason = admission.refused_by, admission.reason
        control = self.kill_switch.state()
        if stopped := self._stopped(playbook.id, incident.deployment, control):
            guard, reason = "kill_switch", stopped
        elif not guard and sum(not run.ended_us for run in past) >= self._settings.runs_max:
            guard, reason = "runs_max", f"{self._settings.runs_max} runs are open"
        run_id = new_id("run")
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
        token = Guard(
            scope=f"healing/fingerprint/{incident.fingerprint}",
            holder=run_id,
            limit=playbook.spec.guards.max_concurrent_runs.per_fingerprint,
            expires_us=now_us + _life_us(playbook),
        )
        try:
            self._append(run_id, RunState(), playbook, (matched,), guards=(token,))
        except GuardRefused:
            return None  # another process was faster
        return run_id

    def _suppress(self, run_id: str, matched: e.Matched, guard: str, reason: str) -> None:
        """Record a refusal, once per incident, playbook and guard."""
        key = f"suppressed/{matched.incident.id}/{matched.playbook_id}/{guard}"
        now_us = self._world.clock.now_us()
        new = [NewEvent(event, actor="healing", occurred_us=now_us) for event in (matched, e.Suppressed(guard, reason))]
        if not self._journal.append(e.stream_of(run_id), 0, new, dedup_key=key).duplicate:
            self._metrics.refused.labels(reason=guard).inc()

    def _stopped(self, playbook_id: str, deployment: str, control: Control | None = None) -> str:
        if not self._settings.enabled:
            return "healing is switched off in the settings"
        switches = self._control if control is None else control
        return switches.why(Mode.STOP, playbook_id=playbook_id, deployment=deployment)

    def _shadowed(self, playbook_id: str, deployment: str) -> str:
        if self._settings.shadow:
            return "shadow mode is on in the settings"
        return self._control.why(Mode.SHADOW, playbook_id=playbook_id, deployment=deployment)

    # Carrying a run out.

    async def _advance(self, stream: str) -> None:
        """Move one run as far as it goes now; an unexpected error is counted, and the run is looked at again next turn."""
        try:
            for _ in range(MOVES_MAX):
                if not await self._move(stream):
                    return
            self._worker_metrics.bounded.inc()
        except VersionConflict:
            return  # a person was faster: look again next turn
        except Exception as error:
            self._worker_metrics.errors.inc()
            log.exception("a run failed to move on", run=e.run_of(stream), error=repr(error))

    async def _move(self, stream: str) -> bool:
        """One load, one decision, and what it wants; whether there may be more to do at once."""
        run_id = e.run_of(stream)
        state = await asyncio.to_thread(self._load, stream)
        if state.status is Status.NEW:
            return False
        playbook = self._playbook(state)
        task = r.decide(state, playbook, self._inputs(stream, state))
        if isinstance(task, (r.Done, r.Wait)):
            if isinstance(task, r.Wait):
                self._look_again(stream, state, playbook, task.until_us)
            return False
        if isinstance(task, r.Record):
            events: Sequence[e.RunEvent] = task.events
        elif isinstance(task, r.Start):
            return await self._start(run_id, state, playbook)
        elif isinstance(task, r.Dispatch):
            return await self._dispatch(run_id, state, playbook, task.step)
        else:
            events = await self._carry_out(stream, state, playbook, task)
        if not events:
            return isinstance(task, r.ProbeTarget)
        await self._append_soon(run_id, state, playbook, events)
        return True

    def _load(self, stream: str) -> RunState:
        return fold(RunState(), (self._codec.decode(event) for event in self._journal.load(stream)), evolve)

    def _playbook(self, state: RunState) -> Playbook:
        if state.playbook_hash not in self._playbooks:
            if len(self._playbooks) > self._settings.runs_max * 4:
                self._playbooks.clear()
            self._playbooks[state.playbook_hash] = state.playbook
        return self._playbooks[state.playbook_hash]

    def _inputs(self, stream: str, state: RunState) -> r.Inputs:
        incident_id = "" if state.incident is None else state.incident.id
        return r.Inputs(
            now_us=self._world.clock.now_us(),
            stop=self._stopped(state.playbook_id, state.target),
            shadow=self._shadowed(state.playbook_id, state.target),
            incident_open=self._world.incidents.state(incident_id) != "resolved",
            probed_us=self._probed_us.get(stream, 0),
            up_since_us=self._up_since_us,
        )

    def _look_again(self, stream: str, state: RunState, playbook: Playbook, until_us: int) -> None:
        self._waiting[stream] = (_due_us(state, playbook), until_us)

    async def _carry_out(self, stream: str, state: RunState, playbook: Playbook, task: r.Task) -> Sequence[e.RunEvent]:
        """Do what a task says; the events of how it went, none if it must be asked again."""
        if isinstance(task, r.MakePlan):
            return await self._plan(e.run_of(stream), state, playbook)
        if isinstance(task, r.Reconcile):
            return await self._reconcile(task.step)
        if isinstance(task, r.Confirm):
            seen = self._world.confirmations(task.step.lease_id)
            return r.after_confirming(task, playbook, live=seen.live, having=seen.having, now_us=self._now_us())
        if isinstance(task, r.ConfirmGone):
            seen = self._world.confirmations(task.step.lease_id)
            return r.after_confirming_gone(task, having=seen.having, now_us=self._now_us())
        if isinstance(task, r.MeasureGate):
            verdict = await measure.gate(self._world, state, playbook, task.step.planned.step)
            return r.after_gate(task.step, playbook, verdict, self._now_us())
        if isinstance(task, r.Measure):
            window_s = max(1.0, (self._now_us() - state.since_us) / US_PER_S)
            verdict = await measure.success(self._world, state, playbook, window_s=window_s)
            return r.after_measuring(state, playbook, verdict, self._now_us())
        if isinstance(task, r.Renew):
            return await self._renew(task)
        if isinstance(task, r.Revoke):
            await actions.revoke(self._world, task.step.lease_id)
            return (e.LeaseRevoked(step=task.step.planned.step, lease_id=task.step.lease_id),)
        return await self._probe(stream, state, playbook)

    async def _plan(self, run_id: str, state: RunState, playbook: Playbook) -> Sequence[e.RunEvent]:
        predicted = await asyncio.to_thread(measure.reach_now, self._world, playbook, state.target)
        if reason := too_far(playbook, predicted, leases_max=self._settings.leases_max):
            return (e.Blocked(guard="blast_radius", reason=reason),)
        steps = tuple(
            actions.ACTIONS[step.action].plan(step, deployment=state.target, run_id=run_id)
            for step in playbook.spec.steps
        )
        scope = measure.Scope(state.target, predicted.aliases, predicted.failover)
        shape = [[step.action, step.deployment, step.change] for step in steps]
        plan = e.Planned(
            steps=steps,
            aliases=predicted.aliases,
            failover=predicted.failover,
            route_share=predicted.route_share,
            total_share=predicted.total_share,
            baseline=await measure.baseline(self._world, playbook, scope),
            plan_hash=content_hash(canonical([state.playbook_hash, shape, predicted.aliases, predicted.failover])),
        )
        return (plan,)

    async def _start(self, run_id: str, state: RunState, playbook: Playbook) -> bool:
        """Check again what was checked at planning, take the guard tokens and begin; or wait, or give up."""
        predicted = await asyncio.to_thread(measure.reach_now, self._world, playbook, state.target)
        guard, reason = "blast_radius", too_far(playbook, predicted, leases_max=self._settings.leases_max)
        if not reason:
            verdict = await measure.preconditions(self._world, state, playbook, predicted)
            guard, reason = "precondition", "" if verdict.good else verdict.which
        if not reason:
            tokens = _tokens(run_id, state, playbook, self._now_us())
            started = e.Started(scopes=tuple(token.scope for token in tokens))
            try:
                await self._append_soon(run_id, state, playbook, (started,), guards=tokens)
                return True
            except GuardRefused as refused:
                guard, reason = refused.scope, str(refused)
        return await self._defer(run_id, state, playbook, guard, reason)

    async def _defer(self, run_id: str, state: RunState, playbook: Playbook, guard: str, reason: str) -> bool:
        now_us = self._now_us()
        if now_us >= state.since_us + round(playbook.spec.preconditions.wait * US_PER_S):
            await self._append_soon(run_id, state, playbook, (e.Blocked(guard=guard, reason=reason),))
            return True
        if guard != state.deferred_by:
            await self._append_soon(run_id, state, playbook, (e.Deferred(guard=guard, reason=reason),))
        stream = e.stream_of(run_id)
        state = await asyncio.to_thread(self._load, stream)
        self._look_again(stream, state, playbook, now_us + round(RETRY_S * US_PER_S))
        return False

    async def _dispatch(self, run_id: str, state: RunState, playbook: Playbook, step: StepState) -> bool:
        """Write that the step begins, let it act, write how it went."""
        planned, spec = step.planned, playbook.step(step.planned.step)
        dispatched = e.StepDispatched(step=spec.id, idem_key=planned.idem_key)
        state = await self._append_soon(run_id, state, playbook, (dispatched,))
        action, now_us = actions.ACTIONS[spec.action], self._now_us()
        tried = msgspec.structs.replace(step, tries=step.tries + 1)
        failed: tuple[str, bool] | None = None
        try:
            lease, out = await asyncio.wait_for(action.apply(self._world, spec, planned), float(spec.timeout))
        except TimeoutError:
            if action.leased:
                self._count(spec.action, "unknown")
                await self._append_soon(run_id, state, playbook, (e.StepOutcomeUnknown(step=spec.id),))
                return True
            failed = (f"it took longer than {spec.timeout:g} s", False)
            retryable = True
        except actions.ActionFailed as error:
            failed, retryable = (str(error), error.contradicted), error.retryable
        except HephaestusError as error:
            failed, retryable = (str(error), False), True
        if failed is not None:
            self._count(spec.action, "failed")
            event = r.after_failure(
                tried, spec.retry, reason=failed[0], retryable=retryable, contradicted=failed[1], now_us=now_us
            )
            await self._append_soon(run_id, state, playbook, (event,))
            return True
        self._count(spec.action, "ok")
        done: e.RunEvent = e.StepSucceeded(step=spec.id, out=out)
        if lease is not None:
            done = e.LeaseGranted(step=spec.id, lease_id=lease.id, expires_us=lease.expires_us)
        await self._append_soon(run_id, state, playbook, (done,))
        return True

    async def _reconcile(self, step: StepState) -> Sequence[e.RunEvent]:
        """After a crash or an unknown outcome: is the effect there?"""
        lease = await actions.ACTIONS[step.planned.action].check(self._world, step.planned)
        reconciled = e.StepReconciled(step=step.planned.step, present=lease is not None)
        if lease is None:
            return (reconciled,)
        return (reconciled, e.LeaseGranted(step=step.planned.step, lease_id=lease.id, expires_us=lease.expires_us))

    async def _renew(self, task: r.Renew) -> Sequence[e.RunEvent]:
        step = task.step
        lease = await actions.renew(self._world, step.lease_id, task.ttl_s)
        if lease is None:
            return (e.LeaseExpired(step=step.planned.step, lease_id=step.lease_id),)
        return (e.LeaseRenewed(step=step.planned.step, lease_id=step.lease_id, expires_us=lease.expires_us),)

    async def _probe(self, stream: str, state: RunState, playbook: Playbook) -> Sequence[e.RunEvent]:
        """One recovery probe, and a look whether holding does harm."""
        window_s = float(playbook.spec.recovery.probe_every)
        verdict = await measure.harm(self._world, state, playbook, window_s=window_s)
        result = await self._world.prober(state.target)
        self._probed_us[stream] = self._now_us()
        if verdict.harm:
            return (e.RollbackStarted(cause=f"holding does harm: {verdict.harm}", escalate=True),)
        return r.after_probe(state, good=result.ok, detail=result.detail)

    # Writing.

    async def _append_soon(
        self,
        run_id: str,
        state: RunState,
        playbook: Playbook,
        events: Sequence[e.RunEvent],
        *,
        guards: Sequence[Guard] = (),
    ) -> RunState:
        """`_append`, in a thread."""
        return await asyncio.to_thread(self._append, run_id, state, playbook, events, guards=guards)

    def _append(
        self,
        run_id: str,
        state: RunState,
        playbook: Playbook,
        events: Sequence[e.RunEvent],
        *,
        guards: Sequence[Guard] = (),
    ) -> RunState:
        """Append events with all they cause: the run's timer, its guard tokens and what people are told; the run after them."""
        now_us = self._world.clock.now_us()
        stream, before = e.stream_of(run_id), state
        outbox: list[NewOutbox] = []
        for event in events:
            state = evolve(state, Happened(event, now_us))
            said = announce(run_id, state, event, at_us=now_us)
            outbox += self._alerts.entries(said) if said is not None else []
        changes = Changes(
            events=[NewEvent(event, actor="healing", occurred_us=now_us) for event in events],
            outbox=outbox,
            timers=() if state.ended else (NewTimer(stream, _due_us(state, playbook), state.status),),
            timers_done=(stream,) if state.ended else (),
            guards=guards,
            guards_released=(run_id,) if state.ended else (),
        )
        append_changes(self._journal, stream, before.version, changes)
        if state.ended:
            self._metrics.runs.labels(playbook=state.playbook_id, result=state.status).inc()
        return state

    def _count(self, action: str, result: str) -> None:
        self._metrics.steps.labels(action=action, result=result).inc()

    def _now_us(self) -> int:
        return self._world.clock.now_us()


def _due_us(state: RunState, playbook: Playbook) -> int:
    """When the run should be looked at again if nobody says otherwise: now, unless its next decision is to wait."""
    task = r.decide(state, playbook, r.Inputs(now_us=state.since_us))
    return task.until_us if isinstance(task, r.Wait) else state.since_us


def _life_us(playbook: Playbook) -> int:
    """Longer than any run of the playbook can last; its guard tokens free themselves after that, whatever happened."""
    spec = playbook.spec
    seconds = (
        spec.approval.ttl
        + spec.preconditions.wait
        + spec.guards.max_runtime
        + playbook.lease_ttl_max_s
        + spec.probation.span
        + 3600.0
    )
    return round(seconds * US_PER_S)


def _tokens(run_id: str, state: RunState, playbook: Playbook, now_us: int) -> tuple[Guard, ...]:
    """The guard tokens of a run that acts; two runs never override the same deployment."""
    limits, expires_us = playbook.spec.guards.max_concurrent_runs, now_us + _life_us(playbook)
    return (
        Guard(f"healing/playbook/{playbook.id}", run_id, limits.per_playbook, expires_us),
        Guard("healing/global", run_id, limits.globally, expires_us),
        Guard(f"healing/deployment/{state.target}", run_id, 1, expires_us),
    )

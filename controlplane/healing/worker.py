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
from controlplane.errors import HephaestusError
from controlplane.healing import actions, measure
from controlplane.healing import events as e
from controlplane.healing import run as r
from controlplane.healing.commands import HappenedCodec
from controlplane.healing.gates import too_far
from controlplane.healing.killswitch import Control, KillSwitch
from controlplane.healing.lint import LoadedPlaybook
from controlplane.healing.metrics import WorkerMetrics
from controlplane.healing.opening import Opener, why_shadowed, why_stopped
from controlplane.healing.playbook import Playbook, canonical, content_hash
from controlplane.healing.runs import Runs
from controlplane.healing.state import RunState, Status, StepState, evolve
from controlplane.healing.writer import RunWriter, acting_tokens, due_us
from controlplane.journal.events import Guard, GuardRefused, Timer, VersionConflict
from controlplane.journal.fold import fold
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics
from controlplane.settings import HealingSettings

MOVES_MAX = 100  # of one run in one turn
RETRY_S = 5.0  # between two tries to start a deferred run, or to go on after an unexpected error
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
        self._settings = settings
        self._metrics = metrics
        self._worker_metrics = WorkerMetrics(registry)
        self.runs = Runs(journal)
        self.kill_switch = KillSwitch(journal)
        self._writer = RunWriter(journal, alerts=alerts, metrics=metrics, now_us=world.clock.now_us)
        self._opener = Opener(
            journal,
            runs=self.runs,
            kill_switch=self.kill_switch,
            writer=self._writer,
            library=library,
            settings=settings,
            metrics=metrics,
            now_us=world.clock.now_us,
        )
        self._codec = HappenedCodec()
        self._control = Control()
        self._up_since_us = self._turned_us = world.clock.now_us()
        self._waiting: dict[str, tuple[int, int]] = {}  # stream: (due_us of its timer, do not look before)
        self._probed_us: dict[str, int] = {}
        self._playbooks: dict[str, Playbook] = {}  # by content hash

    def use_library(self, library: Sequence[LoadedPlaybook]) -> None:
        """Take other playbooks for runs from now on; open runs keep theirs."""
        self._opener.library = tuple(library)

    async def consider(self, incident: e.IncidentView) -> str | None:
        """Open a run for an incident if a playbook answers it and guards allow; the run's id, new or already open.

        Call it as often as the incident is seen; a refusal is recorded once per incident and reason. Call it for firing incidents.
        """
        return await asyncio.to_thread(self._opener.consider, incident)

    async def run(self) -> None:
        """Turn for ever, until cancelled."""
        while True:
            try:
                await self.turn()
            except HephaestusError as error:  # the journal is away: nothing is lost, look again later
                self._worker_metrics.errors.inc()
                log.warning("healing must wait", reason=error.message)
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
            self._metrics.enabled.set(0 if why_stopped(self._settings, control, "", "") else 1)
            self._forget({timer.stream_id for timer in timers})
            if now_us < self._turned_us:  # the clock went back: no wait that was reckoned before it means anything
                self._waiting = {timer.stream_id: (timer.due_us, now_us) for timer in timers}
            self._turned_us = now_us
            due = [timer for timer in timers if now_us >= self._not_before_us(timer.stream_id, timer.due_us)]
            await asyncio.gather(*(self._advance(timer) for timer in due))

    def _not_before_us(self, stream: str, due_us: int) -> int:
        if self._control.engaged or self._settings.shadow or not self._settings.enabled:
            return 0  # every run must hear of it now
        known = self._waiting.get(stream)
        return known[1] if known is not None and known[0] == due_us else due_us

    def _forget(self, open_streams: set[str]) -> None:
        for remembered in (self._waiting, self._probed_us):
            for stream in [stream for stream in remembered if stream not in open_streams]:
                remembered.pop(stream, None)

    # Carrying a run out.

    async def _advance(self, timer: Timer) -> None:
        """Move one run as far as it goes now; an unexpected error is counted, and the run is looked at again next turn."""
        try:
            for _ in range(MOVES_MAX):
                if not await self._move(timer.stream_id):
                    return
            self._worker_metrics.bounded.inc()
        except VersionConflict:
            return  # a person was faster: look again next turn
        except HephaestusError as error:  # something that it needs is away; it has a name, so no stack is needed
            log.warning("a run must wait", run=e.run_of(timer.stream_id), reason=error.message)
            self._rest(timer)
        except Exception:  # one run must not stop the others; it is logged, counted and tried again
            log.exception("a run failed to move on", run=e.run_of(timer.stream_id))
            self._rest(timer)

    def _rest(self, timer: Timer) -> None:
        self._worker_metrics.errors.inc()
        self._waiting[timer.stream_id] = (timer.due_us, self._now_us() + round(RETRY_S * US_PER_S))

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
            stop=why_stopped(self._settings, self._control, state.playbook_id, state.target),
            shadow=why_shadowed(self._settings, self._control, state.playbook_id, state.target),
            incident_open=self._world.incidents.state(incident_id) != "resolved",
            probed_us=self._probed_us.get(stream, 0),
            up_since_us=self._up_since_us,
        )

    def _look_again(self, stream: str, state: RunState, playbook: Playbook, until_us: int) -> None:
        self._waiting[stream] = (due_us(state, playbook), until_us)

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
            inputs = self._inputs(stream, state)
            return r.after_measuring(state, playbook, verdict, inputs.now_us, incident_open=inputs.incident_open)
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
            tokens = acting_tokens(run_id, state, playbook, self._now_us())
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
        """Append in a thread; the run after it."""
        return await asyncio.to_thread(self._writer.append, run_id, state, playbook, events, guards=guards)

    def _count(self, action: str, result: str) -> None:
        self._metrics.steps.labels(action=action, result=result).inc()

    def _now_us(self) -> int:
        return self._world.clock.now_us()

"""What a run does next: one pure decision from its state, the time and what was seen. The worker carries it out.

    matched -> planned -> (awaiting approval) -> queued -> running -> validating -> holding -> releasing -> probation -> closed
                                                     any of the last ones but releasing and probation -> rolling back

Every state that waits has a deadline, so nothing can hang.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.clock import US_PER_S
from controlplane.healing import events as e
from controlplane.healing.playbook import Playbook, Retry
from controlplane.healing.state import RunState, Status, StepState, StepStatus
from controlplane.settings import Autonomy

REGRANTS_MAX = 3  # an override that keeps vanishing is somebody else's will
CRASHES_MAX = 10  # tries of a step that may be lost to crashes and timeouts
_ROLLBACK_TIMEOUT_S = 10.0


class Inputs(msgspec.Struct, frozen=True):
    """What a decision may depend on besides the run itself.

    stop: why the kill switch stops this run, or empty; shadow: why nothing may be applied, or empty.
    probed_us: when the deployment was last probed for recovery. up_since_us: when this worker started; a wait for proxies is not over
    before they had their time to report to it.
    """

    now_us: int
    stop: str = ""
    shadow: str = ""
    incident_open: bool = True
    probed_us: int = 0
    up_since_us: int = 0


class Done(msgspec.Struct, frozen=True, tag=True):
    """The run has ended."""


class Wait(msgspec.Struct, frozen=True, tag=True):
    """Nothing to do before `until_us`."""

    until_us: int


class Record(msgspec.Struct, frozen=True, tag=True):
    """Append these events; nothing else is needed."""

    events: tuple[e.RunEvent, ...]


class MakePlan(msgspec.Struct, frozen=True, tag=True):
    """Look at routes and measurements, and make the plan."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Check preconditions and take the guard tokens."""


class Dispatch(msgspec.Struct, frozen=True, tag=True):
    """Write that the step is about to act, then act."""

    step: StepState


class Reconcile(msgspec.Struct, frozen=True, tag=True):
    """Look whether the step's effect is there."""

    step: StepState


class Confirm(msgspec.Struct, frozen=True, tag=True):
    """Ask whether the proxies have the step's override; the step failed if not all do by `deadline_us`."""

    step: StepState
    deadline_us: int


class MeasureGate(msgspec.Struct, frozen=True, tag=True):
    """Measure the gate behind a step."""

    step: StepState


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Measure success and harm, during validation or probation."""


class Renew(msgspec.Struct, frozen=True, tag=True):
    """Make the step's override last longer."""

    step: StepState
    ttl_s: float


class ProbeTarget(msgspec.Struct, frozen=True, tag=True):
    """Probe the sick deployment once, and see that holding does no harm."""


class Revoke(msgspec.Struct, frozen=True, tag=True):
    """Take the step's override back."""

    step: StepState


class ConfirmGone(msgspec.Struct, frozen=True, tag=True):
    """Ask whether no proxy has the step's override any more; the rollback failed if one does at `deadline_us`."""

    step: StepState
    deadline_us: int


Task = (
    Done
    | Wait
    | Record
    | MakePlan
    | Start
    | Dispatch
    | Reconcile
    | Confirm
    | MeasureGate
    | Measure
    | Renew
    | ProbeTarget
    | Revoke
    | ConfirmGone
)


def decide(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    """The next task of a run. Pure."""
    if state.ended or state.status is Status.NEW:
        return Done()
    if state.status in _BEFORE_ACTING:
        return _before_acting(state, playbook, inputs)
    if state.status in {Status.RELEASING, Status.ROLLING_BACK}:
        return _reverting(state, playbook, inputs)
    if state.status is Status.PROBATION:
        return _probation(state, playbook, inputs)
    return _urgent(state, playbook, inputs) or _acting(state, playbook, inputs)


_BEFORE_ACTING = {Status.MATCHED, Status.PLANNED, Status.AWAITING_APPROVAL, Status.QUEUED}


def _before_acting(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    if state.cancelled_by:
        return Record((e.Cancelled(),))
    if inputs.stop:
        return Record((e.Suppressed(guard="kill_switch", reason=inputs.stop),))
    if state.status is Status.MATCHED:
        return MakePlan()
    if inputs.shadow:
        return Record((e.Shadowed(reason=inputs.shadow),))
    if state.status is Status.PLANNED:
        return _leave_planned(state, playbook, inputs)
    if state.status is Status.AWAITING_APPROVAL:
        return _awaiting(state, playbook, inputs)
    return Start()


def _leave_planned(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    plan_hash = "" if state.plan is None else state.plan.plan_hash
    if state.level == Autonomy.AUTO:
        return Record((e.Queued(),))
    if state.level == Autonomy.APPROVE:
        expires_us = inputs.now_us + _us(playbook.spec.approval.ttl)
        return Record((e.ApprovalRequested(plan_hash=plan_hash, expires_us=expires_us),))
    return Record((e.Shadowed(reason=f"its level is {state.level}"),))


def _awaiting(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    if state.approved_by:
        return Record((e.Queued(),))
    if inputs.now_us < state.approval_expires_us:
        return Wait(state.approval_expires_us)
    if playbook.spec.approval.on_expire == "escalate":
        return Record((e.ApprovalExpired(), e.Escalated(reason="nobody approved the run in time")))
    return Record((e.ApprovalExpired(),))


def _urgent(state: RunState, playbook: Playbook, inputs: Inputs) -> Task | None:
    """What comes before anything else while the run acts: to stop, and to keep its overrides alive."""
    if state.cancelled_by:
        return Record((e.RollbackStarted(cause=f"cancelled by {state.cancelled_by}", escalate=False),))
    if inputs.stop or inputs.shadow:
        return Record((e.RollbackStarted(cause=inputs.stop or inputs.shadow, escalate=False),))
    max_runtime_s = playbook.spec.guards.max_runtime
    if state.status is not Status.HOLDING and inputs.now_us >= state.started_us + _us(max_runtime_s):
        cause = f"it ran longer than its max_runtime of {max_runtime_s:g} s"
        return Record((e.RollbackStarted(cause=cause, escalate=True),))
    for step in state.steps:
        task = _upkeep(state, step, playbook, inputs) if step.holds else None
        if task is not None:
            return task
    return None


def _upkeep(state: RunState, step: StepState, playbook: Playbook, inputs: Inputs) -> Task | None:
    """Renew an override at half its life, as long as there is a reason and not past its max_ttl."""
    lease = playbook.step(step.planned.step).lease
    if lease is None:
        return None
    last_us = step.held_us + _us(lease.max_ttl)
    if inputs.now_us >= last_us:
        cause = f"the override of step {step.planned.step} reached its max_ttl of {lease.max_ttl:g} s"
        return Record((e.RollbackStarted(cause=cause, escalate=True),))
    if not _needed(state, inputs):
        if inputs.now_us < step.expires_us:
            return None
        return Record((e.LeaseExpired(step=step.planned.step, lease_id=step.lease_id),))
    if inputs.now_us < _renew_us(step, lease.ttl) or step.expires_us >= last_us:
        return None
    return Renew(step=step, ttl_s=max(1.0, min(float(lease.ttl), (last_us - inputs.now_us) / US_PER_S)))


def _needed(state: RunState, inputs: Inputs) -> bool:
    """Whether overrides are still needed.

    A drain hides the fault that it works around, so an incident may look resolved too early; as long as the last probe failed, the
    deployment is still sick.
    """
    return inputs.incident_open or state.status is not Status.HOLDING or state.streak == 0


def _renew_us(step: StepState, ttl_s: float) -> int:
    return step.expires_us - _us(ttl_s) // 2


def _acting(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    if state.status is Status.RUNNING:
        return _running(state, playbook, inputs)
    if state.status is Status.VALIDATING and inputs.now_us < state.since_us:  # the clock went back: bake anew
        return Record((e.ValidationStarted(),))
    if state.status is Status.VALIDATING:
        next_us = state.measured_us + _us(playbook.validation.every)
        due = inputs.now_us >= next_us or inputs.now_us < state.measured_us  # the clock went back
        return Measure() if due else Wait(_next(state, playbook, next_us))
    recovery = playbook.spec.recovery
    if state.streak >= recovery.successes:
        return Record((e.ReleaseStarted(reason=f"{state.streak} probes in a row succeeded"),))
    if not any(step.holds for step in state.steps):
        return Record((e.ReleaseStarted(reason="there is no override to hold"),))
    last_us = inputs.probed_us or state.since_us
    next_us = last_us + _us(recovery.probe_every)
    due = inputs.now_us >= next_us or inputs.now_us < last_us  # the clock went back
    return ProbeTarget() if due else Wait(_next(state, playbook, next_us))


def _running(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    step = next((step for step in state.steps if step.status is not StepStatus.DONE), None)
    if step is None:
        return Record((e.ValidationStarted(),))
    spec = playbook.step(step.planned.step)
    if step.status is StepStatus.DISPATCHED:
        return Reconcile(step)
    if step.status is StepStatus.PENDING:
        return _pending(state, step, playbook, inputs)
    if step.status is StepStatus.APPLIED:
        return Confirm(step, deadline_us=max(step.since_us, inputs.up_since_us) + _us(spec.timeout))
    if step.status is StepStatus.CONFIRMED and spec.gate is not None:
        opens_us = step.since_us + _us(spec.gate.window)
        return MeasureGate(step) if inputs.now_us >= opens_us else Wait(_next(state, playbook, opens_us))
    if step.contradicted and not any(other.holds for other in state.steps):
        return Record((e.Blocked(guard="probe", reason=step.why),))
    return Record((e.RollbackStarted(cause=f"step {spec.id} failed: {step.why}", escalate=True),))


def _pending(state: RunState, step: StepState, playbook: Playbook, inputs: Inputs) -> Task:
    if step.regrants and not inputs.incident_open:
        return Record((e.ReleaseStarted(reason="the override expired and the incident is over"),))
    if step.regrants > REGRANTS_MAX:
        cause = f"the override of step {step.planned.step} vanished {step.regrants} times"
        return Record((e.RollbackStarted(cause=cause, escalate=True),))
    if step.tries > playbook.step(step.planned.step).retry.max + CRASHES_MAX:
        cause = f"step {step.planned.step} was begun {step.tries} times without an outcome"
        return Record((e.RollbackStarted(cause=cause, escalate=True),))
    if inputs.now_us < step.retry_at_us:
        return Wait(_next(state, playbook, step.retry_at_us))
    return Dispatch(step)


def _next(state: RunState, playbook: Playbook, until_us: int) -> int:
    """The earlier of a moment, the next renewal, and the end of the run's time."""
    moments = [until_us]
    if state.status is not Status.HOLDING:
        moments.append(state.started_us + _us(playbook.spec.guards.max_runtime))
    for step in state.steps:
        lease = playbook.step(step.planned.step).lease
        if step.holds and lease is not None:
            last_us = step.held_us + _us(lease.max_ttl)
            moments.append(min(_renew_us(step, lease.ttl), last_us) if step.expires_us < last_us else last_us)
    return min(moments)


def _reverting(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    """Take overrides back in reverse order; each must be gone from all proxies before the next."""
    rollback = playbook.spec.rollback
    timeout_s = _ROLLBACK_TIMEOUT_S if rollback is None else rollback.per_step_timeout
    for step in reversed(state.steps):
        if step.status is StepStatus.DISPATCHED:
            return Reconcile(step)
        if step.holds:
            return Revoke(step)
        if step.status is StepStatus.REVOKED:
            return ConfirmGone(step, deadline_us=max(step.since_us, inputs.up_since_us) + _us(timeout_s))
    if state.status is Status.RELEASING:
        return Record((e.ProbationStarted(),))
    if state.escalate:
        return Record((e.RollbackCompleted(), e.Escalated(reason=state.cause)))
    if state.cancelled_by:
        return Record((e.RollbackCompleted(), e.Cancelled()))
    return Record((e.RollbackCompleted(),))


def _probation(state: RunState, playbook: Playbook, inputs: Inputs) -> Task:
    if inputs.now_us < state.since_us:  # the clock went back
        return Record((e.ProbationStarted(),))
    end_us = state.since_us + _us(playbook.spec.probation.span)
    if state.measured_us >= end_us:
        return Record((e.Closed(),))
    next_us = min(state.measured_us + _us(playbook.validation.every), end_us)
    return Measure() if inputs.now_us >= next_us else Wait(next_us)


class Verdict(msgspec.Struct, frozen=True):
    """What measurements say. good: None when it cannot be said; which: the condition that failed or is unknown."""

    good: bool | None
    harm: str = ""
    which: str = ""
    values: dict[str, float] = {}
    samples: int = 0


def after_measuring(
    state: RunState, playbook: Playbook, verdict: Verdict, now_us: int, *, incident_open: bool = True
) -> Sequence[e.RunEvent]:
    """The events of one measurement of success, during validation or probation. Pure.

    Too few calls, or none that are fresh, are no verdict: the probes that saw the fault decide when to let go, since to put calls back on a
    deployment that fails its probes helps nobody. That is settled at the timeout, or as soon as the incident looks resolved.
    """
    enough = verdict.samples >= playbook.validation.min_samples
    sampled = e.ValidationSampled(values=verdict.values, samples=verdict.samples)
    if state.status is Status.PROBATION:
        if verdict.harm or (enough and verdict.good is False):
            return (e.Regressed(which=verdict.harm or verdict.which, values=verdict.values),)
        return (sampled,)
    if verdict.harm:
        cause = f"it did harm: {verdict.harm}"
        return (
            e.ValidationFailed(which=verdict.harm, harm=True, values=verdict.values, samples=verdict.samples),
            e.RollbackStarted(cause=cause, escalate=True),
        )
    waited_us = now_us - state.since_us
    if waited_us < _us(playbook.validation.bake):
        return (sampled,)
    if enough and verdict.good:
        return (e.ValidationPassed(values=verdict.values, samples=verdict.samples), e.Succeeded())
    undecided = verdict.good is None or not enough
    if undecided:
        if incident_open and waited_us < _us(playbook.validation_timeout_s):
            return (sampled,)
        which = verdict.which if enough else f"only {verdict.samples} of {playbook.validation.min_samples} samples"
        return (e.ValidationInconclusive(which=which, values=verdict.values, samples=verdict.samples),)
    which = verdict.which
    return (
        e.ValidationFailed(which=which, harm=False, values=verdict.values, samples=verdict.samples),
        e.RollbackStarted(cause=f"it did not help: {which}", escalate=True),
    )


def after_gate(state: StepState, playbook: Playbook, verdict: Verdict, now_us: int) -> Sequence[e.RunEvent]:
    """The events of one measurement of the gate behind a step; none: measure again later. Pure."""
    gate = playbook.step(state.planned.step).gate
    if gate is None or verdict.good:
        return (e.StepSucceeded(step=state.planned.step, out="its gate passed"),)
    if now_us < state.since_us + _us(gate.timeout):
        return ()
    return (e.StepFailed(step=state.planned.step, reason=f"its gate did not pass: {verdict.which}"),)


def after_confirming(task: Confirm, playbook: Playbook, *, live: int, having: int, now_us: int) -> Sequence[e.RunEvent]:
    """The events of asking the proxies for an override; none: ask again later. Pure."""
    step = task.step.planned.step
    if live > 0 and having >= live:
        confirmed = e.StepConfirmed(step=step, proxies=live)
        return (confirmed,) if playbook.step(step).gate else (confirmed, e.StepSucceeded(step=step))
    if now_us < task.deadline_us:
        return ()
    return (e.StepFailed(step=step, reason=f"{having} of {live} proxies had its override in time"),)


def after_confirming_gone(task: ConfirmGone, *, having: int, now_us: int) -> Sequence[e.RunEvent]:
    """The events of asking the proxies whether an override is gone; none: ask again later. Pure."""
    step = task.step.planned.step
    if having == 0:
        return (e.RevertConfirmed(step=step, lease_id=task.step.lease_id),)
    if now_us < task.deadline_us:
        return ()
    reason = f"{having} proxies still have the override of step {step}; it ends at its expiry"
    return (e.RollbackFailed(step=step, reason=reason), e.Escalated(reason=reason))


def after_failure(
    step: StepState, retry: Retry, *, reason: str, retryable: bool, contradicted: bool, now_us: int
) -> e.StepFailed:
    """The event of a try that failed: again after a wait that doubles, or never. Pure."""
    if not retryable or step.tries > retry.max:
        return e.StepFailed(step=step.planned.step, reason=reason, contradicted=contradicted)
    wait_us = _us(retry.base) * 2 ** max(step.tries - 1, 0)
    return e.StepFailed(step=step.planned.step, reason=reason, retry_at_us=now_us + wait_us)


def after_probe(state: RunState, *, good: bool, detail: str) -> Sequence[e.RunEvent]:
    """The events of one recovery probe: only a change of the streak is worth one. Pure."""
    if good:
        return (e.ProbesCounted(streak=state.streak + 1, detail=detail),)
    return (e.ProbesCounted(streak=0, detail=detail),) if state.streak else ()


def _us(seconds: float) -> int:
    return round(seconds * US_PER_S)

"""What a run is: the fold of its events. Pure; nothing here knows the time or the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from controlplane.healing import events as e
from controlplane.healing.playbook import Playbook, decode_playbook


class Status(StrEnum):
    """Where a run is in its life."""

    NEW = "new"  # no event yet
    MATCHED = "matched"
    PLANNED = "planned"
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    RUNNING = "running"
    VALIDATING = "validating"
    HOLDING = "holding"  # mitigated: leases are held until the deployment is well
    RELEASING = "releasing"
    PROBATION = "probation"
    ROLLING_BACK = "rolling_back"
    # The rest are ends.
    SUPPRESSED = "suppressed"
    SHADOWED = "shadowed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"
    REGRESSED = "regressed"
    ESCALATED = "escalated"
    CLOSED = "closed"


ENDS = frozenset(list(Status)[list(Status).index(Status.SUPPRESSED) :])
"""The states that a run never leaves."""


class StepStatus(StrEnum):
    """Where a step is."""

    PENDING = "pending"
    DISPATCHED = "dispatched"  # about to act, or acted and crashed: check first
    APPLIED = "applied"  # the override is in the catalog
    CONFIRMED = "confirmed"  # proxies have it; its gate is measured
    DONE = "done"
    FAILED = "failed"
    REVOKED = "revoked"  # the override is out of the catalog
    REVERTED = "reverted"  # no proxy has it any more


class StepState(msgspec.Struct, frozen=True):
    """One step of the plan, so far. since_us: when it got its status; held_us: when its first lease was granted."""

    planned: e.PlannedStep
    status: StepStatus = StepStatus.PENDING
    since_us: int = 0
    tries: int = 0
    regrants: int = 0
    retry_at_us: int = 0
    lease_id: str = ""
    expires_us: int = 0
    held_us: int = 0
    why: str = ""
    contradicted: bool = False

    @property
    def holds(self) -> bool:
        """Whether its override is in the catalog, as far as the run knows."""
        return bool(self.lease_id) and self.status not in {StepStatus.REVOKED, StepStatus.REVERTED}


class RunState(msgspec.Struct, frozen=True):
    """One run, so far. since_us: when it got its status; cause: why it ended, or is ending."""

    status: Status = Status.NEW
    version: int = 0
    since_us: int = 0
    matched_us: int = 0
    started_us: int = 0
    incident: e.IncidentView | None = None
    playbook_id: str = ""
    playbook_hash: str = ""
    playbook_text: str = ""
    level: str = ""
    plan: e.Planned | None = None
    steps: tuple[StepState, ...] = ()
    approval_expires_us: int = 0
    approved_by: str = ""
    deferred_by: str = ""
    measured_us: int = 0
    streak: int = 0
    cancelled_by: str = ""
    escalate: bool = False
    cause: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status in ENDS

    @property
    def playbook(self) -> Playbook:
        """The playbook it began with."""
        return decode_playbook(msgspec.json.decode(self.playbook_text))

    @property
    def target(self) -> str:
        """The sick deployment."""
        return "" if self.incident is None else self.incident.deployment


class Happened(msgspec.Struct, frozen=True):
    """An event with its moment, as the fold needs it."""

    event: e.RunEvent
    at_us: int


def evolve(state: RunState, happened: Happened) -> RunState:
    """The run after one more event. Total: every event in every state gives a state."""
    event, at_us = happened.event, happened.at_us
    state = msgspec.structs.replace(state, version=state.version + 1)
    if isinstance(event, e.Matched):
        return _to(
            state,
            Status.MATCHED,
            at_us,
            incident=event.incident,
            playbook_id=event.playbook_id,
            playbook_hash=event.playbook_hash,
            playbook_text=event.playbook,
            level=event.level,
            matched_us=at_us,
        )
    if type(event) in _ENDINGS:
        return _to(state, _ENDINGS[type(event)], at_us, cause=_reason(event) or state.cause)
    if type(event) in _STEPS:
        return _step_happened(state, event, at_us)
    handler = _HANDLERS.get(type(event))
    return state if handler is None else handler(state, event, at_us)


_ENDINGS: Mapping[type, Status] = {
    e.Suppressed: Status.SUPPRESSED,
    e.Shadowed: Status.SHADOWED,
    e.ApprovalRejected: Status.REJECTED,
    e.ApprovalExpired: Status.EXPIRED,
    e.Blocked: Status.BLOCKED,
    e.Cancelled: Status.CANCELLED,
    e.Regressed: Status.REGRESSED,
    e.Escalated: Status.ESCALATED,
    e.Closed: Status.CLOSED,
}


def _to(state: RunState, status: Status, at_us: int, **changes: Any) -> RunState:  # fields of RunState
    return msgspec.structs.replace(state, status=status, since_us=at_us, **changes)


def _reason(event: e.RunEvent) -> str:
    if isinstance(event, (e.Suppressed, e.Shadowed, e.Blocked, e.Escalated, e.ApprovalRejected)):
        return event.reason
    return event.which if isinstance(event, e.Regressed) else ""


def _planned(state: RunState, event: e.Planned, at_us: int) -> RunState:
    steps = tuple(StepState(planned=step, since_us=at_us) for step in event.steps)
    return _to(state, Status.PLANNED, at_us, plan=event, steps=steps)


def _approval_requested(state: RunState, event: e.ApprovalRequested, at_us: int) -> RunState:
    return _to(state, Status.AWAITING_APPROVAL, at_us, approval_expires_us=event.expires_us)


def _approved(state: RunState, event: e.ApprovalGranted, _at_us: int) -> RunState:
    return msgspec.structs.replace(state, approved_by=event.by)


def _queued(state: RunState, _event: e.Queued, at_us: int) -> RunState:
    return _to(state, Status.QUEUED, at_us)


def _deferred(state: RunState, event: e.Deferred, _at_us: int) -> RunState:
    return msgspec.structs.replace(state, deferred_by=event.guard, cause=event.reason)


def _started(state: RunState, _event: e.Started, at_us: int) -> RunState:
    return _to(state, Status.RUNNING, at_us, started_us=at_us, cause="")


def _validating(state: RunState, _event: e.ValidationStarted, at_us: int) -> RunState:
    return _to(state, Status.VALIDATING, at_us, measured_us=at_us)


def _sampled(state: RunState, _event: e.ValidationSampled, at_us: int) -> RunState:
    return msgspec.structs.replace(state, measured_us=at_us)


def _holding(state: RunState, _event: e.Succeeded | e.ValidationInconclusive, at_us: int) -> RunState:
    return _to(state, Status.HOLDING, at_us, streak=0)


def _probed(state: RunState, event: e.ProbesCounted, _at_us: int) -> RunState:
    return msgspec.structs.replace(state, streak=event.streak)


def _releasing(state: RunState, event: e.ReleaseStarted, at_us: int) -> RunState:
    return _to(state, Status.RELEASING, at_us, cause=event.reason)


def _probation(state: RunState, _event: e.ProbationStarted, at_us: int) -> RunState:
    return _to(state, Status.PROBATION, at_us, measured_us=at_us)


def _rolling_back(state: RunState, event: e.RollbackStarted, at_us: int) -> RunState:
    return _to(state, Status.ROLLING_BACK, at_us, cause=event.cause, escalate=event.escalate)


def _rolled_back(state: RunState, _event: e.RollbackCompleted, at_us: int) -> RunState:
    return _to(state, Status.ROLLED_BACK, at_us)


def _cancelling(state: RunState, event: e.CancelRequested, _at_us: int) -> RunState:
    return msgspec.structs.replace(state, cancelled_by=event.by)


_HANDLERS: Mapping[type, Callable[[RunState, Any, int], RunState]] = {  # Any: each handler takes its own event
    e.Planned: _planned,
    e.ApprovalRequested: _approval_requested,
    e.ApprovalGranted: _approved,
    e.Queued: _queued,
    e.Deferred: _deferred,
    e.Started: _started,
    e.ValidationStarted: _validating,
    e.ValidationSampled: _sampled,
    e.Succeeded: _holding,
    e.ValidationInconclusive: _holding,
    e.ProbesCounted: _probed,
    e.ReleaseStarted: _releasing,
    e.ProbationStarted: _probation,
    e.RollbackStarted: _rolling_back,
    e.RollbackCompleted: _rolled_back,
    e.CancelRequested: _cancelling,
}

_STEPS: Mapping[type, StepStatus | None] = {
    e.StepDispatched: StepStatus.DISPATCHED,
    e.LeaseGranted: StepStatus.APPLIED,
    e.StepConfirmed: StepStatus.CONFIRMED,
    e.StepSucceeded: StepStatus.DONE,
    e.StepFailed: StepStatus.FAILED,
    e.StepOutcomeUnknown: StepStatus.DISPATCHED,
    e.StepReconciled: None,
    e.LeaseRenewed: None,
    e.LeaseExpired: StepStatus.PENDING,
    e.LeaseRevoked: StepStatus.REVOKED,
    e.RevertConfirmed: StepStatus.REVERTED,
}


def _step_happened(state: RunState, event: Any, at_us: int) -> RunState:  # Any: one of _STEPS
    steps = tuple(_step_after(step, event, at_us) if step.planned.step == event.step else step for step in state.steps)
    state = msgspec.structs.replace(state, steps=steps)
    if isinstance(event, e.LeaseExpired) and state.status in {Status.VALIDATING, Status.HOLDING}:
        return _to(state, Status.RUNNING, at_us)  # the step is done again, then validated again
    return state


def _step_after(step: StepState, event: Any, at_us: int) -> StepState:  # Any: one of _STEPS
    status = _STEPS[type(event)]
    if status is not None:
        step = msgspec.structs.replace(step, status=status, since_us=at_us)
    if isinstance(event, e.StepDispatched):
        return msgspec.structs.replace(step, tries=step.tries + 1, why="")
    if isinstance(event, e.LeaseGranted):
        held_us = step.held_us or at_us
        return msgspec.structs.replace(step, lease_id=event.lease_id, expires_us=event.expires_us, held_us=held_us)
    if isinstance(event, e.LeaseRenewed):
        return msgspec.structs.replace(step, expires_us=event.expires_us)
    if isinstance(event, e.LeaseExpired):
        return msgspec.structs.replace(step, lease_id="", tries=0, regrants=step.regrants + 1)
    if isinstance(event, e.StepFailed):
        retried = event.retry_at_us is not None
        status = StepStatus.PENDING if retried else StepStatus.FAILED
        retry_at_us = event.retry_at_us or 0
        return msgspec.structs.replace(
            step, status=status, retry_at_us=retry_at_us, why=event.reason, contradicted=event.contradicted
        )
    if isinstance(event, e.StepReconciled) and not event.present:
        return msgspec.structs.replace(step, status=StepStatus.PENDING, since_us=at_us)
    return step

"""What can happen to a run: the events of stream `run-<ulid>`, in the order of a life."""

from __future__ import annotations

import msgspec

from controlplane.journal.events import Codec


class IncidentView(msgspec.Struct, frozen=True):
    """What healing needs to know of an incident. sources: the independent signals that saw it."""

    id: str
    fingerprint: str
    kind: str
    severity: str
    deployment: str
    upstream: str = ""
    aliases: tuple[str, ...] = ()
    opened_us: int = 0
    sources: tuple[str, ...] = ()
    confidence: float = 0.0


class PlannedStep(msgspec.Struct, frozen=True):
    """A step with its targets resolved. change: what it will do, for people; leased: whether it holds an override."""

    step: str
    action: str
    deployment: str
    run_id: str
    idem_key: str
    change: str
    leased: bool


class Matched(msgspec.Struct, frozen=True, tag="run.matched"):
    """An incident met a playbook. playbook: its whole canonical text, so that the run needs no file."""

    incident: IncidentView
    playbook_id: str
    playbook_hash: str
    playbook: str
    level: str
    why_level: str = ""


class Suppressed(msgspec.Struct, frozen=True, tag="run.suppressed"):
    """A guard or the kill switch refused the run before it did anything."""

    guard: str
    reason: str


class Planned(msgspec.Struct, frozen=True, tag="run.planned"):
    """What would be done, with its predicted reach and the measurements before. plan_hash: what an approval is bound to."""

    steps: tuple[PlannedStep, ...]
    aliases: tuple[str, ...]
    failover: tuple[str, ...]
    route_share: float
    total_share: float
    baseline: dict[str, float]
    plan_hash: str


class Shadowed(msgspec.Struct, frozen=True, tag="run.shadowed"):
    """The plan was recorded and nothing applied."""

    reason: str


class ApprovalRequested(msgspec.Struct, frozen=True, tag="approval.requested"):
    """A person must decide before `expires_us`."""

    plan_hash: str
    expires_us: int


class ApprovalGranted(msgspec.Struct, frozen=True, tag="approval.granted"):
    """A person said yes to this plan."""

    by: str
    plan_hash: str


class ApprovalRejected(msgspec.Struct, frozen=True, tag="approval.rejected"):
    """A person said no."""

    by: str
    reason: str = ""


class ApprovalExpired(msgspec.Struct, frozen=True, tag="approval.expired"):
    """Nobody answered in time."""


class Queued(msgspec.Struct, frozen=True, tag="run.queued"):
    """The run may act as soon as guards and preconditions let it."""


class Deferred(msgspec.Struct, frozen=True, tag="run.deferred"):
    """A guard or a precondition does not let it act now; it tries again."""

    guard: str
    reason: str


class Blocked(msgspec.Struct, frozen=True, tag="run.blocked"):
    """It may not act at all; nothing was applied."""

    guard: str
    reason: str


class Started(msgspec.Struct, frozen=True, tag="run.started"):
    """Guard tokens are held, preconditions hold: steps begin. Its append took the tokens."""

    scopes: tuple[str, ...]


class StepDispatched(msgspec.Struct, frozen=True, tag="step.dispatched"):
    """About to act: written before the effect, so that a crash is noticed."""

    step: str
    idem_key: str


class LeaseGranted(msgspec.Struct, frozen=True, tag="run.lease_granted"):
    """The override is in the catalog; proxies do not have it yet."""

    step: str
    lease_id: str
    expires_us: int


class StepConfirmed(msgspec.Struct, frozen=True, tag="step.confirmed"):
    """All live proxies report the override; a gate is measured from now on."""

    step: str
    proxies: int


class StepSucceeded(msgspec.Struct, frozen=True, tag="step.succeeded"):
    """The step did what it should."""

    step: str
    out: str = ""


class StepFailed(msgspec.Struct, frozen=True, tag="step.failed"):
    """The step did not. retry_at_us: None when it is not tried again; contradicted: what it looked at says there is no fault."""

    step: str
    reason: str
    retry_at_us: int | None = None
    contradicted: bool = False


class StepOutcomeUnknown(msgspec.Struct, frozen=True, tag="step.outcome_unknown"):
    """The effect was under way when time ran out; it is checked before anything else."""

    step: str


class StepReconciled(msgspec.Struct, frozen=True, tag="step.reconciled"):
    """After a crash or an unknown outcome the world was looked at: the effect is there, or it is not."""

    step: str
    present: bool


class LeaseRenewed(msgspec.Struct, frozen=True, tag="run.lease_renewed"):
    """The override lasts longer."""

    step: str
    lease_id: str
    expires_us: int


class LeaseExpired(msgspec.Struct, frozen=True, tag="run.lease_expired"):
    """The override ran out by itself (the control plane was away, or somebody revoked it)."""

    step: str
    lease_id: str


class ValidationStarted(msgspec.Struct, frozen=True, tag="validation.started"):
    """All steps are done; success is measured from now on."""


class ValidationSampled(msgspec.Struct, frozen=True, tag="validation.sample"):
    """One measurement; values by condition."""

    values: dict[str, float]
    samples: int


class ValidationPassed(msgspec.Struct, frozen=True, tag="validation.passed"):
    """The fix helped."""

    values: dict[str, float]
    samples: int


class ValidationFailed(msgspec.Struct, frozen=True, tag="validation.failed"):
    """The fix did not help, or did harm."""

    which: str
    harm: bool
    values: dict[str, float]
    samples: int


class ValidationInconclusive(msgspec.Struct, frozen=True, tag="validation.inconclusive"):
    """Too little was measured to say whether the fix helped; the leases are held until the deployment's own probes say that it is well."""

    which: str
    values: dict[str, float]
    samples: int


class Succeeded(msgspec.Struct, frozen=True, tag="run.succeeded"):
    """The incident is mitigated; the leases are held until the deployment is well."""


class ProbesCounted(msgspec.Struct, frozen=True, tag="probe.counted"):
    """The number of good probes in a row changed."""

    streak: int
    detail: str = ""


class ReleaseStarted(msgspec.Struct, frozen=True, tag="release.started"):
    """The deployment is well: the leases go."""

    reason: str


class LeaseRevoked(msgspec.Struct, frozen=True, tag="run.lease_revoked"):
    """The override is out of the catalog; proxies may still have it."""

    step: str
    lease_id: str


class RevertConfirmed(msgspec.Struct, frozen=True, tag="rollback.step_done"):
    """No live proxy has the override any more."""

    step: str
    lease_id: str


class ProbationStarted(msgspec.Struct, frozen=True, tag="probation.started"):
    """The leases are gone; success is watched a while longer."""


class Regressed(msgspec.Struct, frozen=True, tag="probation.regressed"):
    """It went bad again as soon as the leases were gone; the incident may open a new run."""

    which: str
    values: dict[str, float]


class RollbackStarted(msgspec.Struct, frozen=True, tag="rollback.started"):
    """Everything applied is taken back. escalate: whether people are called afterwards."""

    cause: str
    escalate: bool


class RollbackCompleted(msgspec.Struct, frozen=True, tag="rollback.completed"):
    """Nothing of the run is left."""


class RollbackFailed(msgspec.Struct, frozen=True, tag="rollback.failed"):
    """An override could not be taken back in time; it ends at its expiry."""

    step: str
    reason: str


class CancelRequested(msgspec.Struct, frozen=True, tag="run.cancel_requested"):
    """A person wants the run to stop."""

    by: str
    reason: str = ""


class Cancelled(msgspec.Struct, frozen=True, tag="run.cancelled"):
    """The run ended at a person's wish, with nothing left applied."""


class Escalated(msgspec.Struct, frozen=True, tag="run.escalated"):
    """Automation gave up; people are called."""

    reason: str


class Closed(msgspec.Struct, frozen=True, tag="run.closed"):
    """Healed: the fault is over and nothing of the fix is left."""


RunEvent = (
    Matched
    | Suppressed
    | Planned
    | Shadowed
    | ApprovalRequested
    | ApprovalGranted
    | ApprovalRejected
    | ApprovalExpired
    | Queued
    | Deferred
    | Blocked
    | Started
    | StepDispatched
    | LeaseGranted
    | StepConfirmed
    | StepSucceeded
    | StepFailed
    | StepOutcomeUnknown
    | StepReconciled
    | LeaseRenewed
    | LeaseExpired
    | ValidationStarted
    | ValidationSampled
    | ValidationPassed
    | ValidationFailed
    | ValidationInconclusive
    | Succeeded
    | ProbesCounted
    | ReleaseStarted
    | LeaseRevoked
    | RevertConfirmed
    | ProbationStarted
    | Regressed
    | RollbackStarted
    | RollbackCompleted
    | RollbackFailed
    | CancelRequested
    | Cancelled
    | Escalated
    | Closed
)


def run_codec() -> Codec[RunEvent]:
    """A reader of run events."""
    return Codec(RunEvent)


def stream_of(run_id: str) -> str:
    """The stream of a run. Run ids are `run_<ulid>`, streams `run-<ulid>`."""
    return "run-" + run_id.removeprefix("run_")


def run_of(stream_id: str) -> str:
    """The run of a stream."""
    return "run_" + stream_id.removeprefix("run-")

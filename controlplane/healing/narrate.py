"""Run events as sentences, for `incidents show`, the console and the API. Pure."""

from __future__ import annotations

from controlplane.healing import events as e


def narrate(event: e.RunEvent) -> str:
    """One event as a sentence; the event's own name where there is nothing to add."""
    return _begin(event) or _act(event) or _measure(event) or _end(event) or type(event).__name__


def _begin(event: e.RunEvent) -> str:
    match event:
        case e.Matched():
            why = f" ({event.why_level})" if event.why_level else ""
            return f"playbook {event.playbook_id} matches, level {event.level}{why}"
        case e.Suppressed() | e.Blocked():
            return f"not run: {event.guard}, {event.reason}"
        case e.Planned():
            steps = "; ".join(step.change for step in event.steps)
            targets = ", ".join(event.failover) or "nobody"
            return f"plan: {steps}; {event.route_share:.0%} of the route's calls move to {targets}"
        case e.Shadowed():
            return f"nothing applied: {event.reason}"
        case e.ApprovalRequested():
            return "waits for a person's approval"
        case e.ApprovalGranted():
            return f"approved by {event.by}"
        case e.ApprovalRejected():
            return f"rejected by {event.by}" + (f": {event.reason}" if event.reason else "")
        case e.ApprovalExpired():
            return "nobody answered in time"
        case e.Queued():
            return "queued"
        case e.Deferred():
            return f"deferred: {event.guard}, {event.reason}"
        case e.Started():
            return "guards taken, steps begin"
    return ""


def _act(event: e.RunEvent) -> str:
    match event:
        case e.StepDispatched():
            return f"step {event.step} begins"
        case e.LeaseGranted():
            return f"step {event.step}: lease {event.lease_id} granted"
        case e.StepConfirmed():
            return f"step {event.step}: {event.proxies} proxies have it"
        case e.StepSucceeded():
            return f"step {event.step} done" + (f": {event.out}" if event.out else "")
        case e.StepFailed():
            return f"step {event.step} failed: {event.reason}" + (
                "" if event.retry_at_us is None else "; it is tried again"
            )
        case e.StepOutcomeUnknown():
            return f"step {event.step}: outcome unknown, it is checked"
        case e.StepReconciled():
            return f"step {event.step}: checked, its effect is {'there' if event.present else 'not there'}"
        case e.LeaseRenewed():
            return f"lease {event.lease_id} renewed"
        case e.LeaseExpired():
            return f"lease {event.lease_id} expired by itself"
        case e.LeaseRevoked():
            return f"lease {event.lease_id} taken back"
        case e.RevertConfirmed():
            return f"step {event.step}: no proxy has it any more"
    return ""


def _measure(event: e.RunEvent) -> str:
    match event:
        case e.ValidationStarted():
            return "validation begins"
        case e.ValidationSampled():
            return f"measured over {event.samples} calls: {_values(event.values)}"
        case e.ValidationPassed():
            return f"validated over {event.samples} calls: {_values(event.values)}"
        case e.ValidationFailed():
            return (
                f"{'harm' if event.harm else 'no help'}: {event.which} ({_values(event.values)}, {event.samples} calls)"
            )
        case e.ValidationInconclusive():
            return f"cannot be validated: {event.which} ({event.samples} calls); held until probes succeed"
        case e.ProbesCounted():
            return f"{event.streak} good probes in a row" + (f"; {event.detail}" if event.detail else "")
        case e.Regressed():
            return f"bad again: {event.which}"
    return ""


def _end(event: e.RunEvent) -> str:
    match event:
        case e.Succeeded():
            return "mitigated; the override is held until the deployment is well"
        case e.ReleaseStarted():
            return f"released: {event.reason}"
        case e.ProbationStarted():
            return "on probation without the override"
        case e.RollbackStarted():
            return f"rolled back because {event.cause}"
        case e.RollbackCompleted():
            return "nothing of it is left"
        case e.RollbackFailed():
            return f"step {event.step} could not be taken back: {event.reason}"
        case e.CancelRequested():
            return f"{event.by} wants it to stop" + (f": {event.reason}" if event.reason else "")
        case e.Cancelled():
            return "cancelled"
        case e.Escalated():
            return f"people are called: {event.reason}"
        case e.Closed():
            return "healed and closed"
    return ""


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items())) or "nothing measured"

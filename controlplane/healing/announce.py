"""Which events of a run people hear of, and in which words. Pure."""

from __future__ import annotations

from controlplane.alerts.alert import Field, Kind, Notification, Severity
from controlplane.healing import events as e
from controlplane.healing.state import RunState, Status
from controlplane.journal.events import tag_of


def announce(run_id: str, state: RunState, event: e.RunEvent, *, at_us: int) -> Notification | None:
    """The notification of an event, or None; state: after the event. The id is the same each time it is asked."""
    if state.incident is None:
        return None
    said = _said(state, event)
    if said is None:
        return None
    kind, severity, title, summary = said
    steps = tuple(Field("step", step.planned.change) for step in state.steps)
    return Notification(
        id=f"{run_id}/{state.version}",
        type=tag_of(event),
        kind=kind,
        severity=severity,
        title=title,
        summary=summary,
        occurred_us=at_us,
        dedup_key=run_id,
        thread_key=state.incident.id,
        incident_id=state.incident.id,
        run_id=run_id,
        fields=(
            Field("playbook", state.playbook_id),
            Field("deployment", state.target),
            Field("status", state.status),
            *steps,
        ),
    )


def _said(state: RunState, event: e.RunEvent) -> tuple[Kind, Severity, str, str] | None:
    target, playbook = state.target, state.playbook_id
    if isinstance(event, e.ApprovalRequested):
        summary = f"{playbook} would act on {target}; approve with `hephaestus playbooks approve`."
        return Kind.APPROVAL, Severity.HIGH, f"{playbook} waits for approval", summary
    if isinstance(event, e.Shadowed) and state.level == "suggest":
        return (
            Kind.UPDATED,
            Severity.WARNING,
            f"{playbook} suggests a fix for {target}",
            "It was not applied: its level is suggest.",
        )
    if isinstance(event, e.Succeeded):
        summary = "Measured success is back; the override is held until the deployment answers probes again."
        return Kind.UPDATED, Severity.INFO, f"{target} is worked around", summary
    if isinstance(event, e.ValidationInconclusive):
        summary = f"It cannot be measured whether that helps: {event.which}. The override is held until the deployment answers probes again."
        return Kind.UPDATED, Severity.WARNING, f"{target} is worked around", summary
    if isinstance(event, e.Regressed):
        return Kind.UPDATED, Severity.HIGH, f"{target} went bad again", f"After the override was lifted: {event.which}."
    if isinstance(event, e.RollbackStarted) and not event.escalate:
        return Kind.UPDATED, Severity.WARNING, f"{playbook} is rolled back on {target}", f"Because {event.cause}."
    if isinstance(event, e.Escalated):
        left = (
            "Nothing of the fix is left."
            if state.status is Status.ESCALATED and not _held(state)
            else "Look at it now."
        )
        return Kind.ESCALATED, Severity.CRITICAL, f"{playbook} could not heal {target}", f"{event.reason}. {left}"
    if isinstance(event, e.Closed):
        return (
            Kind.RESOLVED,
            Severity.INFO,
            f"{target} is healed",
            "It answers again and takes its calls; no override is left.",
        )
    return None


def _held(state: RunState) -> bool:
    return any(step.holds for step in state.steps)

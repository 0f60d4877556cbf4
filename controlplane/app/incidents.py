"""Incidents as the API and the console show them, with the steps of their runs among their own events; and what people are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controlplane.alerts.alert import AlertRouter, Field, Kind, Notification, Severity
from controlplane.api import views
from controlplane.app.healing import RunAnswers, timeline
from controlplane.errors import NotFound
from controlplane.incidents.incident import Fired, Incident, IncidentEvent, Resolved
from controlplane.incidents.narrate import narrate
from controlplane.incidents.register import Incidents, event_type
from controlplane.journal.events import NewOutbox

_SEVERITIES = {"critical": Severity.CRITICAL, "high": Severity.HIGH}


class IncidentAnswers:
    """Incidents with their runs."""

    def __init__(self, incidents: Incidents, runs: RunAnswers) -> None:
        self._incidents = incidents
        self._runs = runs

    async def list(self, *, state: str | None, limit: int) -> Sequence[views.IncidentSummary]:
        """At most `limit` incidents, newest first."""
        found = self._incidents.list(state=state, limit=limit)
        runs = await self._runs.ids_of({incident.id for incident in found})
        return [summary(incident, runs.get(incident.id, ())) for incident in found]

    async def show(self, incident_id: str) -> views.IncidentDetail:
        """One incident with its timeline, the steps of its runs among it; raises NotFound."""
        found, runs = await asyncio.gather(
            asyncio.to_thread(self._incidents.show, incident_id), self._runs.of_incident(incident_id)
        )
        own = [views.TimelineEntry(one.at_us, one.kind, one.text, one.actor) for one in found.timeline]
        steps = [entry for run in runs for entry in timeline(run)]
        return views.IncidentDetail(
            summary(found.incident, tuple(run.run.id for run in runs)),
            tuple(sorted([*own, *steps], key=lambda entry: entry.at_us)),
        )

    async def newest(self, count: int) -> Sequence[views.IncidentDetail]:
        """The newest incidents with their timelines, open ones first."""
        known = self._incidents.list(limit=count)
        details = []
        for incident in sorted(known, key=lambda one: (not one.is_open, -one.opened_us)):
            try:
                details.append(await self.show(incident.id))
            except NotFound:
                continue
        return details


def summary(incident: Incident, run_ids: tuple[str, ...] = ()) -> views.IncidentSummary:
    """An incident as lists show it."""
    cause = incident.causes[0] if incident.causes else None
    return views.IncidentSummary(
        id=incident.id,
        title=incident.title,
        state=incident.state,
        opened_us=incident.opened_us,
        resolved_us=incident.resolved_us,
        cause=f"{cause.kind} {cause.entity}" if cause else "",
        severity=incident.severity,
        run_ids=run_ids,
    )


class IncidentNews:
    """Outbox entries for what people hear of an incident: that it fires, that it fires again, that it is over."""

    def __init__(self, router: AlertRouter) -> None:
        self.router = router

    def __call__(self, incident: Incident, event: IncidentEvent) -> Sequence[NewOutbox]:
        """The entries of one event, for the transaction that appends it."""
        match event:
            case Fired() if incident.reopened:
                kind, title = Kind.UPDATED, f"again: {incident.title}"
            case Fired():
                kind, title = Kind.OPENED, incident.title
            case Resolved():
                kind, title = Kind.RESOLVED, f"over: {incident.title}"
            case _:
                return ()
        notification = Notification(
            id=f"{incident.id}/{incident.version}",
            type=event_type(event),
            kind=kind,
            severity=Severity.INFO if kind is Kind.RESOLVED else _SEVERITIES.get(incident.severity, Severity.WARNING),
            title=title,
            summary=narrate(event),
            occurred_us=event.at_us,
            dedup_key=incident.id,
            thread_key=incident.id,
            incident_id=incident.id,
            fields=tuple(Field("deployment", name) for name in incident.deployments),
        )
        return self.router.entries(notification)

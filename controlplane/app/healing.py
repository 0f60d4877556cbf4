"""Healing joined to the catalog, the store, the proxies and the incidents; and what the API asks of runs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import msgspec

from controlplane.api import views
from controlplane.catalog.leases import Leases
from controlplane.catalog.publish import Publisher
from controlplane.clock import US_PER_S, Clock
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import BadRequest
from controlplane.healing import events as e
from controlplane.healing.actions import Confirmation, IncidentState, Measurement, RouteShare, RouteView
from controlplane.healing.commands import Commands
from controlplane.healing.killswitch import KillSwitch, Mode
from controlplane.healing.narrate import narrate
from controlplane.healing.runs import RunDetail, Runs, RunSummary
from controlplane.healing.state import Status
from controlplane.incidents.incident import Incident
from controlplane.incidents.register import Incidents
from controlplane.incidents.topology import Topology
from controlplane.store.client import Store
from controlplane.store.queries.measures import Measured, deployment_measured, route_measured

GLOBAL = "global"
RATE_SPAN_S_MIN = 10.0  # a rate over less says nothing


class CatalogLeases:
    """The catalog's leases as healing speaks of them. Blocking."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    def grant(self, kind: LeaseKind, deployment: str, *, ttl_s: float, run_id: str, reason: str, share: float) -> Lease:
        """Puts an override into the catalog; durable when it returns."""
        return self._leases.grant(kind, deployment, ttl_s, run_id=run_id, reason=reason, share=share, actor="healing")

    def renew(self, lease_id: str, ttl_s: float) -> Lease | None:
        """Makes an override last `ttl_s` from now; raises NotFound when it is gone."""
        return self._leases.renew(lease_id, ttl_s, actor="healing")

    def revoke(self, lease_id: str) -> None:
        """Takes an override back."""
        self._leases.revoke(lease_id, actor="healing")

    def active(self) -> Sequence[Lease]:
        """All overrides in force."""
        return self._leases.active()


class StoredMetrics:
    """Measured truth for validation, from telemetry."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def read(self, metric: str, target: Mapping[str, str], window_s: float) -> Measurement:
        """One metric of one target over the last `window_s`. Raises BadRequest for an unknown metric."""
        subject, _, name = metric.partition(".")
        to_us = self._clock.now_us()
        from_us = to_us - round(window_s * US_PER_S)
        if subject == "route":
            found = await self._store.run(route_measured, self._store, target["alias"], from_us=from_us, to_us=to_us)
        else:
            found = await self._store.run(
                deployment_measured, self._store, target["deployment"], from_us=from_us, to_us=to_us
            )
        age_s = (to_us - found.newest_us) / US_PER_S if found.newest_us else window_s
        seen_s = (to_us - found.oldest_us) / US_PER_S if found.oldest_us else window_s
        span_s = min(window_s, max(seen_s, RATE_SPAN_S_MIN))
        return Measurement(value=_value(found, name, span_s), samples=found.calls, age_s=max(0.0, age_s))


def _value(found: Measured, name: str, span_s: float) -> float:
    """One number. span_s: how long there has been traffic in the window, so that a route that is new has the rate it has."""
    match name:
        case "calls":
            return float(found.calls)
        case "success_ratio":
            return found.good / found.calls if found.calls else float("nan")
        case "latency_p95_s":
            return found.latency_s_p95 or float("nan")  # 0: there was none to measure
        case "ttft_p95_s":
            return found.first_token_s_p95 or float("nan")
        case "cost_usd_per_h":
            return found.cost_usd * 3_600 / span_s
    raise BadRequest(f"there is no metric {name!r}")


class ProxyConfirmations:
    """What the live proxies report about leases."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def __call__(self, lease_id: str) -> Confirmation:
        """How many workers are live, and how many of them have the lease."""
        statuses = self._publisher.statuses()
        return Confirmation(live=len(statuses), having=sum(lease_id in status.lease_ids for status in statuses))


class CatalogRoutes:
    """The routes of the current snapshot with each deployment's share of calls and health."""

    def __init__(self, publisher: Publisher, incidents: Incidents) -> None:
        self._publisher = publisher
        self._incidents = incidents

    def __call__(self) -> Sequence[RouteView]:
        """As they are now. Calls go to the deployments of the lowest order by weight; the others are there for failover."""
        snapshot = self._publisher.current
        sick = set(self._incidents.sick_deployments())
        not_closed = {
            breaker.deployment
            for status in self._publisher.statuses()
            for breaker in status.breakers
            if breaker.state != "closed"
        }
        found = []
        for route in snapshot.routes:
            first = min(deployment.order for deployment in route.deployments)
            total = sum(deployment.weight for deployment in route.deployments if deployment.order == first)
            shares = tuple(
                RouteShare(
                    deployment=deployment.id,
                    share=deployment.weight / total if deployment.order == first else 0.0,
                    healthy=deployment.id not in sick | not_closed,
                )
                for deployment in route.deployments
            )
            found.append(RouteView(route.alias, shares))
        return found


class KnownIncidents:
    """Whether the trouble is still there."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents

    def state(self, incident_id: str) -> IncidentState:
        """The state of an incident; `resolved` for one that is not known or was dismissed."""
        known = {incident.id: incident for incident in self._incidents.open()}.get(incident_id)
        if known is None:
            return "resolved"
        return "firing" if known.state == "firing" else "pending"


def views_of(incident: Incident, topology: Topology) -> list[e.IncidentView]:
    """What healing needs to know of an incident: one view for each deployment that a raised signal names."""
    raised = [state.signal for state in incident.signals if state.raised]
    found = []
    for deployment in sorted({signal.deployment for signal in raised if signal.deployment}):
        about = [signal for signal in raised if signal.deployment == deployment]
        kinds = {signal.kind for signal in about}
        found.append(
            e.IncidentView(
                id=incident.id,
                fingerprint=f"{incident.fingerprint}/{deployment}",
                kind="success_ratio" if "success_ratio" in kinds else min(kinds),
                severity=incident.severity,
                deployment=deployment,
                upstream=topology.upstreams.get(deployment, ""),
                aliases=tuple(sorted(alias for alias, members in topology.aliases.items() if deployment in members)),
                opened_us=incident.opened_us,
                sources=tuple(sorted({signal.source for signal in about})),
                confidence=max(signal.score for signal in about),
            )
        )
    return found


class RunAnswers:
    """Runs and the kill switch as the API asks for them."""

    def __init__(self, runs: Runs, commands: Commands, kill_switch: KillSwitch) -> None:
        self._runs = runs
        self._commands = commands
        self._kill_switch = kill_switch

    async def list(self, *, state: str | None, limit: int) -> Sequence[views.RunSummary]:
        """At most `limit` runs, newest first."""
        found = await asyncio.to_thread(self._runs.list, limit=limit if state is None else 10_000)
        return [summary(run) for run in found if state is None or run.status == state][:limit]

    async def show(self, run_id: str) -> views.RunDetail:
        """One run with its events; raises NotFound."""
        return await asyncio.to_thread(self._show, run_id)

    def _show(self, run_id: str) -> views.RunDetail:
        found = self._runs.show(run_id)
        return views.RunDetail(summary(found.run), timeline(found))

    async def of_incident(self, incident_id: str) -> Sequence[RunDetail]:
        """All runs of an incident with their events, oldest first."""

        def read() -> list[RunDetail]:
            return [self._runs.show(run.id) for run in reversed(self._runs.list(limit=100, incident=incident_id))]

        return await asyncio.to_thread(read)

    async def ids_of(self, incident_ids: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Ids of the runs of incidents, the oldest first."""
        return await asyncio.to_thread(self._runs.by_incident, incident_ids)

    async def approve(self, run_id: str, *, actor: str, reason: str) -> None:
        """Lets a run go on that waits for a person."""
        del reason
        await asyncio.to_thread(self._commands.approve, run_id, by=actor)

    async def reject(self, run_id: str, *, actor: str, reason: str) -> None:
        """Refuses what a run waits for."""
        await asyncio.to_thread(self._commands.reject, run_id, by=actor, reason=reason)

    async def abort(self, run_id: str, *, actor: str, reason: str) -> None:
        """Stops a run and rolls back what it did."""
        await asyncio.to_thread(self._commands.cancel, run_id, by=actor, reason=reason)

    async def kill_switch(self) -> views.KillSwitch:
        """Whether healing may act."""
        control = await asyncio.to_thread(self._kill_switch.state)
        for engaged in control.engaged:
            if engaged.scope == GLOBAL and engaged.mode is Mode.STOP:
                return views.KillSwitch(engaged=True, actor=engaged.by, reason=engaged.reason)
        return views.KillSwitch(engaged=False)

    async def engage(self, *, actor: str, reason: str) -> None:
        """Stops all healing until released."""
        await asyncio.to_thread(self._kill_switch.engage, GLOBAL, by=actor, reason=reason)

    async def release(self, *, actor: str, reason: str) -> None:
        """Lets healing act again."""
        del reason
        await asyncio.to_thread(self._kill_switch.release, GLOBAL, by=actor)


def summary(run: RunSummary) -> views.RunSummary:
    """A run as lists show it."""
    return views.RunSummary(
        id=run.id,
        playbook=run.playbook,
        state=run.status,
        incident_id=run.incident,
        opened_us=run.matched_us,
        ended_us=run.ended_us,
        shadow=run.status is Status.SHADOWED,
        waits_for="approval" if run.status is Status.AWAITING_APPROVAL else "",
    )


def timeline(found: RunDetail) -> tuple[views.TimelineEntry, ...]:
    """A run's events as sentences, oldest first."""
    decoder: msgspec.json.Decoder[e.RunEvent] = msgspec.json.Decoder(e.RunEvent)
    entries = []
    for entry in found.timeline:
        event = decoder.decode(entry.detail)
        entries.append(views.TimelineEntry(entry.at_us, entry.type, narrate(event), entry.actor, found.run.id))
    return tuple(entries)

"""The console's first page, gathered from the store, the proxies' last words and the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from controlplane.api import views
from controlplane.catalog.publish import Publisher
from controlplane.clock import US_PER_S, Clock
from controlplane.contract.snapshot import BreakerStatus, Lease, ProxyStatus
from controlplane.errors import HephaestusError
from controlplane.store.client import Store
from controlplane.store.queries import health

WINDOW_S = 300
POINTS_S = 1_800
LINES = 5
_SEVERITY = {"closed": 0, "half_open": 1, "open": 2}


class OverviewReader:
    """Reads the overview; a part that cannot be read is named on the page instead of breaking it."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        clock: Clock,
        *,
        incidents: Callable[[], Awaitable[Sequence[views.IncidentDetail]]],
        kill_switch: Callable[[], Awaitable[views.KillSwitch]],
        config_problems: Callable[[], Sequence[str]],
        disk_trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._incidents = incidents
        self._kill_switch = kill_switch
        self._config_problems = config_problems
        self._disk_trouble = disk_trouble

    async def overview(self) -> views.Overview:
        """Everything on the first page, as of now. Raises StoreUnavailable when the store does not answer at all."""
        now_us = self._clock.now_us()
        stored = await self._store.run(_read, self._store, now_us)
        troubles = [f"the configuration file is refused: {problem}" for problem in self._config_problems()]
        incidents: Sequence[views.IncidentDetail] = ()
        switch = views.KillSwitch(engaged=False)
        try:
            incidents, switch = await asyncio.gather(self._incidents(), self._kill_switch())
        except HephaestusError as error:
            troubles.append(f"incidents cannot be read: {error.message}")
        statuses = self._publisher.statuses()
        if not statuses:
            troubles.append("no proxy has reported lately")
        dropped = sum(status.spool_dropped for status in statuses)
        if dropped:
            troubles.append(f"{dropped} records were dropped by full spools")
        if short := self._disk_trouble():
            troubles.append(short)
        return views.Overview(
            at_us=now_us,
            snapshot_version=self._publisher.current.version,
            traffic=stored.traffic,
            spend=stored.spend,
            cache=stored.cache,
            ledger=_ledger(statuses, stored.ledgers),
            kill_switch=switch,
            deployments=self._deployments(statuses, stored.deployments, now_us),
            proxies=tuple(views.ProxyView.of(status) for status in statuses),
            incidents=tuple(incidents),
            troubles=tuple(troubles),
        )

    def _deployments(
        self, statuses: Sequence[ProxyStatus], measured: Sequence[health.DeploymentHealth], now_us: int
    ) -> tuple[views.DeploymentView, ...]:
        """Every deployment of the snapshot once, with the worst breaker that any worker reports."""
        snapshot = self._publisher.current
        worst = _worst_breakers(statuses)
        leases = {lease.deployment: lease for lease in snapshot.leases if lease.expires_us > now_us}
        numbers = {one.deployment: one for one in measured}
        aliases: dict[str, list[str]] = {}
        deployments = {}
        for route in snapshot.routes:
            for deployment in route.deployments:
                deployments[deployment.id] = deployment
                aliases.setdefault(deployment.id, []).append(route.alias)
        found = []
        for name, deployment in deployments.items():
            breaker, lease, number = worst.get(name), leases.get(name), numbers.get(name)
            found.append(
                views.DeploymentView(
                    id=name,
                    upstream=deployment.upstream,
                    model=deployment.model,
                    aliases=tuple(aliases[name]),
                    breaker=breaker.state if breaker else "closed",
                    breaker_reason=breaker.reason if breaker else "",
                    lease=_lease_words(lease),
                    lease_expires_us=lease.expires_us if lease else 0,
                    attempts=number.attempts if number else 0,
                    failures=number.failures if number else 0,
                    latency_us_p95=number.latency_us_p95 if number else 0,
                )
            )
        return tuple(found)


class _Stored(msgspec.Struct, frozen=True):
    """What the store says."""

    traffic: views.Traffic
    spend: views.Spend
    cache: views.CacheSavings
    deployments: list[health.DeploymentHealth]
    ledgers: list[health.StoredLedger]


def _read(store: Store, now_us: int) -> _Stored:
    """All queries of the page; blocking."""
    day, hour = health.day_start_us(now_us), now_us - health.HOUR_US
    recent = health.traffic(store, from_us=now_us - WINDOW_S * US_PER_S, to_us=now_us)
    points = health.traffic_points(store, from_us=now_us - POINTS_S * US_PER_S, to_us=now_us)
    today = health.money(store, from_us=day, to_us=now_us)
    last_hour = health.money(store, from_us=hour, to_us=now_us)
    lines = (
        tuple(
            views.SpendLine(one.name, one.calls, one.cost_nanousd)
            for one in read(store, from_us=day, to_us=now_us, limit=LINES)
        )
        for read in (health.spend_by_tenant, health.spend_by_model, health.spend_by_agent)
    )
    by_tenant, by_model, by_agent = lines
    return _Stored(
        traffic=views.Traffic(
            window_s=WINDOW_S,
            calls=recent.calls,
            errors=recent.errors,
            latency_us_p50=recent.latency_us_p50,
            latency_us_p95=recent.latency_us_p95,
            first_token_us_p50=recent.first_token_us_p50,
            first_token_us_p95=recent.first_token_us_p95,
            points=tuple(views.TrafficPoint(point.at_us, point.calls, point.errors) for point in points),
        ),
        spend=views.Spend(
            today_nanousd=today.cost_nanousd,
            hour_nanousd=last_hour.cost_nanousd,
            unpriced_calls=today.calls_unpriced,
            by_tenant=by_tenant,
            by_model=by_model,
            by_agent=by_agent,
        ),
        cache=views.CacheSavings(today.cacheable, today.hits, today.coalesced, today.saved_nanousd),
        deployments=health.deployments(store, from_us=now_us - WINDOW_S * US_PER_S, to_us=now_us),
        ledgers=health.stored_ledgers(store),
    )


def _ledger(statuses: Sequence[ProxyStatus], stored: Sequence[health.StoredLedger]) -> views.Ledger:
    """The live workers' ledgers beside what the store holds of the same workers."""
    rows = {one.proxy: one for one in stored}
    known = [rows[status.proxy_id] for status in statuses if status.proxy_id in rows]
    return views.Ledger(
        proxy_calls=sum(status.ledger_calls for status in statuses),
        proxy_nanousd=sum(status.ledger_nanousd for status in statuses),
        stored_calls=sum(one.calls for one in known),
        stored_nanousd=sum(one.cost_nanousd for one in known),
    )


def _worst_breakers(statuses: Sequence[ProxyStatus]) -> dict[str, BreakerStatus]:
    worst: dict[str, BreakerStatus] = {}
    for status in statuses:
        for breaker in status.breakers:
            known = worst.get(breaker.deployment)
            if known is None or _SEVERITY.get(breaker.state, 0) > _SEVERITY.get(known.state, 0):
                worst[breaker.deployment] = breaker
    return worst


def _lease_words(lease: Lease | None) -> str:
    if lease is None:
        return ""
    return lease.kind.value if lease.kind.value != "share" else f"share {lease.share:.0%}"

"""How things are now: the numbers of the first page, each part one small query over the last minutes or today."""

from __future__ import annotations

import msgspec

from controlplane.contract.records import CacheState
from controlplane.store.client import Store, Value
from controlplane.store.queries.series import FAILED, LATENCY_S_MAX, NOT_THE_DEPLOYMENTS_FAULT
from controlplane.store.rows import nanousd

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
STATE_AGE_S_MAX = 60  # what a proxy said longer ago is no longer how things are
LINES_MAX = 100  # tenants, models, deployments on one page; the dearest or busiest first

_WITHOUT_UPSTREAM = (CacheState.HIT, CacheState.STALE, CacheState.SEMANTIC)
_SINCE = """
started >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC') AND started < fromUnixTimestamp64Micro({to_us:Int64}, 'UTC')
"""

_NOT_OURS = "NOT (tenant = '' AND agent = 'hephaestus')"  # probes, and copies of calls: nobody waits for them

_TRAFFIC = f"""
WITH arrayMap(q -> toInt64(ifNotFinite(q, 0)), quantilesTDigest(0.5, 0.95, 0.99)(latency_us)) AS latency,
    arrayMap(q -> toInt64(ifNotFinite(q, 0)), quantilesTDigestIf(0.5, 0.95, 0.99)(first_token_us, first_token_us > 0)) AS first
SELECT count() AS calls, countIf(outcome IN {{failed:Array(String)}}) AS errors,
    latency[1] AS latency_us_p50, latency[2] AS latency_us_p95, latency[3] AS latency_us_p99,
    first[1] AS first_token_us_p50, first[2] AS first_token_us_p95, first[3] AS first_token_us_p99,
    toInt64(ifNotFinite(quantileTDigest(0.95)(overhead_us), 0)) AS overhead_us_p95
FROM calls WHERE {_SINCE} AND {_NOT_OURS}
"""  # noqa: S608 - made of constants

_POINTS = f"""
SELECT toUnixTimestamp64Micro(toDateTime64(toStartOfMinute(started), 6)) AS at_us,
    count() AS calls, countIf(outcome IN {{failed:Array(String)}}) AS errors
FROM calls WHERE {_SINCE} AND {_NOT_OURS} GROUP BY at_us ORDER BY at_us
"""  # noqa: S608

_MONEY = f"""
SELECT count(), sum(cost_usd), sum(saved_usd), countIf(cost_state = 'unpriced'), countIf(cost_state = 'estimated'),
    countIf(cache != 'bypass'), countIf(cache IN {{hits:Array(String)}}), countIf(cache = 'coalesced')
FROM calls WHERE {_SINCE}
"""  # noqa: S608

_SPEND_BY = f"""
SELECT {{dimension}} AS name, count(), sum(cost_usd) AS cost
FROM calls WHERE {_SINCE} GROUP BY name ORDER BY cost DESC, name LIMIT {{limit:UInt32}}
"""  # noqa: S608

_ATTEMPTS = f"""
SELECT deployment, any(upstream) AS upstream, any(model) AS model, count() AS attempts, countIf(error != '') AS failures,
    toInt64(ifNotFinite(quantileTDigest(0.95)(latency_us), 0)) AS latency_us_p95,
    toInt64(ifNotFinite(quantileTDigestIf(0.95)(first_token_us, first_token_us > 0), 0)) AS first_token_us_p95
FROM attempts WHERE {_SINCE} AND error NOT IN {{ignored:Array(String)}}
GROUP BY deployment ORDER BY attempts DESC, deployment LIMIT {{limit:UInt32}}
"""  # noqa: S608

_STATES = """
SELECT deployment, argMax(state, severity) AS state, argMax(reason, severity) AS reason,
    argMax(toUnixTimestamp64Micro(since), severity) AS since_us
FROM
(
    SELECT deployment, proxy, argMax(state, at) AS state, argMax(reason, at) AS reason, argMax(since, at) AS since,
        indexOf(['closed', 'half_open', 'open'], state) AS severity
    FROM deployment_status
    WHERE at >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC') AND at <= fromUnixTimestamp64Micro({to_us:Int64}, 'UTC')
    GROUP BY deployment, proxy
)
GROUP BY deployment ORDER BY deployment LIMIT {limit:UInt32}
"""

_LAG = """
SELECT count() AS calls, maxOrDefault(toUnixTimestamp64Milli(ingested) * 1000 - toUnixTimestamp64Micro(started) - toInt64(latency_us)) AS lag_us,
    maxOrDefault(toUnixTimestamp64Micro(started) + toInt64(latency_us)) AS newest_us
FROM calls
WHERE started >= fromUnixTimestamp64Micro({reach_us:Int64}, 'UTC') AND ingested >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
"""


class Traffic(msgspec.Struct, frozen=True):
    """Calls of a window. errors: those that we or an upstream owed the client. 0: nothing to measure."""

    calls: int
    errors: int
    latency_us_p50: int
    latency_us_p95: int
    latency_us_p99: int
    first_token_us_p50: int
    first_token_us_p95: int
    first_token_us_p99: int
    overhead_us_p95: int


class TrafficPoint(msgspec.Struct, frozen=True):
    """One minute; minutes without calls are left out."""

    at_us: int
    calls: int
    errors: int


class Money(msgspec.Struct, frozen=True):
    """Cost and savings of a window. cacheable: calls that could have been answered without an upstream."""

    calls: int
    cost_nanousd: int
    saved_nanousd: int
    calls_unpriced: int
    calls_estimated: int
    cacheable: int
    hits: int
    coalesced: int

    @property
    def hit_ratio(self) -> float | None:
        """Share of cacheable calls that needed no upstream call of their own; None when there were none."""
        return (self.hits + self.coalesced) / self.cacheable if self.cacheable else None


class SpendLine(msgspec.Struct, frozen=True):
    """What one tenant, one model or one agent cost."""

    name: str
    calls: int
    cost_nanousd: int


class DeploymentHealth(msgspec.Struct, frozen=True):
    """Attempts of a window on one deployment, less those that say nothing about it."""

    deployment: str
    upstream: str
    model: str
    attempts: int
    failures: int
    latency_us_p95: int
    first_token_us_p95: int


class DeploymentState(msgspec.Struct, frozen=True):
    """The worst state that any live proxy reports for a deployment's breaker."""

    deployment: str
    state: str
    reason: str
    since_us: int


class StoredLedger(msgspec.Struct, frozen=True):
    """What is stored of one proxy worker's calls, to be held against its own ledger."""

    proxy: str
    calls: int
    cost_nanousd: int


class Lag(msgspec.Struct, frozen=True):
    """How far storing is behind: the oldest a call was when it was stored, of those stored lately; newest_us: end of the newest call."""

    calls: int
    lag_us: int
    newest_us: int


def traffic(store: Store, *, from_us: int, to_us: int) -> Traffic:
    """Calls that started in [from_us, to_us); blocking, as all here."""
    return store.structs(Traffic, _TRAFFIC, _window(from_us, to_us, failed=_failed()))[0]


def traffic_points(store: Store, *, from_us: int, to_us: int) -> list[TrafficPoint]:
    """The same by minute, oldest first."""
    return store.structs(TrafficPoint, _POINTS, _window(from_us, to_us, failed=_failed()))


def money(store: Store, *, from_us: int, to_us: int) -> Money:
    """Cost and savings of the calls that started in [from_us, to_us), exact."""
    hits = [state.value for state in _WITHOUT_UPSTREAM]
    calls, cost, saved, *counts = store.rows(_MONEY, _window(from_us, to_us, hits=hits))[0]
    return Money(int(str(calls)), nanousd(cost), nanousd(saved), *(int(str(count)) for count in counts))


def spend_by_tenant(store: Store, *, from_us: int, to_us: int, limit: int = LINES_MAX) -> list[SpendLine]:
    """The dearest tenants first."""
    return _spend(store, "tenant", from_us=from_us, to_us=to_us, limit=limit)


def spend_by_model(store: Store, *, from_us: int, to_us: int, limit: int = LINES_MAX) -> list[SpendLine]:
    """The dearest models first."""
    return _spend(store, "model", from_us=from_us, to_us=to_us, limit=limit)


def spend_by_agent(store: Store, *, from_us: int, to_us: int, limit: int = LINES_MAX) -> list[SpendLine]:
    """The dearest agents first; calls that name none are one line with an empty name."""
    return _spend(store, "agent", from_us=from_us, to_us=to_us, limit=limit)


def _spend(store: Store, dimension: str, *, from_us: int, to_us: int, limit: int) -> list[SpendLine]:
    rows = store.rows(_SPEND_BY.replace("{dimension}", dimension), _window(from_us, to_us, limit=limit))
    return [SpendLine(str(name), int(str(calls)), nanousd(cost)) for name, calls, cost in rows]


def deployments(store: Store, *, from_us: int, to_us: int, limit: int = LINES_MAX) -> list[DeploymentHealth]:
    """Attempts by deployment, the busiest first."""
    ignored = [error.value for error in NOT_THE_DEPLOYMENTS_FAULT]
    return store.structs(DeploymentHealth, _ATTEMPTS, _window(from_us, to_us, ignored=ignored, limit=limit))


def deployment_states(store: Store, *, now_us: int, limit: int = LINES_MAX) -> list[DeploymentState]:
    """Breaker states as the proxies last told them."""
    return store.structs(DeploymentState, _STATES, _window(now_us - STATE_AGE_S_MAX * 1_000_000, now_us, limit=limit))


def stored_ledgers(store: Store) -> list[StoredLedger]:
    """Calls and cost stored of each proxy worker since its first batch, from the batches' own sums."""
    rows = store.rows("SELECT proxy, sum(records), sum(cost_usd) FROM batches GROUP BY proxy ORDER BY proxy")
    return [StoredLedger(str(proxy), int(str(calls)), nanousd(cost)) for proxy, calls, cost in rows]


def ingest_lag(store: Store, *, now_us: int, window_s: int = 60) -> Lag:
    """How late the calls were that were stored in the last `window_s` seconds."""
    from_us = now_us - window_s * 1_000_000
    parameters: dict[str, Value] = {"from_ms": from_us // 1000, "reach_us": from_us - LATENCY_S_MAX * 1_000_000}
    return store.structs(Lag, _LAG, parameters)[0]


def day_start_us(now_us: int) -> int:
    """Midnight UTC of the day."""
    return now_us - now_us % DAY_US


def _failed() -> list[str]:
    return [outcome.value for outcome in FAILED]


def _window(from_us: int, to_us: int, **more: Value) -> dict[str, Value]:
    return {"from_us": from_us, "to_us": to_us, **more}

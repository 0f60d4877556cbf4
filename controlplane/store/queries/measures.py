"""One number about one alias or one deployment over the last moments: what healing validates with."""

from __future__ import annotations

import msgspec

from controlplane.store.client import Store, Value
from controlplane.store.queries.series import FAILED, LATENCY_S_MAX, NOT_THE_DEPLOYMENTS_FAULT, OF_CLIENTS

_WINDOW = """
    started >= fromUnixTimestamp64Micro({reach_us:Int64}, 'UTC')
    AND toUnixTimestamp64Micro(started) + toInt64(latency_us) >= {from_us:Int64}
    AND toUnixTimestamp64Micro(started) + toInt64(latency_us) < {to_us:Int64}
"""

_ROUTE = f"""
SELECT count() AS calls, countIf(outcome = 'ok') AS good,
    ifNotFinite(quantileTDigest(0.95)(latency_us), 0) / 1e6 AS latency_s_p95,
    ifNotFinite(quantileTDigestIf(0.95)(first_token_us, first_token_us > 0), 0) / 1e6 AS first_token_s_p95,
    toFloat64(sum(cost_usd)) AS cost_usd,
    maxOrDefault(toUnixTimestamp64Micro(started) + toInt64(latency_us)) AS newest_us,
    minOrDefault(toUnixTimestamp64Micro(started) + toInt64(latency_us)) AS oldest_us
FROM calls
WHERE {_WINDOW} AND {OF_CLIENTS} AND alias = {{name:String}} AND (outcome = 'ok' OR outcome IN {{failed:Array(String)}})
"""  # noqa: S608 - made of constants

_DEPLOYMENT = f"""
SELECT count() AS calls, countIf(error = '') AS good,
    ifNotFinite(quantileTDigest(0.95)(latency_us), 0) / 1e6 AS latency_s_p95,
    ifNotFinite(quantileTDigestIf(0.95)(first_token_us, first_token_us > 0), 0) / 1e6 AS first_token_s_p95,
    toFloat64(sum(cost_usd)) AS cost_usd,
    maxOrDefault(toUnixTimestamp64Micro(started) + toInt64(latency_us)) AS newest_us,
    minOrDefault(toUnixTimestamp64Micro(started) + toInt64(latency_us)) AS oldest_us
FROM attempts
WHERE {_WINDOW} AND deployment = {{name:String}} AND error NOT IN {{ignored:Array(String)}}
"""  # noqa: S608


class Measured(msgspec.Struct, frozen=True):
    """What ended in a window and counts.

    good: of `calls`; newest_us, oldest_us: ends of the newest and the oldest, 0 when there was none; cost_usd: for rates, never for bills.
    """

    calls: int
    good: int
    latency_s_p95: float
    first_token_s_p95: float
    cost_usd: float
    newest_us: int
    oldest_us: int


def route_measured(store: Store, alias: str, *, from_us: int, to_us: int) -> Measured:
    """Calls for an alias that ended in [from_us, to_us), less those that failed by the client's own doing; blocking."""
    more: dict[str, Value] = {"failed": [outcome.value for outcome in FAILED]}
    return _one(store, _ROUTE, alias, from_us=from_us, to_us=to_us, more=more)


def deployment_measured(store: Store, deployment: str, *, from_us: int, to_us: int) -> Measured:
    """Attempts on a deployment that ended in [from_us, to_us), less those that say nothing about it; blocking."""
    more: dict[str, Value] = {"ignored": [error.value for error in NOT_THE_DEPLOYMENTS_FAULT]}
    return _one(store, _DEPLOYMENT, deployment, from_us=from_us, to_us=to_us, more=more)


def _one(store: Store, sql: str, name: str, *, from_us: int, to_us: int, more: dict[str, Value]) -> Measured:
    reach_us = max(0, from_us - LATENCY_S_MAX * 1_000_000)
    parameters: dict[str, Value] = {"name": name, "from_us": from_us, "to_us": to_us, "reach_us": reach_us, **more}
    return store.structs(Measured, sql, parameters)[0]

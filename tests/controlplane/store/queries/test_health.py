"""Health: the first page's numbers, and the same shape when nothing ever happened."""

from __future__ import annotations

import pytest

from controlplane.contract.records import AttemptError, CacheState, CostState, Outcome
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.store import schema
from controlplane.store.client import Store
from controlplane.store.queries import health
from controlplane.store.queries.health import (
    DeploymentHealth,
    DeploymentState,
    Lag,
    Money,
    SpendLine,
    StoredLedger,
    Traffic,
    TrafficPoint,
)
from controlplane.store.rows import breaker_columns
from tests.controlplane.store.fakes import MINUTE_US, START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

NOW_US = START_US + 10 * MINUTE_US


def test_nothing_ever_happened(store: Store) -> None:
    """An empty store gives zeros, not errors and not NaN."""
    window = {"from_us": START_US, "to_us": NOW_US}
    assert Traffic(0, 0, 0, 0, 0, 0, 0, 0, 0) == health.traffic(store, **window)
    assert health.traffic_points(store, **window) == []
    assert Money(0, 0, 0, 0, 0, 0, 0, 0) == health.money(store, **window)
    assert health.money(store, **window).hit_ratio is None
    assert health.spend_by_tenant(store, **window) == []
    assert health.spend_by_model(store, **window) == []
    assert health.spend_by_agent(store, **window) == []
    assert health.deployments(store, **window) == []
    assert health.deployment_states(store, now_us=NOW_US) == []
    assert health.stored_ledgers(store) == []
    assert Lag(0, 0, 0) == health.ingest_lag(store, now_us=NOW_US)


def test_traffic(store: Store) -> None:
    """Calls, errors and latencies of the window; a client's own errors are calls but not errors, and what we send ourselves is neither."""
    fill(
        store,
        *(a_call(n, latency_us=n * 10_000, first_token_us=n * 1_000) for n in range(1, 99)),
        a_call(99, at_us=START_US + MINUTE_US, outcome=Outcome.EXHAUSTED, first_token_us=0),
        a_call(100, at_us=START_US + MINUTE_US, outcome=Outcome.DENIED, first_token_us=0),
        a_call(101, at_us=NOW_US),
        a_call(102, outcome=Outcome.EXHAUSTED, tenant="", agent="hephaestus"),
    )
    found = health.traffic(store, from_us=START_US, to_us=NOW_US)
    assert (100, 1) == (found.calls, found.errors)
    assert found.latency_us_p50 == pytest.approx(500_000, rel=0.05)
    assert found.latency_us_p95 == pytest.approx(950_000, rel=0.05)
    assert found.first_token_us_p95 == pytest.approx(94_000, rel=0.05)
    assert found.overhead_us_p95 == 1_500
    assert [TrafficPoint(START_US, 98, 0), TrafficPoint(START_US + MINUTE_US, 2, 1)] == health.traffic_points(
        store, from_us=START_US, to_us=NOW_US
    )


def test_money(store: Store) -> None:
    """Cost and savings are exact, unpriced calls are counted, and the hit ratio is over cacheable calls."""
    fill(
        store,
        a_call(1, cost_nanousd=10**18 - 1),
        a_call(2, cost_nanousd=2, cache=CacheState.BYPASS, tenant="beta", deployment="anthropic/claude"),
        a_call(3, cache=CacheState.HIT, saved_nanousd=5),
        a_call(4, cache=CacheState.COALESCED, saved_nanousd=6, cost_state=CostState.UNPRICED),
        a_call(5, cost_nanousd=3, cost_state=CostState.ESTIMATED),
    )
    found = health.money(store, from_us=START_US, to_us=NOW_US)
    assert Money(5, 10**18 + 4, 11, 1, 1, 4, 1, 1) == found
    assert found.hit_ratio == 0.5
    assert [SpendLine("acme", 4, 10**18 + 2), SpendLine("beta", 1, 2)] == health.spend_by_tenant(
        store, from_us=START_US, to_us=NOW_US
    )
    assert [SpendLine("gpt", 4, 10**18 + 2)] == health.spend_by_model(store, from_us=START_US, to_us=NOW_US, limit=1)


def test_spend_by_agent(store: Store) -> None:
    """The dearest agent first; calls that name none are a line of their own, so that the lines sum up."""
    fill(
        store,
        a_call(1, agent="scout", cost_nanousd=5),
        a_call(2, agent="miner", cost_nanousd=7),
        a_call(3, agent="scout", cost_nanousd=4),
        a_call(4, agent="", cost_nanousd=1),
        a_call(5, agent="late", at_us=NOW_US, cost_nanousd=100),
    )
    lines = [SpendLine("scout", 2, 9), SpendLine("miner", 1, 7), SpendLine("", 1, 1)]
    assert lines == health.spend_by_agent(store, from_us=START_US, to_us=NOW_US)
    assert lines[:2] == health.spend_by_agent(store, from_us=START_US, to_us=NOW_US, limit=2)


def test_deployments(store: Store) -> None:
    """Attempts and failures by deployment, without what says nothing about it."""
    failed = an_attempt(error=AttemptError.CONNECT, latency_us=50_000)
    fill(
        store,
        a_call(1, attempts=(failed, an_attempt("azure/gpt"))),
        a_call(2, attempts=(failed, an_attempt("azure/gpt"))),
        a_call(3, attempts=(an_attempt(), an_attempt(error=AttemptError.CANCELLED))),
    )
    found = health.deployments(store, from_us=START_US, to_us=NOW_US)
    assert DeploymentHealth("azure/gpt", "azure", "gpt", 2, 0, 900_000, 300_000) == found[1]
    assert [("openai/gpt", 3, 2), ("azure/gpt", 2, 0)] == [(d.deployment, d.attempts, d.failures) for d in found]


def test_worst_state_of_live_proxies_counts(store: Store) -> None:
    """A deployment is as bad as the worst of its breakers, by each proxy's last word, and old words are forgotten."""
    for proxy, at_us, state in (
        ("p1", NOW_US - 120_000_000, "open"),
        ("p2", NOW_US - 20_000_000, "open"),
        ("p2", NOW_US - 10_000_000, "half_open"),
        ("p3", NOW_US - 5_000_000, "closed"),
    ):
        breaker = BreakerStatus(deployment="openai/gpt", state=state, since_us=START_US, reason=f"{proxy} says so")
        status = ProxyStatus(proxy_id=proxy, at_us=at_us, snapshot_version=1, breakers=(breaker,))
        store.insert(schema.DEPLOYMENT_STATUS, breaker_columns(status, [breaker]))
    assert [DeploymentState("openai/gpt", "half_open", "p2 says so", START_US)] == health.deployment_states(
        store, now_us=NOW_US
    )


def test_stored_ledgers(store: Store) -> None:
    """What is stored of each proxy's calls, denied ones too, to be held against its own ledger."""
    fill(store, a_call(1, cost_nanousd=3), a_call(2, cost_nanousd=4), proxy="p1", segment=1)
    fill(store, a_call(3, cost_nanousd=5), proxy="p1", segment=2)
    fill(store, a_call(4, outcome=Outcome.DENIED, attempts=()), proxy="p2", segment=1)
    assert [StoredLedger("p1", 3, 12), StoredLedger("p2", 1, 0)] == health.stored_ledgers(store)


def test_ingest_lag(store: Store) -> None:
    """The lag is the greatest age that a call had when it was stored."""
    (stored_us,) = store.rows("SELECT toUnixTimestamp64Micro(now64(6))")[0]
    now_us = int(str(stored_us))
    fill(store, a_call(1, at_us=now_us - 30_000_000), a_call(2, at_us=now_us - 2_000_000))
    lag = health.ingest_lag(store, now_us=now_us)
    assert (2, now_us - 1_000_000) == (lag.calls, lag.newest_us)
    assert lag.lag_us == pytest.approx(29_000_000, abs=5_000_000)


def test_day_starts_at_midnight_utc() -> None:
    """Today begins at midnight UTC."""
    assert health.day_start_us(START_US) == START_US - START_US % 86_400_000_000

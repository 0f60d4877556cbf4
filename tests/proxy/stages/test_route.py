"""Where calls go: weights, orders, drains, shares."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from controlplane.contract.snapshot import Deployment, Lease, LeaseKind, Route, Snapshot, Upstream
from proxy.balance import Balancer
from proxy.call import Call
from proxy.dialects.dialect import RequestView
from proxy.load import Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import compile_runtime
from proxy.stages.route import RouteStage
from tests.proxy.fakes import Clock

HOUR_US = 3_600_000_000


def lease(deployment: str, *, share: float | None = None, expires_us: int = 10 * HOUR_US) -> Lease:
    """A drain, or a share."""
    kind = LeaseKind.DRAIN if share is None else LeaseKind.SHARE
    return Lease(id=f"l-{deployment}", kind=kind, deployment=deployment, expires_us=expires_us, share=share or 0.0)


def made(
    *deployments: tuple[str, int, int], leases: tuple[Lease, ...] = (), probing: frozenset[str] = frozenset()
) -> tuple[RouteStage, Call]:
    """A stage and a call; each deployment is (id, weight, order)."""
    items = tuple(
        Deployment(id=name, upstream="u", model="m", weight=weight, order=order) for name, weight, order in deployments
    )
    snapshot = Snapshot(
        version=1,
        created_us=0,
        upstreams=(Upstream(id="u", dialect="openai", base_url="http://localhost/v1"),),
        routes=(Route(alias="gpt", deployments=items, timeout_s=30.0),),
        leases=leases,
    )
    clock = Clock(3_600.0)
    balancer = Balancer(
        ProxyMetrics("0"), Loads(), probe_due=probing.__contains__, draw=random.Random(7).random, monotonic=clock, now_us=clock.us,
    )  # fmt: skip
    stage = RouteStage(balancer, timeout_s_max=600.0, monotonic=clock)
    call = Call(compile_runtime(snapshot, {}), "chat", "/", {}, b"", call_id="c", started_us=0, started_ns=0)
    call.view = RequestView(model="gpt")
    return stage, call


def order(stage: RouteStage, call: Call) -> list[str]:
    """The deployments in the order in which they would be tried."""
    assert stage.enter(call) is None
    return [candidate.deployment.id for candidate in call.candidates]


def firsts(stage: RouteStage, call: Call, draws: int = 4_000) -> Counter[str]:
    """How often each deployment comes first."""
    return Counter(order(stage, call)[0] for _ in range(draws))


def test_smaller_orders_come_first() -> None:
    """Groups in their order, whatever the order of the file."""
    assert ["a", "b", "c"] == order(*made(("c", 1, 9), ("a", 1, 0), ("b", 1, 5)))


def test_weights_are_shares_of_the_first_place() -> None:
    """Three to one, and everybody else is a fallback."""
    stage, call = made(("a", 3, 0), ("b", 1, 0), ("c", 1, 1))
    counts = firsts(stage, call)
    assert 0.75 == pytest.approx(counts["a"] / 4_000, abs=0.03)
    assert 0 == counts["c"]
    assert {"a", "b", "c"} == set(order(stage, call))


def test_fallbacks_of_one_order_share_by_weight_too() -> None:
    """An outage of the first does not send all its calls to the one that happens to be listed next."""
    stage, call = made(("a", 1, 0), ("b", 3, 1), ("c", 1, 1))
    seconds = Counter(order(stage, call)[1] for _ in range(4_000))
    assert 0.75 == pytest.approx(seconds["b"] / 4_000, abs=0.03)


def test_weight_zero_is_only_a_fallback() -> None:
    """Never first, but there."""
    stage, call = made(("a", 0, 0), ("b", 1, 0))
    assert {"b": 4_000} == firsts(stage, call)
    assert ["b", "a"] == order(stage, call)


def test_a_drained_deployment_gets_nothing() -> None:
    """Neither first nor as a fallback, as long as the lease lasts."""
    assert ["b"] == order(*made(("a", 1, 0), ("b", 1, 1), leases=(lease("a"),)))
    assert ["a", "b"] == order(*made(("a", 1, 0), ("b", 1, 1), leases=(lease("a", expires_us=HOUR_US),)))


def test_a_drained_deployment_gets_the_probes_of_its_breaker() -> None:
    """When a probe is due it goes first, with the others behind it."""
    drained = made(("a", 1, 0), ("b", 1, 1), leases=(lease("a"),), probing=frozenset(("a",)))
    assert ["a", "b"] == order(*drained)


def test_when_all_are_drained_the_drains_are_ignored() -> None:
    """A call that may fail is better than one that must."""
    assert ["a", "b"] == order(*made(("a", 1, 0), ("b", 1, 1), leases=(lease("a"), lease("b"))))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_share_is_never_exceeded(share: float) -> None:
    """The deployment comes first at most so often, and stays a fallback otherwise."""
    stage, call = made(("a", 9, 0), ("b", 1, 0), leases=(lease("a", share=share),))
    assert firsts(stage, call)["a"] / 4_000 <= share + 0.02
    assert {"a", "b"} == set(order(stage, call))


def test_a_share_holds_without_anybody_of_the_same_order() -> None:
    """What one may not have goes to the next group."""
    stage, call = made(("a", 1, 0), ("b", 1, 1), leases=(lease("a", share=0.25),))
    counts = firsts(stage, call)
    assert 0.25 == pytest.approx(counts["a"] / 4_000, abs=0.03)
    assert 4_000 == counts["a"] + counts["b"]


@pytest.mark.parametrize(
    ("expected_s", "header"), [(30.0, None), (0.05, b"50"), (30.0, b"999999999"), (None, b"0"), (None, b"-5"), (None, b"1e3"), (None, b"")]
)  # fmt: skip
def test_the_deadline_is_the_shortest_of_all(expected_s: float | None, header: bytes | None) -> None:
    """The route's timeout, shortened by the client if it asks; what is no number is refused."""
    stage, call = made(("a", 1, 0))
    if header is not None:
        call.headers = {b"x-heph-timeout-ms": header}
    reply = stage.enter(call)
    if expected_s is None:
        assert reply is not None
        assert 400 == reply.status
    else:
        assert 3_600.0 + expected_s == pytest.approx(call.deadline)

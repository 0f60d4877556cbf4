"""Latencies, and the limit that follows from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Concurrency
from proxy.load import AdaptiveLimit, DeploymentLoad, Loads, Sketch
from tests.proxy.fakes import Clock


@settings(max_examples=40, deadline=None)
@given(
    latencies=st.lists(st.floats(0.002, 100.0), min_size=1, max_size=300),
    q=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_a_quantile_is_right_within_a_tenth(latencies: list[float], q: float) -> None:
    """Of any latencies."""
    sketch = Sketch()
    for latency_s in latencies:
        sketch.observe(latency_s)
    ordered = sorted(latencies)
    exact = next(value for n, value in enumerate(ordered, 1) if n >= q * len(ordered))
    assert exact <= sketch.quantile(q) * 1.0001
    assert sketch.quantile(q) <= exact * 1.1001


def test_what_is_left_of_a_late_call() -> None:
    """The mean of those that took longer; without any, as long again."""
    sketch = Sketch()
    for latency_s in [0.1] * 90 + [10.0] * 10:
        sketch.observe(latency_s)
    assert 9.0 == pytest.approx(sketch.left_s(1.0), rel=0.15)
    assert 50.0 == sketch.left_s(50.0)


def test_the_past_fades() -> None:
    """Thousands of old latencies do not outweigh the newer ones for ever."""
    sketch = Sketch()
    for latency_s in [0.1] * 10_000 + [2.0] * 3_000:
        sketch.observe(latency_s)
    assert 2.0 == pytest.approx(sketch.quantile(0.5), rel=0.1)
    assert sketch.total < 2_000


def grown(limit: AdaptiveLimit, latency_s: float, answers: int, *, busy: bool = True) -> float:
    """The limit after so many good answers, with all places taken or none."""
    for _ in range(answers):
        limit.observe(latency_s, inflight=int(limit.value) if busy else 1, overloaded=False, now=0.0)
    return limit.value


def test_the_limit_grows_while_it_is_used_and_latency_stays() -> None:
    """Up to its bound; not while most places are free."""
    limit = AdaptiveLimit(Concurrency(max=100, min=4))
    assert limit.value == grown(limit, 0.1, 100, busy=False)
    assert 100.0 == grown(limit, 0.1, 300)


def test_the_limit_falls_when_latency_rises() -> None:
    """A queue at the upstream shows as latency, and fewer calls at once is the answer; never below the least."""
    limit = AdaptiveLimit(Concurrency(max=100, min=4))
    grown(limit, 0.1, 300)
    assert grown(limit, 1.0, 40) < 50
    assert limit.value >= 4


def test_overload_lowers_the_limit_once_for_a_crowd() -> None:
    """Ten failures at once are one sign, and so are ten more a second later."""
    limit = AdaptiveLimit(Concurrency(max=100, min=10))
    for now in [0.0] * 10 + [1.5] * 10:
        limit.observe(0.1, inflight=20, overloaded=True, now=now)
    assert 20 * 0.8 * 0.8 == pytest.approx(limit.value)


def test_a_fixed_limit_stays() -> None:
    """`adaptive: false` is a plain number of places."""
    limit = AdaptiveLimit(Concurrency(max=7, adaptive=False))
    limit.observe(9.0, inflight=7, overloaded=True, now=0.0)
    assert 7.0 == limit.value


@settings(max_examples=50, deadline=None)
@given(
    answers=st.lists(
        st.tuples(
            st.floats(0.001, 50.0), st.sampled_from([AttemptError.NONE, AttemptError.STATUS_429, AttemptError.CONNECT])
        ),
        max_size=200,
    ),
    bounds=st.tuples(st.integers(1, 50), st.integers(0, 50)),
)
def test_the_limit_never_leaves_its_bounds(answers: list[tuple[float, AttemptError]], bounds: tuple[int, int]) -> None:
    """Whatever comes back."""
    clock = Clock()
    loads = Loads(monotonic=clock)
    policy = Concurrency(min=bounds[0], max=bounds[0] + bounds[1])
    loads.configure({"d": policy})
    load: DeploymentLoad = loads.of("d")
    for latency_s, error in answers:
        load.begin()
        clock.now += latency_s
        load.finished(error, latency_s=latency_s, output_tokens=1)
        assert load.limit is not None
        assert policy.min <= load.limit.value <= policy.max
    assert 0 == load.inflight


def test_a_new_snapshot_keeps_what_was_learned() -> None:
    """The limit moves only as far as the new bounds make it; deployments that are gone are forgotten."""
    loads = Loads(monotonic=Clock())
    loads.configure({"d": Concurrency(max=100), "gone": None})
    load = loads.of("d")
    assert load.limit is not None
    load.limit.value = 60.0
    loads.configure({"d": Concurrency(max=50)})
    assert (load, 50.0) == (loads.of("d"), load.limit.value)
    assert 50.0 == loads.places()

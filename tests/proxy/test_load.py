"""Latencies, and the limit that follows from them."""

from __future__ import annotations

import random
from collections import deque

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


def settled(
    limit: AdaptiveLimit, capacity: int, *, rounds: int = 20_000, noise: float = 0.0, busy: float = 1.0
) -> list[float]:
    """The limits after the start, at a deployment that does so many calls at once in 0.1 s and gets slower with each more.

    noise: sigma of the logarithm of what an answer's length makes of its latency; busy: how much of the limit is used.
    """
    draw, seen, now = random.Random(3), [], 0.0
    for n in range(rounds):
        inflight = max(1, int(limit.value * busy))
        latency_s = 0.1 * max(1.0, inflight / capacity) * draw.lognormvariate(0.0, noise)
        limit.observe(latency_s, inflight=inflight, overloaded=False, now=now)
        now += latency_s / inflight
        if n > 1_000:
            seen.append(limit.value)
    return sorted(seen)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("capacity", [8, 50, 200])
def test_the_limit_finds_what_a_deployment_can_do(capacity: int, noise: float) -> None:
    """Neither starved nor flooded, also where answers differ in length: nearly always between C and three times C, never over four."""
    seen = settled(AdaptiveLimit(Concurrency(max=1_000, min=4)), capacity, noise=noise)
    assert capacity <= seen[len(seen) // 5]
    assert seen[-len(seen) // 20] <= 3 * capacity
    assert seen[-1] <= 4 * capacity + 5


def test_the_limit_does_not_grow_while_it_is_not_used() -> None:
    """Few calls say nothing about many."""
    limit = AdaptiveLimit(Concurrency(max=1_000))
    assert 20.0 == settled(limit, 500, rounds=2_000, busy=0.3)[-1]


def test_the_limit_follows_a_deployment_that_gets_smaller() -> None:
    """A quarter of the capacity is soon less than half of the limit."""
    limit = AdaptiveLimit(Concurrency(max=1_000))
    before = settled(limit, 100)[-1]
    assert settled(limit, 25)[-1] < before / 2


@pytest.mark.parametrize("latency_s", [2.0, 60.0])
def test_what_is_usual_is_learned_in_little_of_the_time(latency_s: float) -> None:
    """A deployment whose answers take long, and that can do all that it may, does nearly all of it."""
    limit, now, done, running = AdaptiveLimit(Concurrency(max=64, min=4)), 0.0, 0, deque[float]()
    while now < 500 * latency_s + 3_600.0:
        running.extend([now + latency_s] * (int(limit.value) - len(running)))
        now = running.popleft()
        limit.observe(latency_s, inflight=len(running) + 1, overloaded=False, now=now)
        done += 1
    assert done * latency_s > 0.75 * 64 * now


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

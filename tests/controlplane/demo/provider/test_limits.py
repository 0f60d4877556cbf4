"""Rate-limit buckets, the durations in their headers, and the pace of tokens."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.clock import ManualClock
from controlplane.demo.provider.config import Latency, upstreams_on
from controlplane.demo.provider.headers import duration
from controlplane.demo.provider.latency import Pace
from controlplane.demo.provider.limits import Limits


@given(steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=60))
def test_enforced_limits_are_never_exceeded(steps: list[tuple[float, int]]) -> None:
    """Within any time the buckets grant at most their size and what has flowed in since."""
    clock = ManualClock()
    limits = Limits(requests_per_minute=10, tokens_per_minute=100, enforced=True, now=clock.monotonic)
    requests = tokens = 0
    for seconds, wanted in steps:
        clock.move(seconds)
        if limits.take(b"k", "m", wanted).granted:
            requests += 1
            tokens += wanted
        assert requests <= 10 * (1 + clock.monotonic() / 60) + 1e-6
        assert tokens <= 100 * (1 + clock.monotonic() / 60) + 1e-6


def test_refused_request_is_granted_when_it_was_told() -> None:
    """After `retry_after_s` the request that was refused is granted, and not a moment earlier."""
    clock = ManualClock()
    limits = Limits(requests_per_minute=60, tokens_per_minute=100, enforced=True, now=clock.monotonic)
    assert limits.take(b"k", "m", 100).granted
    refused = limits.take(b"k", "m", 50)
    assert (False, "tokens", 30.0) == (refused.granted, refused.kind, refused.retry_after_s)
    clock.move(29.9)
    assert not limits.take(b"k", "m", 50).granted
    clock.move(0.1)
    assert limits.take(b"k", "m", 50).granted


def test_limits_that_are_not_enforced_only_tell() -> None:
    """Without enforcement everything is granted and nothing goes below zero; other keys and models have their own."""
    limits = Limits(requests_per_minute=1, tokens_per_minute=10, enforced=False, now=ManualClock().monotonic)
    for _ in range(3):
        last = limits.take(b"k", "m", 100)
        assert last.granted
    assert (0, 0, 60_000) == (last.remaining_requests, last.remaining_tokens, last.reset_requests_ms)
    assert limits.take(b"k", "other", 1).remaining_tokens == 9
    assert limits.take(b"other", "m", 2).remaining_tokens == 8


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0ms"), (3, "3ms"), (999, "999ms"), (1000, "1s"), (8640, "8.64s"), (60_000, "1m0s"), (361_500, "6m1.5s")],
)
def test_duration(milliseconds: int, text: str) -> None:
    """Durations are written as OpenAI writes them."""
    assert text == duration(milliseconds)


def test_pace_is_drawn_from_the_seed_around_its_median() -> None:
    """The same seed draws the same times, another one others, and their median is the one that is set."""
    latency = Latency(first_token_s=0.1, between_tokens_s=0.01, sigma=0.5)
    paces = [Pace(latency, seed=seed) for seed in (1, 1, 2)]
    drawn = [[pace.first_token_s(call) for call in range(2000)] for pace in paces]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert statistics.median(drawn[0]) == pytest.approx(0.1, rel=0.1)
    assert len(set(drawn[0])) > 1500


def test_whole_time_is_the_sum_of_the_tokens() -> None:
    """A whole answer takes as long as its stream would."""
    pace = Pace(Latency(), seed=0)
    streamed = pace.first_token_s(5) + sum(pace.between_tokens_s(5, token) for token in range(1, 40))
    assert streamed == pytest.approx(pace.whole_s(5, 40))
    assert Pace(Latency(scale=0), seed=0).whole_s(5, 40) == 0


def test_names_of_upstreams() -> None:
    """Ports get the names that faults can address, however many there are."""
    expected = ["primary", "secondary", "tertiary", "quaternary", "upstream-5", "upstream-6"]
    assert expected == [upstream.name for upstream in upstreams_on((1, 2, 3, 4, 5, 6))]

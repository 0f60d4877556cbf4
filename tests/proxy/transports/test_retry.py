"""The budget of retries and the pause before one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import Deployment, Upstream
from proxy.runtime import Candidate
from proxy.transports.attempt import AttemptFailed
from proxy.transports.retry import Rests, RetryBudget, pause_s
from tests.proxy.fakes import Clock

SETTINGS = ProxySettings(retry_backoff_s=0.1, retry_after_s_max=5.0)


def test_the_retry_budget_is_a_share_of_calls_with_a_floor() -> None:
    """Of 100 calls in ten seconds, 20 may be retries; a quiet proxy may still make its few, and time gives them back."""
    clock = Clock()
    budget = RetryBudget(ratio=0.2, min_per_s=0.1, monotonic=clock)
    assert [True, False] == [budget.take(), budget.take()]
    for _ in range(100):
        budget.count_call()
    assert 19 == sum(budget.take() for _ in range(50))
    clock.now += 11
    assert [True, False] == [budget.take(), budget.take()]


@settings(max_examples=80, deadline=None)
@given(
    events=st.lists(st.one_of(st.just("call"), st.just("retry"), st.floats(0.0, 15.0)), max_size=200),
    ratio=st.floats(0.0, 1.0),
    floor=st.floats(0.0, 2.0),
)
def test_the_budget_is_never_exceeded(events: list[str | float], ratio: float, floor: float) -> None:
    """In any window that it looks at, whatever the order of calls, retries and pauses: at most the ratio, or the floor."""
    clock = Clock()
    budget = RetryBudget(ratio=ratio, min_per_s=floor, monotonic=clock)
    calls: list[int] = []
    taken: list[int] = []
    for one in events:
        if isinstance(one, float):
            clock.now += one
        elif one == "call":
            budget.count_call()
            calls.append(int(clock.now))
        elif budget.take():
            taken.append(int(clock.now))
            since = int(clock.now) - 9
            allowed = max(ratio * sum(moment >= since for moment in calls), floor * 10)
            assert sum(moment >= since for moment in taken) <= allowed + 1e-9


def test_who_asked_for_rest_is_asked_last_for_as_long_as_it_asked() -> None:
    """In the order of the others; never longer than the bound, and not at all when everybody rests."""
    clock = Clock()
    rests = Rests(rest_s_max=60.0, monotonic=clock)
    upstream = Upstream(id="u", dialect="openai", base_url="http://localhost/v1")
    all_three = tuple(Candidate(Deployment(id=name, upstream="u", model="m"), upstream, None) for name in "abc")

    def order() -> str:
        return "".join(item.deployment.id for item in rests.last(all_three))

    rests.note("a", 10.0)
    rests.note("b", 3_600.0)
    assert "cab" == order()
    rests.note("c", 5.0)
    assert "abc" == order()
    clock.now += 11
    assert ("acb", 1) == (order(), len(rests))
    clock.now += 50
    assert ("abc", 0) == (order(), len(rests))


def failed(retry_after_s: float = 0.0) -> AttemptFailed:
    """A try that failed, and what its upstream asked for."""
    return AttemptFailed(AttemptError.STATUS_429, "no", retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("asked", "tries", "draw", "expected"),
    [
        ((0.0,), 0, 1.0, 0.1),
        ((0.0,), 3, 1.0, 0.8),
        ((0.0,), 3, 0.5, 0.4),  # half of it is drawn
        ((0.0,), 50, 1.0, 6.4),  # it stops doubling
        ((2.0,), 0, 1.0, 2.0),
        ((2.0, 3.0), 0, 1.0, 2.0),  # whoever is free first
        ((2.0, 0.0), 0, 1.0, 0.1),  # one of them asked for nothing
        ((5.1,), 0, 1.0, None),
        ((), 0, 1.0, 0.1),
    ],
)
def test_the_pause_is_what_was_asked_for_or_a_growing_one(
    asked: tuple[float, ...], tries: int, draw: float, expected: float | None
) -> None:
    """`retry-after` is kept up to the settings' bound; otherwise the pause doubles."""
    found = pause_s([failed(value) for value in asked], SETTINGS, tries=tries, draw=lambda _low, _high: draw)
    assert expected == (None if found is None else pytest.approx(found))

"""The breaker's table of states: what opens it, what probes it, what closes it."""

from __future__ import annotations

import pytest

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import BreakerPolicy
from proxy.metrics import ProxyMetrics
from proxy.transports.breaker import Breaker, BreakerTransport
from proxy.transports.http import HttpTransport
from tests.proxy.fakes import Clock

POLICY = BreakerPolicy(
    window_s=20.0, requests_min=10, error_ratio=0.5, slow_s=30.0, slow_ratio=0.8, open_s=5.0, probes=2,
    failures_in_row=100.0,
)  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    """Time as the test wants it."""
    return Clock()


def breaker(clock: Clock) -> Breaker:
    """A closed breaker."""
    return Breaker("d", POLICY, lambda *_: None, clock, clock.us)


def report(target: Breaker, *errors: AttemptError, latency_s: float = 0.1, probe: bool = False) -> None:
    """Reports one try for each error."""
    for error in errors:
        target.report(error, latency_s=latency_s, probe=probe)


@pytest.mark.parametrize(
    ("state", "good", "bad", "error", "latency_s"),
    [
        ("closed", 0, 9, AttemptError.STATUS_5XX, 0.1),  # too few to judge
        ("open", 0, 10, AttemptError.STATUS_5XX, 0.1),
        ("open", 5, 5, AttemptError.STATUS_5XX, 0.1),
        ("closed", 5, 9, AttemptError.STATUS_429, 0.1),  # each counts half
        ("open", 0, 10, AttemptError.STATUS_429, 0.1),
        ("open", 6, 4, AttemptError.FIRST_BYTE_TIMEOUT, 0.1),  # each counts double
        ("closed", 8, 2, AttemptError.FIRST_BYTE_TIMEOUT, 0.1),
        ("closed", 6, 5, AttemptError.STATUS_5XX, 0.1),
        ("open", 0, 10, AttemptError.AUTH, 0.1),
        ("open", 0, 10, AttemptError.TRUNCATED, 0.1),
        ("closed", 0, 50, AttemptError.REJECTED, 0.1),  # the client's own fault
        ("closed", 0, 50, AttemptError.CANCELLED, 0.1),
        ("closed", 0, 50, AttemptError.DEADLINE, 0.1),
        ("open", 2, 8, AttemptError.NONE, 30.0),  # slow
        ("closed", 3, 7, AttemptError.NONE, 30.0),
        ("open", 0, 10, AttemptError.DEADLINE, 31.0),  # slow, whoever set the deadline
    ],
)
def test_when_it_opens(clock: Clock, state: str, good: int, bad: int, error: AttemptError, latency_s: float) -> None:
    """Error ratio and slow ratio over a minimum of calls; what says nothing about the deployment does not count."""
    target = breaker(clock)
    report(target, *[AttemptError.NONE] * good)
    report(target, *[error] * bad, latency_s=latency_s)
    assert state == target.state


def test_errors_outside_the_window_are_forgotten(clock: Clock) -> None:
    """Nine failures, a pause longer than the window, one more: still closed."""
    target = breaker(clock)
    report(target, *[AttemptError.CONNECT] * 9)
    clock.now += 21
    report(target, AttemptError.CONNECT)
    assert ("closed", 1) == (target.state, target.status().calls)


def opened(clock: Clock) -> Breaker:
    """A breaker that has just opened."""
    target = breaker(clock)
    report(target, *[AttemptError.STATUS_5XX] * 10)
    return target


def test_an_open_one_says_why_and_how_long(clock: Clock) -> None:
    """Reason, time and ratio are there for operators."""
    target = opened(clock)
    clock.now += 2
    status = target.status()
    assert ("open", "10 of 10 calls failed within 20 s", 1.0) == (status.state, status.reason, status.error_ratio)
    assert 3.0 == pytest.approx(target.retry_after_s)
    assert not target.admit_probe()


def test_probes_are_few_and_close_it_when_they_succeed(clock: Clock) -> None:
    """Two places for probes; two successes close it with an empty window."""
    target = opened(clock)
    clock.now += 5
    assert [True, True, False] == [target.admit_probe() for _ in range(3)]
    assert "half_open" == target.state
    report(target, AttemptError.NONE, probe=True)
    assert "half_open" == target.state
    report(target, AttemptError.NONE, probe=True)
    assert ("closed", 0) == (target.state, target.status().calls)


@pytest.mark.parametrize(("error", "latency_s"), [(AttemptError.CONNECT, 0.1), (AttemptError.NONE, 40.0)])
def test_a_failed_or_slow_probe_opens_it_again(clock: Clock, error: AttemptError, latency_s: float) -> None:
    """The full time must pass again."""
    target = opened(clock)
    clock.now += 5
    target.admit_probe()
    report(target, error, latency_s=latency_s, probe=True)
    assert ("open", 5.0) == (target.state, target.retry_after_s)


def test_a_cancelled_probe_gives_its_place_back(clock: Clock) -> None:
    """A client that leaves decides nothing."""
    target = opened(clock)
    clock.now += 5
    assert [True, True, False] == [target.admit_probe() for _ in range(3)]
    report(target, AttemptError.CANCELLED, probe=True)
    assert "half_open" == target.state
    assert target.admit_probe()


def test_late_reports_of_calls_from_before_change_nothing(clock: Clock) -> None:
    """Only probes decide about a half-open breaker."""
    target = opened(clock)
    clock.now += 5
    target.admit_probe()
    report(target, *[AttemptError.STATUS_5XX] * 20)
    assert "half_open" == target.state


def test_a_slow_answer_ends_a_row_of_failures(clock: Clock) -> None:
    """Where whole answers take long, failures with answers between them are no row."""
    policy = BreakerPolicy(failures_in_row=3.0, requests_min=1_000, slow_s=10.0)
    target = Breaker("d", policy, lambda *_: None, clock, clock.us)
    for _ in range(5):
        report(target, AttemptError.STATUS_5XX)
        report(target, AttemptError.NONE, latency_s=60.0)
    assert "closed" == target.state
    report(target, *[AttemptError.STATUS_5XX] * 3)
    assert "open" == target.state


def test_a_model_that_thinks_for_minutes_is_not_sick(clock: Clock) -> None:
    """Unless the operator says what is slow: an answer within the time that upstreams have by default."""
    target = Breaker("d", BreakerPolicy(), lambda *_: None, clock, clock.us)
    report(target, *[AttemptError.NONE] * 50, latency_s=200.0)
    assert "closed" == target.state


def test_what_ends_after_its_deployment_is_gone_leaves_no_trace(clock: Clock) -> None:
    """A deployment that comes back is as healthy as a new one, whatever the last calls on the old one came to."""
    settings, metrics = ProxySettings(), ProxyMetrics("0")
    transport = BreakerTransport(HttpTransport(settings, metrics), metrics, monotonic=clock, now_us=clock.us)
    policy = BreakerPolicy(failures_in_row=2.0)
    transport.configure(policy, ["d"])
    running = transport.breaker_of("d")
    transport.configure(policy, [])
    report(running, *[AttemptError.STATUS_5XX] * 5)
    assert "open" == running.state
    assert (set(), ()) == (transport.sick, transport.statuses())
    transport.configure(policy, ["d"])
    assert set() == transport.sick

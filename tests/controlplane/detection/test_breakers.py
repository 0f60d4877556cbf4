"""What the workers' breakers say together."""

from __future__ import annotations

from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.detection.breakers import breaker_signals
from controlplane.detection.signals import Anomaly, Cleared

NOW_US = 1_800_000_000 * 1_000_000
UPSTREAMS = {"a/m": "a", "b/m": "b"}


def _status(proxy: str, *breakers: BreakerStatus, age_s: float = 1.0) -> ProxyStatus:
    return ProxyStatus(proxy_id=proxy, at_us=NOW_US - round(age_s * 1e6), snapshot_version=1, breakers=breakers)


def _breaker(state: str, deployment: str = "a/m", since_s: float = 30.0, reason: str = "") -> BreakerStatus:
    return BreakerStatus(
        deployment=deployment,
        state=state,
        since_us=NOW_US - round(since_s * 1e6),
        reason=reason,
        error_ratio=0.8,
        calls=20,
    )


def test_one_open_breaker_is_an_anomaly_dated_from_the_first() -> None:
    """The workers' views are one signal, which alone is never certain."""
    signals = breaker_signals(
        [
            _status("1", _breaker("open", reason="errors")),
            _status("2", _breaker("half_open", since_s=50.0)),
            _status("3", _breaker("closed")),
        ],
        UPSTREAMS,
        now_us=NOW_US,
    )
    (signal,) = signals
    assert isinstance(signal, Anomaly)
    assert ("breaker_open/a/m", "breaker", NOW_US - 50_000_000, 0.8) == (
        signal.signal_id,
        signal.source,
        signal.started_us,
        signal.value,
    )
    assert signal.score < 0.95
    assert ("a/m: breaker open on 2 of 3 workers", "errors") == signal.evidence


def test_closed_everywhere_is_clear() -> None:
    """A worker without a breaker for the deployment has no say."""
    signals = breaker_signals([_status("1", _breaker("closed")), _status("2")], UPSTREAMS, now_us=NOW_US)
    assert [Cleared] == [type(signal) for signal in signals]


def test_silence_is_no_signal() -> None:
    """No breaker, a worker not heard of, a deployment that is not configured any more: nothing is said."""
    assert () == breaker_signals([], UPSTREAMS, now_us=NOW_US)
    assert () == breaker_signals([_status("1")], UPSTREAMS, now_us=NOW_US)
    assert () == breaker_signals([_status("1", _breaker("open"), age_s=11.0)], UPSTREAMS, now_us=NOW_US)
    assert () == breaker_signals([_status("1", _breaker("open", deployment="gone/m"))], UPSTREAMS, now_us=NOW_US)


def test_deployments_are_separate_and_sorted() -> None:
    """Each deployment has its own signal."""
    signals = breaker_signals(
        [_status("1", _breaker("open", "b/m"), _breaker("closed", "a/m"))], UPSTREAMS, now_us=NOW_US
    )
    assert [("a/m", Cleared), ("b/m", Anomaly)] == [(signal.deployment, type(signal)) for signal in signals]

"""A second, independent signal: breakers that opened on the proxies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.detection.signals import BREAKER_OPEN, Anomaly, Cleared, Signal, signal_id

CLOSED = "closed"
SCORE_MAX = 0.9  # below any bound for a single witness: a breaker sees seconds, and only its own worker's traffic


def breaker_signals(
    statuses: Sequence[ProxyStatus], upstreams: Mapping[str, str], *, now_us: int, expiry_s: float = 10.0
) -> tuple[Signal, ...]:
    """What the live workers' breakers say about each deployment, sorted by deployment.

    Raised while any is not closed (a half-open one has proven nothing yet); cleared when at least one live worker reports a closed
    breaker and none reports another. A worker that has no breaker for a deployment says nothing about it.
    statuses: the last of each worker; those older than `expiry_s` are left out. upstreams: deployment to upstream; others are left out.
    """
    seen: dict[str, list[BreakerStatus]] = {}
    for status in statuses:
        if now_us - status.at_us <= expiry_s * US_PER_S:
            for breaker in status.breakers:
                if breaker.deployment in upstreams:
                    seen.setdefault(breaker.deployment, []).append(breaker)
    return tuple(_signal(breakers, upstreams[deployment], now_us) for deployment, breakers in sorted(seen.items()))


def _signal(breakers: list[BreakerStatus], upstream: str, now_us: int) -> Signal:
    """One deployment's breakers, at least one, as one signal."""
    deployment = breakers[0].deployment
    not_closed = [breaker for breaker in breakers if breaker.state != CLOSED]
    if not not_closed:
        return Cleared(
            signal_id=signal_id(BREAKER_OPEN, deployment),
            kind=BREAKER_OPEN,
            source="breaker",
            at_us=now_us,
            deployment=deployment,
            upstream=upstream,
        )
    worst = max(breaker.error_ratio for breaker in not_closed)
    reasons = sorted({breaker.reason for breaker in not_closed if breaker.reason})
    return Anomaly(
        signal_id=signal_id(BREAKER_OPEN, deployment),
        kind=BREAKER_OPEN,
        source="breaker",
        severity="high",
        score=SCORE_MAX,
        started_us=min(breaker.since_us for breaker in not_closed),
        at_us=now_us,
        deployment=deployment,
        upstream=upstream,
        value=worst,
        expected=0.0,
        evidence=(f"{deployment}: breaker open on {len(not_closed)} of {len(breakers)} workers", *reasons[:3]),
    )

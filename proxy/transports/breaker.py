"""Skips deployments that are sick: a breaker for each, with pybreaker as the state machine (decision 0007)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import pybreaker

from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import BreakerPolicy, BreakerStatus
from proxy.call import Reply
from proxy.metrics import ProxyMetrics
from proxy.transports.attempt import Attempt, AttemptTransport

_BUCKETS = 10
_NAMES = {
    pybreaker.STATE_CLOSED: "closed",
    pybreaker.STATE_OPEN: "open",
    pybreaker.STATE_HALF_OPEN: "half_open",
}
# The client's own doing, or nobody's: says nothing about the deployment.
_NEUTRAL = frozenset((AttemptError.CANCELLED, AttemptError.DEADLINE))
_HEALTHY = frozenset((AttemptError.NONE, AttemptError.REJECTED))


class BreakerOpen(Exception):
    """The deployment may not be tried now; carries how long until it may be probed."""

    def __init__(self, deployment: str, retry_after_s: float) -> None:
        super().__init__(f"the breaker of {deployment} is open")
        self.retry_after_s = retry_after_s


class BreakerTransport:
    """Lets tries through to healthy deployments and probes the others; breakers are keyed by deployment and outlive snapshots."""

    def __init__(
        self,
        inner: AttemptTransport,
        metrics: ProxyMetrics,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._inner = inner
        self._metrics = metrics
        self._monotonic = monotonic
        self._now_us = now_us
        self._policy = BreakerPolicy()
        self._breakers: dict[str, Breaker] = {}

    async def send(self, attempt: Attempt) -> Reply:
        """The inner transport's reply. Raises BreakerOpen without having tried anything."""
        deployment = attempt.candidate.deployment.id
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = self._breakers[deployment] = Breaker(
                deployment, self._policy, self._metrics.breaker_changed, self._monotonic, self._now_us
            )
        if breaker.state != "closed":
            if not breaker.admit_probe():
                raise BreakerOpen(deployment, breaker.retry_after_s)
            attempt.probe = True
        attempt.judge = breaker
        return await self._inner.send(attempt)

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()

    def configure(self, policy: BreakerPolicy, deployments: Collection[str]) -> None:
        """Takes a new snapshot's policy, and forgets the breakers of deployments that it no longer has."""
        self._policy = policy
        for gone in self._breakers.keys() - set(deployments):
            del self._breakers[gone]
            self._metrics.forget_breaker(gone)
        for breaker in self._breakers.values():
            breaker.policy = policy

    def probe_due(self, deployment: str) -> bool:
        """Whether a sick deployment wants a probe now."""
        breaker = self._breakers.get(deployment)
        return breaker is not None and breaker.state != "closed" and breaker.retry_after_s <= 0.0

    def statuses(self) -> tuple[BreakerStatus, ...]:
        """Every breaker as operators see it."""
        return tuple(breaker.status() for breaker in self._breakers.values())


class Breaker:
    """One deployment's breaker: counts in a sliding window, opens, waits, probes, closes."""

    __slots__ = (
        "_bucket", "_buckets", "_machine", "_monotonic", "_now_us", "_on_change", "_opened_at", "_probes_inflight",
        "_probes_passed", "_reason", "_since_us", "deployment", "policy", "state",
    )  # fmt: skip

    def __init__(
        self,
        deployment: str,
        policy: BreakerPolicy,
        on_change: Callable[[str, str], None],
        monotonic: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self.deployment = deployment
        self.policy = policy
        self.state = "closed"
        self._machine = pybreaker.CircuitBreaker(name=deployment)
        self._on_change = on_change
        self._monotonic = monotonic
        self._now_us = now_us
        self._since_us = now_us()
        self._reason = ""
        self._opened_at = 0.0
        self._probes_inflight = 0
        self._probes_passed = 0
        self._bucket = -1
        self._buckets = [[0, 0, 0] for _ in range(_BUCKETS)]  # calls, errors, slow calls
        on_change(deployment, self.state)

    @property
    def retry_after_s(self) -> float:
        """Seconds until a probe may go; 0.0 when one may go now."""
        if self.state == "closed":
            return 0.0
        if self.state == "open":
            return max(0.0, self._opened_at + self.policy.open_s - self._monotonic())
        return 0.0 if self._probes_inflight < self.policy.probes else 1.0

    def admit_probe(self) -> bool:
        """Takes one of the few places for probes, if it is time and one is free; `report` gives it back."""
        if self.retry_after_s > 0.0:
            return False
        if self.state == "open":
            self._machine.half_open()
            self._probes_inflight = self._probes_passed = 0
            self._changed(f"probing after: {self._reason}")
        self._probes_inflight += 1
        return True

    def report(self, error: AttemptError, *, latency_s: float, probe: bool) -> None:
        """Counts one finished try; latency_s: to the first content of a stream, to the end of a complete reply."""
        slow = latency_s >= self.policy.slow_s
        failed = error not in _HEALTHY and error not in _NEUTRAL
        if probe:
            self._probe_ended(error, failed=failed or slow)
        elif self.state == "closed" and (slow or error not in _NEUTRAL):
            bucket = self._current_bucket()
            bucket[0] += 1
            bucket[1] += failed
            bucket[2] += slow
            if failed or slow:
                self._judge()

    def status(self) -> BreakerStatus:
        """The breaker as operators see it."""
        calls, errors, _ = self._totals()
        return BreakerStatus(
            deployment=self.deployment,
            state=self.state,
            since_us=self._since_us,
            reason=self._reason if self.state != "closed" else "",
            error_ratio=errors / calls if calls else 0.0,
            calls=calls,
        )

    def _probe_ended(self, error: AttemptError, *, failed: bool) -> None:
        if self.state != "half_open":
            return
        self._probes_inflight = max(0, self._probes_inflight - 1)
        if error in _NEUTRAL:
            return
        if failed:
            self._open(f"probe failed: {error.value or 'slow'}")
            return
        self._probes_passed += 1
        if self._probes_passed >= self.policy.probes:
            self._machine.close()
            self._buckets = [[0, 0, 0] for _ in range(_BUCKETS)]
            self._changed("")

    def _judge(self) -> None:
        """Opens if the window says so; looked at only after a bad call."""
        policy = self.policy
        calls, errors, slow = self._totals()
        if calls < policy.requests_min:
            return
        if errors / calls >= policy.error_ratio:
            self._open(f"{errors} of {calls} calls failed within {policy.window_s:g} s")
        elif slow / calls >= policy.slow_ratio:
            self._open(f"{slow} of {calls} calls took {policy.slow_s:g} s or more within {policy.window_s:g} s")

    def _open(self, reason: str) -> None:
        self._opened_at = self._monotonic()
        self._machine.open()
        self._changed(reason)

    def _changed(self, reason: str) -> None:
        self.state = _NAMES[self._machine.current_state]
        self._reason = reason
        self._since_us = self._now_us()
        self._on_change(self.deployment, self.state)

    def _current_bucket(self) -> list[int]:
        """The bucket of now; those that time has passed over are emptied."""
        now = int(self._monotonic() * _BUCKETS / self.policy.window_s)
        if now != self._bucket:
            for passed in range(max(self._bucket + 1, now - _BUCKETS + 1), now + 1):
                self._buckets[passed % _BUCKETS] = [0, 0, 0]
            self._bucket = now
        return self._buckets[now % _BUCKETS]

    def _totals(self) -> tuple[int, int, int]:
        self._current_bucket()
        return (
            sum(bucket[0] for bucket in self._buckets),
            sum(bucket[1] for bucket in self._buckets),
            sum(bucket[2] for bucket in self._buckets),
        )

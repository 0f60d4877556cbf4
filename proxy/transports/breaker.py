"""Skips deployments that are sick: a breaker for each, with pybreaker as the state machine (decision 0007)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine

import pybreaker

from controlplane.contract.records import AttemptError
from controlplane.contract.routing import RETRYABLE, AllOpen
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
_SUSPECT_S = 30.0  # how long another worker's word makes a breaker sceptical; repeated while theirs is open


class BreakerOpen(Exception):
    """The deployment may not be tried now; carries why, and how long until it may be probed."""

    def __init__(self, deployment: str, retry_after_s: float, reason: str = "") -> None:
        super().__init__(f"the breaker of {deployment} is open")
        self.retry_after_s = retry_after_s
        self.reason = reason


class BreakerTransport:
    """Lets tries through to healthy deployments and probes the others; breakers are keyed by deployment and outlive snapshots.

    sick: deployments whose breaker is not closed. on_change: told of each change, so that others can be told.
    """

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
        self._known: frozenset[str] = frozenset()
        self.sick: set[str] = set()
        self.on_change: Callable[[BreakerStatus], None] | None = None

    def send(self, attempt: Attempt) -> Coroutine[object, object, Reply]:
        """The inner transport's reply. Raises BreakerOpen, when it is awaited, without having tried anything."""
        deployment = attempt.candidate.deployment.id
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = self.breaker_of(deployment)
        if breaker.state != "closed" and not attempt.forced:
            return self._probe(attempt, breaker)
        attempt.judge = breaker
        return self._inner.send(attempt)

    async def _probe(self, attempt: Attempt, breaker: Breaker) -> Reply:
        if not breaker.admit_probe():
            raise BreakerOpen(breaker.deployment, breaker.retry_after_s, breaker.reason)
        attempt.probe = True
        attempt.judge = breaker
        return await self._inner.send(attempt)

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()

    def configure(self, policy: BreakerPolicy, deployments: Collection[str]) -> None:
        """Takes a new snapshot's policy, and forgets the breakers of deployments that it no longer has."""
        self._policy = policy
        self._known = frozenset(deployments)
        for gone in self._breakers.keys() - self._known:
            self._breakers.pop(gone).retire()
            self.sick.discard(gone)
            self._metrics.forget_breaker(gone)
        for breaker in self._breakers.values():
            breaker.apply(policy)

    @property
    def tries_when_all_open(self) -> bool:
        """Whether the operator wants calls to be tried that have only open breakers."""
        return self._policy.all_open is AllOpen.TRY

    def probe_due(self, deployment: str) -> bool:
        """Whether a sick deployment wants a probe now."""
        breaker = self._breakers.get(deployment)
        return breaker is not None and breaker.state != "closed" and breaker.retry_after_s <= 0.0

    def hint(self, deployment: str, *, healthy: bool, reason: str) -> None:
        """Another worker's word about a deployment: makes ours sceptical or hopeful, and decides nothing."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            if healthy or deployment not in self._known:
                return
            breaker = self.breaker_of(deployment)
        breaker.hint(healthy=healthy, reason=reason)

    def statuses(self) -> tuple[BreakerStatus, ...]:
        """Every breaker as operators see it."""
        return tuple(breaker.status() for breaker in self._breakers.values())

    def breaker_of(self, deployment: str) -> Breaker:
        """A deployment's breaker; made at its first call."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = Breaker(deployment, self._policy, self._changed, self._monotonic, self._now_us)
            self._breakers[deployment] = breaker
        return breaker

    def _changed(self, breaker: Breaker) -> None:
        self._metrics.breaker_changed(breaker.deployment, breaker.state, breaker.cause)
        (self.sick.discard if breaker.state == "closed" else self.sick.add)(breaker.deployment)
        if self.on_change is not None:
            self.on_change(breaker.status())


class Breaker:
    """One deployment's breaker: counts in a sliding window, opens, waits, probes, closes.

    Failures count by the weight of their class, in the window's ratio as in the streak of failures without a success between them.
    cause: what opened it, one word; reason: the same as a sentence.
    """

    __slots__ = (
        "_bucket", "_buckets", "_machine", "_monotonic", "_now_us", "_on_change", "_opened_at", "_probes_inflight",
        "_probes_passed", "_since_us", "_streak", "_suspect_until", "_suspicion", "_weights", "cause", "deployment", "policy",
        "reason", "state",
    )  # fmt: skip

    def __init__(
        self,
        deployment: str,
        policy: BreakerPolicy,
        on_change: Callable[[Breaker], None],
        monotonic: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self.deployment = deployment
        self.state = "closed"
        self.reason = self.cause = ""
        self._machine = pybreaker.CircuitBreaker(name=deployment)
        self._on_change = on_change
        self._monotonic = monotonic
        self._now_us = now_us
        self._since_us = now_us()
        self._opened_at = 0.0
        self._probes_inflight = 0
        self._probes_passed = 0
        self._streak = 0.0
        self._suspect_until = 0.0
        self._suspicion = ""
        self._bucket = -1
        self._buckets = [[0.0, 0.0, 0.0] for _ in range(_BUCKETS)]  # calls, errors by weight, slow calls
        self.apply(policy)
        on_change(self)

    def apply(self, policy: BreakerPolicy) -> None:
        """Takes a newer policy; what was counted stays."""
        self.policy = policy
        self._weights: dict[AttemptError, float] = {error: getattr(policy.weights, error.value) for error in RETRYABLE}

    def retire(self) -> None:
        """Its deployment is gone: what calls that still run there report is told to nobody, also when the deployment comes back."""
        self._on_change = lambda _: None

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
            self._changed(f"probing after: {self.reason}", self.cause)
        self._probes_inflight += 1
        return True

    def hint(self, *, healthy: bool, reason: str) -> None:
        """Another worker's breaker has closed or opened.

        Theirs is open: the first failure that we see ourselves opens ours. Theirs has closed: ours is probed with the next call.
        """
        if not healthy:
            self._suspect_until = self._monotonic() + max(_SUSPECT_S, self.policy.open_s)
            self._suspicion = reason
            return
        self._suspect_until = 0.0
        if self.state == "open":
            self._opened_at = self._monotonic() - self.policy.open_s

    def report(self, error: AttemptError, *, latency_s: float, probe: bool) -> None:
        """Counts one finished try; latency_s: to the first content of a stream, to the end of a complete reply."""
        slow = latency_s >= self.policy.slow_s
        if error is AttemptError.NONE and not slow and not probe and self.state == "closed":  # nearly all
            self._current_bucket()[0] += 1
            self._streak = 0.0
            return
        failed = error not in _HEALTHY and error not in _NEUTRAL
        if probe:
            self._probe_ended(error, failed=failed or slow)
        elif self.state == "closed" and (slow or error not in _NEUTRAL):
            weight = self._weights.get(error, 0.0) if failed else 0.0
            bucket = self._current_bucket()
            bucket[0] += 1
            bucket[1] += weight
            bucket[2] += slow
            if error in _HEALTHY:
                self._streak = 0.0
            if weight or slow:
                self._streak += weight
                self._judge(error, weight)

    def status(self) -> BreakerStatus:
        """The breaker as operators see it."""
        calls, errors, _ = self._totals()
        return BreakerStatus(
            deployment=self.deployment,
            state=self.state,
            since_us=self._since_us,
            reason=self.reason if self.state != "closed" else "",
            error_ratio=min(1.0, errors / calls) if calls else 0.0,
            calls=int(calls),
        )

    def _probe_ended(self, error: AttemptError, *, failed: bool) -> None:
        if self.state != "half_open":
            return
        self._probes_inflight = max(0, self._probes_inflight - 1)
        if error in _NEUTRAL:
            return
        if failed:
            self._open(f"probe failed: {error.value or 'slow'}", "probe")
            return
        self._probes_passed += 1
        if self._probes_passed >= self.policy.probes:
            self._machine.close()
            self._buckets = [[0.0, 0.0, 0.0] for _ in range(_BUCKETS)]
            self._streak = self._suspect_until = 0.0
            self._changed("", "")

    def _judge(self, error: AttemptError, weight: float) -> None:
        """Opens if the streak, the window or another worker's word says so; looked at only after a bad call."""
        policy = self.policy
        if weight and self._monotonic() < self._suspect_until:
            self._open(f"{error.value} while another worker's breaker is open: {self._suspicion}", "hint")
            return
        if weight and self._streak >= policy.failures_in_row:
            self._open(f"calls failed in a row, the last: {error.value}", "streak")
            return
        calls, errors, slow = self._totals()
        if calls < policy.requests_min:
            return
        if errors / calls >= policy.error_ratio:
            counted = "" if errors == int(errors) and errors <= calls else ", by weight,"
            self._open(f"{errors:g} of {calls:g} calls failed{counted} within {policy.window_s:g} s", "errors")
        elif slow / calls >= policy.slow_ratio:
            self._open(
                f"{slow:g} of {calls:g} calls took {policy.slow_s:g} s or more within {policy.window_s:g} s", "slow"
            )

    def _open(self, reason: str, cause: str) -> None:
        self._opened_at = self._monotonic()
        self._streak = 0.0
        self._machine.open()
        self._changed(reason, cause)

    def _changed(self, reason: str, cause: str) -> None:
        self.state = _NAMES[self._machine.current_state]
        self.reason = reason
        self.cause = cause
        self._since_us = self._now_us()
        self._on_change(self)

    def _current_bucket(self) -> list[float]:
        """The bucket of now; those that time has passed over are emptied."""
        now = int(self._monotonic() * _BUCKETS / self.policy.window_s)
        if now != self._bucket:
            for passed in range(max(self._bucket + 1, now - _BUCKETS + 1), now + 1):
                self._buckets[passed % _BUCKETS] = [0.0, 0.0, 0.0]
            self._bucket = now
        return self._buckets[now % _BUCKETS]

    def _totals(self) -> tuple[float, float, float]:
        self._current_bucket()
        return (
            sum(bucket[0] for bucket in self._buckets),
            sum(bucket[1] for bucket in self._buckets),
            sum(bucket[2] for bucket in self._buckets),
        )

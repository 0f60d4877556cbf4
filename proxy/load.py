"""How busy and how fast each deployment is, as this worker sees it: calls in flight, peak latency, a sketch of latencies, a limit.

Kept only for deployments that some route needs it for (`Candidate.measured`); keyed by deployment, so it survives a new snapshot.
Latency is the time to the first content of a stream and to the end of a complete answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Concurrency

_PEAK_DECAY_S = 10.0  # after so long without a call, a peak counts a third
_SKETCH_MIN_S = 0.001
_SKETCH_BASE = 1.1  # a quantile is right within a tenth
_SKETCH_BUCKETS = 128  # up to 180 s
_SKETCH_KEPT = 2_000.0  # observations; beyond it all counts are halved, so that the past fades
_LIMIT_FIRST = 20
_TOLERANCE = 2.0  # how much slower than usual is no sign of a queue; answers differ in length
_SHORT = 0.05  # of the present latency, for each new answer
_FOLLOW = 0.02  # of the usual one, where no queue of ours is in the way
_LOOK_EVERY_S = 60.0
_LEARNED_FROM = 30  # answers
_BETWEEN_LOOKS = 9.0  # times as long as the last one took, at least: where answers take minutes, so does a look
_SMOOTHING = 0.2
_BACKED_OFF = 0.8
_BACK_OFF_EVERY_S = 1.0  # one crowd of failures lowers the limit once
# What says that the deployment has more than it can do; other failures say nothing about that.
_OVERLOADED = frozenset(
    (AttemptError.STATUS_429, AttemptError.STATUS_5XX, AttemptError.CONNECT, AttemptError.FIRST_BYTE_TIMEOUT)
)
_SILENT = frozenset((AttemptError.CANCELLED, AttemptError.DEADLINE, AttemptError.REJECTED))  # no word about speed


class Sketch:
    """Latencies in buckets of equal ratio: quantiles and what is left beyond one, in constant space; the past fades."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0.0] * _SKETCH_BUCKETS
        self.total = 0.0

    def observe(self, latency_s: float) -> None:
        """Counts one."""
        self._counts[_bucket_of(latency_s)] += 1.0
        self.total += 1.0
        if self.total >= _SKETCH_KEPT:
            self._counts = [count / 2 for count in self._counts]
            self.total /= 2

    def quantile(self, q: float) -> float:
        """The latency below which a share q of the observations lies, in seconds; 0.0 without any."""
        wanted, seen = q * self.total, 0.0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return _upper_s(index)
        return 0.0

    def left_s(self, waited_s: float) -> float:
        """How much longer those took that were not there after waited_s, on average; waited_s again when none ever took so long."""
        counts = self._counts
        first = _bucket_of(waited_s) + 1
        later = sum(counts[first:])
        if not later:
            return waited_s
        return sum(counts[n] * _upper_s(n) for n in range(first, _SKETCH_BUCKETS)) / later - waited_s


class AdaptiveLimit:
    """How many calls at once are good for a deployment, found by its latency and errors, between the bounds of its policy.

    Each good answer moves the limit by the gradient (twice the usual latency over the present one, at most 1) plus room to grow
    (half the square root of the limit); overload multiplies it down at once. It does not grow while it is not used. What is usual is
    learned under a quarter of the load, once a minute and for a tenth of the time at most, since under full load a queue of our own making
    would pass for usual. Where a deployment can do C calls at once, and more make it slower in proportion, the limit settles between C
    and 3 C.
    Source: after the gradient algorithm of Netflix's concurrency-limits.
    """

    __slots__ = (
        "_back_to", "_began_at", "_learning", "_look_at", "_lowered_at", "_short_s", "_usual_s", "policy", "value",
    )  # fmt: skip

    def __init__(self, policy: Concurrency) -> None:
        self.policy = policy
        self.value = float(policy.max if not policy.adaptive else max(policy.min, min(policy.max, _LIMIT_FIRST)))
        self._short_s = 0.0
        self._usual_s = 0.0
        self._lowered_at = -math.inf
        self._look_at = -math.inf
        self._began_at = 0.0  # the last look
        self._learning = 0  # answers until the usual latency is known anew
        self._back_to = self.value

    def apply(self, policy: Concurrency) -> None:
        """Takes a newer policy and keeps what was learned."""
        self.policy = policy
        if not policy.adaptive:
            self.value, self._back_to, self._learning = float(policy.max), float(policy.max), 0
        self.value, self._back_to = self._bounded(self.value), self._bounded(self._back_to)

    def observe(self, latency_s: float, *, inflight: int, overloaded: bool, now: float) -> None:
        """Learns from one answer; inflight: calls at once when it came, itself included."""
        if not self.policy.adaptive:
            return
        if overloaded:
            if now - self._lowered_at >= _BACK_OFF_EVERY_S:
                self._lowered_at = now
                self.value = self._bounded(self.value * _BACKED_OFF)
                self._back_to = min(self._back_to, self.value)
            return
        self._short_s = latency_s if not self._short_s else self._short_s + (latency_s - self._short_s) * _SHORT
        if self._learning:
            self._learn(now)
            return
        full = inflight * 2 >= self.value
        if not full or self._short_s < self._usual_s:
            self._usual_s += (self._short_s - self._usual_s) * (_FOLLOW if self._usual_s else 1.0)
        if not full:
            return
        if now >= self._look_at:
            self._look_at, self._began_at = now + _LOOK_EVERY_S, now
            self._learning = 2 * inflight + _LEARNED_FROM
            self._back_to = self.value
            self.value = self._bounded(self.value / 4)
            return
        gradient = max(0.5, min(1.0, _TOLERANCE * self._usual_s / max(self._short_s, 1e-9)))
        wanted = self.value * gradient + math.sqrt(self.value) / 2
        self.value = self._bounded(self.value + (wanted - self.value) * _SMOOTHING)

    def _learn(self, now: float) -> None:
        """One more answer under little load; the first ones still belong to the load before."""
        self._learning -= 1
        if self._learning == _LEARNED_FROM:
            self._short_s = 0.0
        elif not self._learning:
            self._usual_s = self._short_s
            self.value = self._bounded(self._back_to)
            self._look_at = max(self._look_at, now + _BETWEEN_LOOKS * (now - self._began_at))

    def _bounded(self, value: float) -> float:
        return min(max(value, float(self.policy.min)), float(self.policy.max))


class DeploymentLoad:
    """One deployment's load. `begin` and `finished` come in pairs, one for each try."""

    __slots__ = ("_monotonic", "_peak_s", "_seen_at", "inflight", "limit", "on_free", "output_tokens", "sketch")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._peak_s = 0.0
        self._seen_at = 0.0
        self.inflight = 0
        self.sketch = Sketch()
        self.output_tokens = 0.0  # of an answer, on average
        self.limit: AdaptiveLimit | None = None
        self.on_free: Callable[[], None] | None = None  # called when a place has become free

    @property
    def has_room(self) -> bool:
        """Whether one more call may go there now."""
        return self.limit is None or self.inflight < int(self.limit.value)

    @property
    def score(self) -> float:
        """Peak latency times what is in flight: what one more call has to expect there; 0 for one that was not tried for long."""
        idle_s = self._monotonic() - self._seen_at
        return self._peak_s * math.exp(-idle_s / _PEAK_DECAY_S) * (self.inflight + 1)

    def begin(self) -> None:
        """One more call is there."""
        self.inflight += 1

    def finished(self, error: AttemptError, *, latency_s: float, output_tokens: int) -> None:
        """One call has ended there."""
        if error not in _SILENT:
            self._learn(error, latency_s)
            if error is AttemptError.NONE:
                self.output_tokens += (output_tokens - self.output_tokens) * (0.05 if self.output_tokens else 1.0)
        self.release()

    def late(self, latency_s: float) -> None:
        """One call has had to wait at least so long, and then nobody waited for it any more."""
        self.sketch.observe(latency_s)
        self._peak_s = max(self._peak_s, latency_s)
        self._seen_at = self._monotonic()

    def release(self) -> None:
        """A call has ended there of which nothing can be learned."""
        self.inflight -= 1
        if self.on_free is not None:
            self.on_free()

    def _learn(self, error: AttemptError, latency_s: float) -> None:
        now = self._monotonic()
        good = error is AttemptError.NONE
        if good:
            self.sketch.observe(latency_s)
        else:  # a quick failure is no speed
            latency_s = max(latency_s, 2 * self._peak_s, 1.0)
        kept = math.exp(-(now - self._seen_at) / _PEAK_DECAY_S)
        faded = self._peak_s * kept
        self._peak_s = latency_s if latency_s > faded else faded + latency_s * (1 - kept)
        self._seen_at = now
        if self.limit is not None and (good or error in _OVERLOADED):
            self.limit.observe(latency_s, inflight=self.inflight, overloaded=not good, now=now)


class Loads:
    """The load of every measured deployment."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._loads: dict[str, DeploymentLoad] = {}

    def of(self, deployment: str) -> DeploymentLoad:
        """A deployment's load; made at its first call."""
        load = self._loads.get(deployment)
        if load is None:
            load = self._loads[deployment] = DeploymentLoad(self._monotonic)
        return load

    def configure(self, policies: Mapping[str, Concurrency | None]) -> None:
        """Takes a new snapshot's measured deployments with their limits, and forgets the others."""
        for gone in self._loads.keys() - policies.keys():
            if not self._loads[gone].inflight:
                del self._loads[gone]
        for deployment, policy in policies.items():
            load = self.of(deployment)
            if policy is None:
                load.limit = None
            elif load.limit is None:
                load.limit = AdaptiveLimit(policy)
            else:
                load.limit.apply(policy)
            if load.on_free is not None:
                load.on_free()

    def places(self) -> float:
        """Calls that all limited deployments may have at once."""
        return sum(load.limit.value for load in self._loads.values() if load.limit is not None)

    def places_taken(self) -> float:
        """Calls that they have."""
        return sum(load.inflight for load in self._loads.values() if load.limit is not None)


def _bucket_of(latency_s: float) -> int:
    if latency_s <= _SKETCH_MIN_S:
        return 0
    return min(_SKETCH_BUCKETS - 1, int(math.log(latency_s / _SKETCH_MIN_S, _SKETCH_BASE)) + 1)


def _upper_s(index: int) -> float:
    return float(_SKETCH_MIN_S * _SKETCH_BASE**index)

"""The sweep: every few seconds each watch's series is fetched, scored and judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np
import structlog

from controlplane.clock import US_PER_S, Clock
from controlplane.detection.metrics import SweepMetrics
from controlplane.detection.signals import Anomaly, Cleared, Signal
from controlplane.detection.watch import Watch, WatchKind
from controlplane.errors import HephaestusError
from controlplane.metrics import DetectionMetrics
from controlplane.settings import DetectionSettings
from detectors.base import Floats, Ints

_log = structlog.get_logger("detection")

Emit = Callable[[Sequence[Signal]], Awaitable[None]]


class Series(Protocol):
    """A watch's series on a regular grid, oldest first, all of shape (n,).

    t: epoch seconds of each point's start. y: NaN where there is no data. samples: observations behind each value.
    """

    @property
    def t(self) -> Ints: ...  # noqa: D102 - said above
    @property
    def y(self) -> Floats: ...  # noqa: D102
    @property
    def samples(self) -> Ints: ...  # noqa: D102


class SeriesSource(Protocol):
    """Where series come from. Blocks; called from a worker thread, one call at a time."""

    def fetch(self, watch: Watch, now_s: float) -> Series:
        """The watch's last `window_s` seconds up to now. Raises HephaestusError when it cannot be read."""
        ...


class Telemetry(Protocol):
    """Whether the store is up to date; `Freshness` is one."""

    def lag_s(self, now_us: int) -> float:
        """Age of the oldest record that is not stored."""
        ...

    def is_stale(self, now_us: int) -> bool:
        """Whether nothing may be concluded now."""
        ...


class SweepReport(msgspec.Struct, frozen=True):
    """What one sweep saw. dropped: watches left for the next sweep; failed: series that could not be read; stale: nothing was concluded."""

    signals: tuple[Signal, ...] = ()
    evaluated: int = 0
    silent: int = 0
    failed: int = 0
    dropped: int = 0
    stale: bool = False


class Sweep:
    """Judges all watches, a bounded number in a bounded time; what did not get its turn is first in the next sweep."""

    def __init__(
        self,
        *,
        source: SeriesSource,
        watches: Callable[[], Sequence[Watch]],
        telemetry: Telemetry,
        settings: DetectionSettings,
        metrics: DetectionMetrics,
        sweep_metrics: SweepMetrics,
        clock: Clock,
    ) -> None:
        self._source = source
        self._watches = watches
        self._telemetry = telemetry
        self._settings = settings
        self._metrics = metrics
        self._sweep_metrics = sweep_metrics
        self._clock = clock
        self._next = 0  # where the next sweep begins, so that a full sweep starves nobody
        self._raised: set[str] = set()  # for counting each anomaly once

    async def run(self, emit: Emit) -> None:
        """Sweeps until cancelled, each `sweep_every_s`; a sweep that takes longer delays the next and shows in the lag metric."""
        due = self._clock.monotonic()
        while True:
            await self._clock.sleep(due - self._clock.monotonic())
            late_s = self._clock.monotonic() - due
            self._sweep_metrics.lag_s.set(late_s)
            due += self._settings.sweep_every_s * (1 + int(late_s // self._settings.sweep_every_s))
            await self.turn(emit)

    async def turn(self, emit: Emit) -> SweepReport:
        """One sweep, in a thread because the store blocks, and its signals to whoever listens."""
        report = await asyncio.to_thread(self.once)
        if report.signals:
            await emit(report.signals)
        return report

    def once(self) -> SweepReport:
        """One sweep now; blocks."""
        now_us, began = self._clock.now_us(), self._clock.monotonic()
        lag_s, stale = self._telemetry.lag_s(now_us), self._telemetry.is_stale(now_us)
        self._sweep_metrics.telemetry_lag_s.set(lag_s)
        self._sweep_metrics.stale.set(stale)
        if stale:
            self._metrics.sweeps.labels("stale").inc()
            return SweepReport(stale=True)
        report = self._evaluate(now_us, began + self._settings.sweep_timeout_s)
        self._metrics.sweep_seconds.observe(self._clock.monotonic() - began)
        self._metrics.series.set(report.evaluated)
        self._metrics.series_dropped.inc(report.dropped)
        self._metrics.sweeps.labels("failed" if report.failed else "timed_out" if report.dropped else "ok").inc()
        return report

    def _evaluate(self, now_us: int, deadline: float) -> SweepReport:
        watches = self._watches()
        turn = [watches[(self._next + place) % len(watches)] for place in range(len(watches))]
        signals: list[Signal] = []
        evaluated, silent, failed = 0, 0, 0
        for watch in turn[: self._settings.series_max]:
            if self._clock.monotonic() > deadline:
                break
            evaluated += 1
            try:
                series = self._source.fetch(watch, now_us / US_PER_S)
            except HephaestusError as error:
                failed += 1
                self._sweep_metrics.fetch_failures.inc()
                _log.warning("series cannot be read", watch=watch.id, error=str(error))
                continue
            signal = judge(watch, series, now_us=now_us)
            if signal is None:
                silent += 1
                continue
            signals.append(signal)
            self._count(watch, signal)
        self._next = (self._next + evaluated) % len(watches) if watches else 0
        return SweepReport(
            signals=tuple(signals), evaluated=evaluated, silent=silent, failed=failed, dropped=len(watches) - evaluated
        )

    def _count(self, watch: Watch, signal: Signal) -> None:
        if isinstance(signal, Cleared):
            self._raised.discard(watch.id)
        elif watch.id not in self._raised:
            self._raised.add(watch.id)
            self._metrics.anomalies.labels(watch.kind.value).inc()


def judge(watch: Watch, series: Series, *, now_us: int) -> Signal | None:
    """What a watch says about its series: an anomaly, that it is right, or None where it cannot say.

    None when there is too little data, when the last `silent_points` points have no verdict (a drained deployment is neither sick nor
    well), or while a clear is not yet certain: its first well point after an outage is no news of an anomaly.
    """
    y = np.where(series.samples >= watch.samples_min, series.y, np.nan)
    scores = watch.detector.score(series.t, y, series.samples)
    scored = np.flatnonzero(~np.isnan(scores))
    if scored.size == 0 or int(scored[-1]) < scores.size - watch.silent_points:
        return None
    decision = watch.threshold.decide(scores)
    if not decision.on:
        return _cleared(watch, now_us) if decision.calm_points >= watch.threshold.clear_points else None
    if decision.calm_points:
        return None
    last = int(scored[-1])
    value = float(y[last])
    expected = float(watch.detector.expect(series.t, y, series.samples)[last])
    return Anomaly(
        signal_id=watch.id,
        kind=watch.kind.value,
        source="telemetry",
        severity=watch.severity,
        score=float(scores[last]),
        started_us=int(series.t[decision.onset]) * US_PER_S,
        at_us=now_us,
        deployment=watch.deployment,
        upstream=watch.upstream,
        alias=watch.alias,
        value=value,
        expected=expected,
        evidence=(_sentence(watch, value, expected, int(series.samples[last])),),
    )


def _cleared(watch: Watch, now_us: int) -> Cleared:
    return Cleared(
        signal_id=watch.id,
        kind=watch.kind.value,
        source="telemetry",
        at_us=now_us,
        deployment=watch.deployment,
        upstream=watch.upstream,
        alias=watch.alias,
    )


def _sentence(watch: Watch, value: float, expected: float, samples: int) -> str:
    """The evidence for people."""
    if watch.kind is WatchKind.FIRST_TOKEN_P95:
        return f"{watch.deployment}: first token p95 {value:.2f} s over {samples} calls, {expected:.2f} s is usual"
    what = (
        f"{watch.deployment}: {value:.1%} of {samples} attempts"
        if watch.deployment
        else f"{watch.alias}: {value:.1%} of {samples} calls"
    )
    return f"{what} succeeded in {watch.step_s} s, {expected:.1%} is usual"

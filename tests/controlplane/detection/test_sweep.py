"""The sweep: what it says, what it does not say, and its bounds."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from controlplane.clock import ManualClock
from controlplane.detection.metrics import SweepMetrics
from controlplane.detection.signals import Anomaly, Cleared, Signal
from controlplane.detection.sweep import Sweep, judge
from controlplane.detection.watch import Watch, alias_watch, first_token_watch, success_ratio_watch
from controlplane.metrics import DetectionMetrics
from controlplane.settings import DetectionSettings
from detectors.synth import latency, with_step
from tests.controlplane.detection.fakes import GivenSeries, GivenSource, GivenTelemetry, ratio_series

NOW_US = 1_800_000_000 * 1_000_000
NAN = float("nan")
CALM = [1.0] * 60


def _watch(deployment: str = "a/m") -> Watch:
    return success_ratio_watch(deployment, deployment.split("/", maxsplit=1)[0], step_s=5, window_s=3600)


class _Rig:
    """A sweep over given series with a clock that stands still."""

    def __init__(self, series: dict[str, GivenSeries], watches: list[Watch], **settings: float) -> None:
        self.clock = ManualClock()
        self.source = GivenSource(series)
        self.telemetry = GivenTelemetry()
        self.registry = CollectorRegistry()
        self.sweep = Sweep(
            source=self.source,
            watches=lambda: watches,
            telemetry=self.telemetry,
            settings=DetectionSettings(**settings),  # type: ignore[arg-type]
            metrics=DetectionMetrics(self.registry),
            sweep_metrics=SweepMetrics(self.registry),
            clock=self.clock,
        )

    def metric(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.registry.get_sample_value(name, labels)


def test_an_outage_is_an_anomaly_with_its_onset_and_evidence() -> None:
    """The anomaly dates from the first bad point and says in words what was seen."""
    signal = judge(_watch(), ratio_series([*CALM, 0.0, 0.0, 0.0]), now_us=NOW_US)
    assert isinstance(signal, Anomaly)
    assert ("success_ratio/a/m", "success_ratio", "telemetry", "a/m", "a", "high") == (
        signal.signal_id, signal.kind, signal.source, signal.deployment, signal.upstream, signal.severity,
    )  # fmt: skip
    assert NOW_US - 10_000_000 == signal.started_us
    assert 0.0 == signal.value
    assert signal.expected > 0.98
    assert signal.score > 0.99
    assert "a/m: 0.0% of 20 attempts succeeded in 5 s" in signal.evidence[0]


@pytest.mark.parametrize(
    ("ratios", "samples", "says"),
    [
        (CALM, 20, "cleared"),
        ([*CALM, 0.0], 20, "nothing"),  # one bad point: wait for the second
        ([*CALM, 0.0, 0.0], 20, "anomaly"),
        ([*CALM, 0.0, 0.0, NAN, NAN, NAN], 20, "anomaly"),  # silent for a moment
        ([*CALM, 0.0, 0.0, NAN, NAN, NAN, NAN], 20, "nothing"),  # drained: neither sick nor well
        ([*CALM, 0.0, 0.0, *[NAN] * 200], 20, "nothing"),
        ([*CALM, 0.0, 0.0, *[NAN] * 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 20, "cleared"),  # traffic is back and well
        ([*CALM, 0.0, 0.0, *[NAN] * 20, 1.0], 20, "nothing"),  # well so far: neither an anomaly nor certain
        ([*CALM, 0.0, 0.0, *[NAN] * 20, 0.0, 0.0], 20, "anomaly"),  # and not well
        ([1.0, 1.0], 20, "nothing"),  # too new to be well
        ([NAN] * 60, 20, "nothing"),
        ([], 20, "nothing"),
        ([0.0], 2, "nothing"),
    ],
)
def test_what_a_watch_says(ratios: list[float], samples: int, says: str) -> None:
    """Data raises and clears; silence does neither."""
    signal = judge(_watch(), ratio_series(ratios, samples=samples), now_us=NOW_US)
    assert says == ("nothing" if signal is None else "anomaly" if isinstance(signal, Anomaly) else "cleared")


def test_points_with_too_few_samples_are_silent() -> None:
    """A latency percentile over two calls is no percentile."""
    watch = first_token_watch("a/m", "a", step_s=5, window_s=3600)
    series = with_step(latency(seed=1, points=120, step_s=30), start=110, length=10, factor=6.0)
    well_founded = GivenSeries(series.t, series.y, np.full(120, 50))
    assert isinstance(judge(watch, well_founded, now_us=NOW_US), Anomaly)
    assert judge(watch, GivenSeries(series.t, series.y, np.full(120, 2)), now_us=NOW_US) is None


def test_a_latency_anomaly_is_said_in_seconds() -> None:
    """The sentence has the unit of the watch."""
    watch = first_token_watch("a/m", "a", step_s=5, window_s=3600)
    series = with_step(latency(seed=1, points=120, step_s=30), start=110, length=10, factor=6.0)
    signal = judge(watch, GivenSeries(series.t, series.y, np.full(120, 50)), now_us=NOW_US)
    assert isinstance(signal, Anomaly)
    assert "a/m: first token p95" in signal.evidence[0]
    assert "s is usual" in signal.evidence[0]


async def test_a_sweep_reports_all_watches_and_counts_an_anomaly_once() -> None:
    """Every sweep repeats what holds; the counter counts onsets."""
    watches = [_watch("a/m"), _watch("b/m"), alias_watch("fast", step_s=5, window_s=3600)]
    bad, good = ratio_series([*CALM, 0.0, 0.0]), ratio_series(CALM)
    rig = _Rig({watches[0].id: bad, watches[1].id: good, watches[2].id: bad}, watches)
    heard: list[Signal] = []

    async def emit(signals: object) -> None:
        heard.extend(signals)  # type: ignore[arg-type]

    await rig.sweep.turn(emit)
    await rig.sweep.turn(emit)
    assert [Anomaly, Cleared, Anomaly] * 2 == [type(signal) for signal in heard]
    assert 1.0 == rig.metric("heph_detection_anomalies_total", watch="success_ratio")
    assert 2.0 == rig.metric("heph_detection_sweeps_total", result="ok")
    assert 3.0 == rig.metric("heph_detection_series")


def test_a_series_that_cannot_be_read_does_not_stop_the_others() -> None:
    """The failure is counted, the next watch is judged."""
    watches = [_watch("a/m"), _watch("b/m")]
    rig = _Rig({watches[1].id: ratio_series(CALM)}, watches)
    report = rig.sweep.once()
    assert (2, 1, 1) == (report.evaluated, report.failed, len(report.signals))
    assert 1.0 == rig.metric("heph_detection_fetch_failures_total")
    assert 1.0 == rig.metric("heph_detection_sweeps_total", result="failed")


def test_stale_telemetry_says_nothing_and_shows() -> None:
    """Old data is no evidence: nothing is fetched, a flag is set, and it goes away again."""
    watches = [_watch()]
    rig = _Rig({watches[0].id: ratio_series([*CALM, 0.0, 0.0])}, watches)
    rig.telemetry.lag = 61.0
    report = rig.sweep.once()
    assert (True, (), []) == (report.stale, report.signals, rig.source.fetched)
    assert (1.0, 61.0) == (
        rig.metric("heph_detection_telemetry_stale"),
        rig.metric("heph_detection_telemetry_lag_seconds"),
    )
    rig.telemetry.lag = 1.0
    assert 1 == len(rig.sweep.once().signals)
    assert 0.0 == rig.metric("heph_detection_telemetry_stale")


def test_a_full_sweep_leaves_the_rest_to_the_next() -> None:
    """Beyond the bound watches are dropped and counted, and the next sweep begins with them."""
    watches = [_watch(f"{letter}/m") for letter in "abcde"]
    rig = _Rig({watch.id: ratio_series(CALM) for watch in watches}, watches, series_max=2)
    assert 3 == rig.sweep.once().dropped
    rig.sweep.once()
    rig.sweep.once()
    assert [f"success_ratio/{letter}/m" for letter in "abcdea"] == rig.source.fetched
    assert 9.0 == rig.metric("heph_detection_series_dropped_total")


def test_a_slow_store_ends_the_sweep_in_time() -> None:
    """When fetching takes longer than a sweep may, the rest is left to the next one."""
    watches = [_watch(f"{letter}/m") for letter in "abcde"]
    rig = _Rig({watch.id: ratio_series(CALM) for watch in watches}, watches, sweep_timeout_s=5.0)
    rig.source.before = lambda: rig.clock.move(3.0)
    report = rig.sweep.once()
    assert (2, 3) == (report.evaluated, report.dropped)
    assert 1.0 == rig.metric("heph_detection_sweeps_total", result="timed_out")


async def test_the_loop_keeps_its_period_and_shows_its_lag() -> None:
    """Three sweeps in ten seconds; one that takes twelve makes the next late."""
    watches = [_watch()]
    rig = _Rig({watches[0].id: ratio_series(CALM)}, watches, sweep_every_s=5.0)
    times: list[float] = []
    slow = [0.0, 0.0, 12.0, 0.0, 0.0]

    async def emit(signals: object) -> None:
        times.append(rig.clock.monotonic())
        rig.clock.move(slow[len(times) - 1])
        if len(times) == len(slow):
            raise asyncio.CancelledError

    task = asyncio.create_task(rig.sweep.run(emit))
    while not task.done():
        await asyncio.sleep(0)
        if rig.clock.sleepers:
            await rig.clock.advance(1.0)
    assert [0.0, 5.0, 10.0, 22.0, 25.0] == times
    assert task.cancelled()

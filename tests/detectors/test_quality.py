"""How good the detectors are: asserted bounds on precision, recall and delay over twenty seeds for each scenario.

`pytest tests/detectors/test_quality.py -s` prints the numbers.
"""

from __future__ import annotations

import sys

import pytest

from detectors.base import Detector
from detectors.evaluate import Quality, quality
from detectors.forest import Forest
from detectors.ratio import Ratio
from detectors.seasonal import Seasonal
from detectors.synth import Labelled, latency, success_ratio, with_gap, with_outage, with_spikes, with_step
from detectors.threshold import Threshold

SEEDS = range(20)
RATIO_DECIDES = Threshold(raise_at=0.95, clear_at=0.6, raise_points=2, clear_points=3)
LATENCY_DECIDES = Threshold(raise_at=0.8, clear_at=0.5, raise_points=3, clear_points=3)
SPIKE_DECIDES = Threshold(raise_at=0.8, clear_at=0.5, raise_points=1, clear_points=1)
FOREST_DECIDES = Threshold(raise_at=0.7, clear_at=0.6, raise_points=2, clear_points=3)


def _judge(name: str, detector: Detector, threshold: Threshold, series: list[Labelled]) -> Quality:
    decided = [(threshold.decide(detector.score(one.t, one.y, one.samples)).raised, one.labels) for one in series]
    verdict = quality(decided, slack_points=6)
    sys.stdout.write(
        f"{name}: precision {verdict.precision:.3f} recall {verdict.recall:.3f} delay {verdict.delay_points:.1f} points\n"
    )
    return verdict


def _outages(samples_mean: float, healthy: float) -> list[Labelled]:
    return [
        with_outage(
            success_ratio(seed=seed, points=720, samples_mean=samples_mean),
            seed=seed,
            start=400,
            length=60,
            healthy=healthy,
        )
        for seed in SEEDS
    ]


@pytest.mark.parametrize(
    ("samples_mean", "healthy", "recall_min", "delay_max"),
    [
        (3.0, 0.0, 1.0, 3.0),
        (20.0, 0.0, 1.0, 1.0),
        (100.0, 0.0, 1.0, 1.0),
        (3.0, 0.6, 0.9, 12.0),
        (20.0, 0.6, 1.0, 2.0),
        (100.0, 0.85, 0.9, 4.0),
    ],
)
def test_outages_are_found_by_the_ratio_detector(
    samples_mean: float, healthy: float, recall_min: float, delay_max: float
) -> None:
    """Total outages within a couple of points even with three calls a point; partial ones soon, and without a false alarm."""
    verdict = _judge(
        f"ratio, {samples_mean:.0f} calls a point, {healthy:.0%} succeed",
        Ratio(),
        RATIO_DECIDES,
        _outages(samples_mean, healthy),
    )
    assert verdict.precision >= 0.97
    assert verdict.recall >= recall_min
    assert verdict.delay_points <= delay_max


@pytest.mark.parametrize("samples_mean", [1.0, 3.0, 20.0, 100.0])
def test_a_healthy_ratio_hardly_ever_alarms(samples_mean: float) -> None:
    """144,000 healthy points, twenty hours a seed at ten seconds a point, give no alarm at any traffic."""
    series = [success_ratio(seed=seed, points=7200, samples_mean=samples_mean) for seed in SEEDS]
    assert 0 == _judge(f"ratio, calm, {samples_mean:.0f} calls a point", Ratio(), RATIO_DECIDES, series).alarms


def _latencies() -> list[Labelled]:
    return [latency(seed=seed, points=4320, noise=0.2) for seed in SEEDS]


def test_a_latency_regression_is_found_in_a_daily_rhythm() -> None:
    """A first token three times as slow is found within four minutes, three days in, by 20 % noise."""
    series = [with_step(one, start=3000, length=90, factor=3.0) for one in _latencies()]
    verdict = _judge("seasonal, three times as slow", Seasonal(direction="high"), LATENCY_DECIDES, series)
    assert (1.0, 1.0) == (verdict.precision, verdict.recall)
    assert verdict.delay_points <= 4.0


def test_single_spikes_are_found_when_asked_for() -> None:
    """With no patience, points four times as slow are found one by one."""
    series = [with_spikes(one, places=(2000, 2500, 3000, 3500), factor=4.0) for one in _latencies()]
    verdict = _judge("seasonal, single spikes", Seasonal(direction="high"), SPIKE_DECIDES, series)
    assert verdict.precision >= 0.95
    assert verdict.recall >= 0.9
    assert verdict.delay_points <= 0.0


def test_a_calm_rhythm_and_a_gap_do_not_alarm() -> None:
    """Three days of rhythm and noise, with hours of silence in them, give no alarm."""
    series = [with_gap(one, start=3000, length=200) for one in _latencies()]
    assert 0 == _judge("seasonal, calm with a gap", Seasonal(direction="high"), LATENCY_DECIDES, series).alarms


def test_the_forest_finds_a_regression_in_its_judged_points() -> None:
    """A level two and a half times the past is found in every series, with at most one alarm in ten false."""
    series = [
        with_step(latency(seed=seed, points=700, noise=0.1, season_s=10**9), start=640, length=30, factor=2.5)
        for seed in SEEDS
    ]
    verdict = _judge("forest, 2.5 times as slow", Forest(judged_points=120), FOREST_DECIDES, series)
    assert verdict.precision >= 0.9
    assert verdict.recall >= 0.95
    assert verdict.delay_points <= 4.0

"""The seasonal detector: seasons, their absence, floors and directions."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import POINTS_MAX
from detectors.seasonal import Seasonal
from detectors.synth import Labelled, latency, with_gap, with_step


def _score(series: Labelled, detector: Seasonal) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return detector.score(series.t, series.y, series.samples)


def test_a_peak_that_comes_every_day_is_normal_and_the_same_peak_at_night_is_not() -> None:
    """With a season of history the phase decides what is normal."""
    series = latency(seed=1, points=24 * 12 * 3, step_s=300)
    y = series.y.copy()
    peak = (np.arange(y.size) % 288) == 72  # a batch job at six each morning
    y[peak] *= 4.0
    night = 2 * 288 + 200
    y[night] *= 4.0
    scores = _score(series._replace(y=y), Seasonal(phase_points=0, recent_points=60))
    assert scores[2 * 288 + 72] < 0.3
    assert scores[night] > 0.9


def test_with_less_than_a_season_the_recent_past_is_the_norm() -> None:
    """A new deployment is watched from its first minutes on, not from its second day."""
    series = with_step(latency(seed=2, points=200), start=150, length=10, factor=5.0)
    scores = _score(series, Seasonal())
    assert scores[151] > 0.9
    assert scores[140] < 0.6


def test_too_little_history_says_nothing() -> None:
    """Nothing is said before there are `history_min` values to compare with."""
    scores = _score(latency(seed=2, points=30), Seasonal(lag_points=2, history_min=10))
    assert np.isnan(scores[:11]).all()
    assert not np.isnan(scores[12:]).any()


def test_missing_rows_keep_their_place() -> None:
    """A series whose empty rows were left out scores as the one that has them as NaN."""
    series = with_gap(latency(seed=4, points=300), start=100, length=50)
    kept = ~np.isnan(series.y)
    short = Labelled(series.t[kept], series.y[kept], series.samples[kept], series.labels[kept])
    assert np.array_equal(_score(series, Seasonal())[kept], _score(short, Seasonal()), equal_nan=True)


@pytest.mark.parametrize(
    ("direction", "up", "down"), [("high", True, False), ("low", False, True), ("both", True, True)]
)
def test_direction(direction: str, up: bool, down: bool) -> None:
    """Only deviations in the watched direction count."""
    series = latency(seed=5, points=200)
    detector = Seasonal(direction=direction)  # type: ignore[arg-type]
    high = _score(with_step(series, start=195, length=1, factor=5.0), detector)[195]
    low = _score(with_step(series, start=195, length=1, factor=0.1), detector)[195]
    assert (up, down) == (high > 0.8, low > 0.8)


def test_the_floor_keeps_a_quiet_series_from_crying() -> None:
    """A millisecond more on a series without any noise is no anomaly, half a second more is."""
    t = np.arange(100, dtype=np.int64) * 10
    y = np.full(100, 0.4)
    y[98], y[99] = 0.401, 0.9
    scores = Seasonal().score(t, y)
    assert scores[98] < 0.1
    assert scores[99] > 0.9


def test_a_series_of_too_many_steps_is_refused() -> None:
    """One distant point cannot make the grid eat the memory."""
    with pytest.raises(ValueError, match="at most"):
        Seasonal().score(np.array([0, 1, POINTS_MAX + 1], dtype=np.int64), np.zeros(3))

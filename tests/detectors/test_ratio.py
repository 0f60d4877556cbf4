"""The ratio detector knows how much a ratio is worth."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.ratio import Ratio


def _scores(ratios: list[float], samples: list[int], detector: Ratio | None = None) -> list[float]:
    t = np.arange(len(ratios), dtype=np.int64) * 10
    return (detector or Ratio()).score(t, np.array(ratios), np.array(samples)).tolist()


@pytest.mark.parametrize(
    ("failures", "samples", "alarms"),
    [
        (3, 3, False),
        (4, 4, True),
        (1, 5, False),
        (2, 8, False),
        (6, 6, True),
        (1, 100, False),
        (5, 100, False),
        (15, 100, True),
        (50, 100, True),
    ],
)
def test_a_verdict_weighs_failures_by_samples(failures: int, samples: int, alarms: bool) -> None:
    """A few failures are luck, many are a fault, whatever the ratio alone would say."""
    score = _scores([1.0 - failures / samples], [samples])[0]
    assert alarms == (score >= 0.95)


def test_fewer_samples_than_the_minimum_say_nothing() -> None:
    """One failed call is no verdict, not even a calm one."""
    assert np.isnan(_scores([0.0], [1])[0])


def test_samples_of_the_recent_points_count_together() -> None:
    """A deployment with one call every point alarms once enough of them failed."""
    scores = _scores([1.0] * 20 + [0.0] * 5, [2] * 25)
    assert all(score < 0.95 for score in scores[1:21])
    assert all(score > 0.95 for score in scores[22:])


def test_a_point_without_calls_is_not_judged_and_not_remembered_as_healthy() -> None:
    """A drained deployment has no verdict, though its last calls failed."""
    scores = _scores([0.0] * 5 + [float("nan")] * 5, [10] * 5 + [0] * 5)
    assert all(np.isnan(score) for score in scores[5:])


def test_a_long_outage_never_becomes_the_norm() -> None:
    """The baseline is held up by its floor, so that hour two of an outage scores as high as minute two."""
    scores = _scores([1.0] * 50 + [0.0] * 600, [20] * 650)
    assert scores[-1] > 0.999


def test_the_expected_value_follows_history_down_to_the_floor() -> None:
    """A service that has always succeeded in 96 of 100 calls is expected to go on so."""
    t = np.arange(400, dtype=np.int64)
    expected = Ratio().expect(t, np.full(400, 0.96), np.full(400, 50))
    assert 0.96 == pytest.approx(expected[-1], abs=0.002)
    assert 0.99 == pytest.approx(expected[0])
    assert 0.9 == pytest.approx(Ratio().expect(t, np.full(400, 0.2), np.full(400, 50))[-1])

"""Deciding: patience, hysteresis, and what silence means."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.threshold import Threshold

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "raised"),
    [
        ([], []),
        ([0.0, 0.95, 0.0], [False, False, False]),
        ([0.0, 0.95, 0.95], [False, False, True]),
        ([0.95, NAN, 0.95], [False, False, True]),
        ([0.95, 0.7, 0.95], [False, False, True]),
        ([0.95, 0.1, 0.95], [False, False, False]),
        ([0.95, 0.95, 0.7, 0.7, 0.7], [False, True, True, True, True]),
        ([0.95, 0.95, 0.1, 0.1, 0.1], [False, True, True, True, False]),
        ([0.95, 0.95, 0.1, 0.1, 0.95, 0.1], [False, True, True, True, True, True]),
        ([0.95, 0.95, NAN, NAN, NAN, NAN], [False, True, True, True, True, True]),
        ([NAN, NAN], [False, False]),
    ],
)
def test_decisions(scores: list[float], raised: list[bool]) -> None:
    """Two high points raise, three low ones clear, points between do neither, and silence changes nothing."""
    assert raised == Threshold().decide(np.array(scores, dtype=np.float64)).raised.tolist()


def test_the_onset_is_the_first_high_point_not_the_deciding_one() -> None:
    """An anomaly is dated from where it began."""
    decision = Threshold(raise_points=3).decide(np.array([0.0, 0.95, 0.95, 0.95]))
    assert (True, 1) == (decision.on, decision.onset)


def test_a_cleared_series_has_no_onset_and_counts_calm_points() -> None:
    """After clearing nothing of the old anomaly is left but the run of calm points."""
    decision = Threshold().decide(np.array([1.0, 1.0, 0.0, 0.0, 0.0, NAN]))
    assert (False, -1, 3) == (decision.on, decision.onset, decision.calm_points)


@pytest.mark.parametrize(
    "fields",
    [
        {"raise_at": 0.5, "clear_at": 0.6},
        {"clear_at": 0.0},
        {"raise_at": 1.1},
        {"raise_points": 0},
        {"clear_points": 0},
    ],
)
def test_bounds_that_cannot_work_are_refused(fields: dict[str, float]) -> None:
    """A threshold that could never clear or never raise is a mistake of whoever wrote it."""
    with pytest.raises(ValueError):
        Threshold(**fields)  # type: ignore[arg-type]

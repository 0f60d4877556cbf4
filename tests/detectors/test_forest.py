"""The isolation forest: what it learns from and what it then finds strange."""

from __future__ import annotations

import numpy as np

from detectors.forest import Forest
from detectors.synth import latency, with_step


def test_a_recent_regression_is_isolated_and_calm_points_are_not() -> None:
    """Points twice as slow as the past score high, those of the past around one half."""
    series = with_step(latency(seed=1, points=500, season_s=10**9), start=480, length=20, factor=2.5)
    scores = Forest().score(series.t, series.y)
    assert float(np.median(scores[480:])) > 0.65
    assert float(np.median(scores[:470])) < 0.5


def test_a_short_past_teaches_nothing() -> None:
    """Below the training minimum the forest cannot say."""
    series = latency(seed=1, points=90)
    assert np.isnan(Forest(judged_points=30, train_min=64).score(series.t, series.y)).all()


def test_another_seed_is_another_forest() -> None:
    """The seed is a parameter, so that a verdict can be reproduced."""
    series = latency(seed=1, points=300)
    assert not np.array_equal(Forest(seed=1).score(series.t, series.y), Forest(seed=2).score(series.t, series.y))

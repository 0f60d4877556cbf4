"""Deciding, apart from scoring: a threshold with hysteresis and patience."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from detectors.base import Bools, Floats


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raises after `raise_points` scored points at or above `raise_at`, clears after `clear_points` scored points below `clear_at`.

    A score between the two bounds breaks neither run, and NaN is not a point at all: with no data a decision stays as it was.
    """

    raise_at: float = 0.9
    clear_at: float = 0.6
    raise_points: int = 2
    clear_points: int = 3

    def __post_init__(self) -> None:
        """Refuses bounds that could never clear."""
        if not 0.0 < self.clear_at <= self.raise_at <= 1.0:
            raise ValueError(f"0 < clear_at <= raise_at <= 1 is required: {self.clear_at}, {self.raise_at}")
        if self.raise_points < 1 or self.clear_points < 1:
            raise ValueError("raise_points and clear_points are at least 1")

    def decide(self, scores: Floats) -> Decision:
        """What was decided at each point, with what was known then; the series begins calm."""
        raised = np.zeros(scores.size, dtype=np.bool_)
        on, since, high, low, first_high = False, -1, 0, 0, -1
        for place, score in enumerate(scores.tolist()):
            if score >= self.raise_at:
                first_high = place if high == 0 else first_high
                high, low = high + 1, 0
            elif score < self.clear_at:
                high, low = 0, low + 1
            if not on and high >= self.raise_points:
                on, since = True, first_high
            elif on and low >= self.clear_points:
                on, since = False, -1
            raised[place] = on
        return Decision(raised=raised, on=on, onset=since, calm_points=low, high_points=high)


class Decision(NamedTuple):
    """What a threshold made of a series.

    raised: for each point, whether an anomaly was known to be going on then.
    on: whether one is going on at the end.
    onset: the index of its first point, -1 when calm; it lies before the first raised point when patience was asked for.
    calm_points, high_points: scored points in a row, up to the end, below the lower and at or above the upper bound.
    """

    raised: Bools
    on: bool
    onset: int
    calm_points: int
    high_points: int

"""What a detector is: something that scores each point of a series, and decides nothing.

Scoring and deciding are apart, as in River: `detectors.threshold` turns scores into decisions. The shape of this seam, and the law that a
high score means anomalous, follow River's `anomaly.base` (https://riverml.xyz, BSD-3).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Direction = Literal["low", "high", "both"]

POINTS_MAX = 100_000


class Claim(StrEnum):
    """A property that a detector promises and `detectors.checks` then tests."""

    CAUSAL = "causal"  # the score of a point depends on nothing after it
    SCALE = "scale"  # y * c with c > 0 scores as y
    SHIFT = "shift"  # y + c scores as y


class Detector(Protocol):
    """A score for each point of a series; frozen parameters, no state, no clock."""

    @property
    def claims(self) -> frozenset[Claim]:
        """What this detector, with these parameters, promises beyond the protocol."""
        ...

    def score(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """How anomalous each point is, shape (n,), in [0, 1]; high means anomalous; NaN means "cannot say".

        t: epoch seconds, strictly increasing, shape (n,).
        y: values, shape (n,); NaN where there is no data. NaN in gives NaN out, so that silence never looks like health.
        samples: how many observations each value stands on, shape (n,); None: one each.
        A detector also gives NaN where it has seen too little to judge. The inputs are never changed.
        Raises ValueError when the shapes differ, t does not increase, or the series spans more than POINTS_MAX steps.
        """
        ...

    def expect(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """The value that would have been normal at each point, in the unit of y, shape (n,); NaN where unknown."""
        ...


def checked(t: Ints, y: Floats, samples: Ints | None) -> tuple[Ints, Floats, Ints]:
    """The three arrays of one series with one shape and the types of the protocol; copies only what has another type.

    Raises ValueError when the shapes differ or t does not strictly increase.
    """
    times = np.asarray(t, dtype=np.int64)
    values = np.asarray(y, dtype=np.float64)
    counts = np.ones(values.shape, dtype=np.int64) if samples is None else np.asarray(samples, dtype=np.int64)
    if times.ndim != 1 or times.shape != values.shape or values.shape != counts.shape:
        raise ValueError(f"t, y and samples must have one shape (n,): {times.shape}, {values.shape}, {counts.shape}")
    if times.size > 1 and int(np.diff(times).min()) <= 0:
        raise ValueError("t must strictly increase")
    return times, values, counts


def grid_places(t: Ints) -> tuple[Ints, int]:
    """Where each time lies on a regular grid of the series' own step, and that step in seconds.

    The step is the smallest distance between neighbours, so a series with missing rows keeps its phase. A series of fewer than two points
    has a step of one second. Raises ValueError when the grid would have more than POINTS_MAX places.
    """
    if t.size < 2:
        return np.zeros(t.size, dtype=np.int64), 1
    step_s = int(np.diff(t).min())
    places = (t - t[0]) // step_s
    if int(places[-1]) >= POINTS_MAX:
        raise ValueError(f"the series spans {int(places[-1]) + 1} steps of {step_s} s; at most {POINTS_MAX} are scored")
    return places, step_s

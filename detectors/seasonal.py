"""A robust detector for values with a daily or weekly rhythm: latencies, rates, costs."""

from __future__ import annotations

import msgspec
import numpy as np

from detectors.base import Claim, Direction, Floats, Ints, checked, grid_places
from detectors.rolling import row_median, trailing

MAD_TO_SIGMA = 1.4826  # makes the median absolute deviation agree with the standard deviation of a normal distribution


class Seasonal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="seasonal", tag_field="kind"):
    """Distance from the median of the same phase in earlier seasons, in robust standard deviations.

    The expected value is the median over the same phase of up to `seasons_max` earlier seasons, with `phase_points` neighbours on each side.
    With less than one season of history it is the median of the recent past. The spread is the median absolute residual of the recent
    past, with a floor. A deviation of z spreads scores z^2 / (z^2 + z_half^2): one half at z_half, 0.9 at three times z_half.

    Works for: level changes, spikes and outages in series with or without a season; up to half of the history may itself be anomalous.
    Does not work for: drifts slower than the recent window (they become the norm), an anomaly without a season that lasts longer than
    `lag_points` + half of `recent_points` (it becomes the norm), ratios that stand on few samples (use `Ratio`).
    Cost: O(n * (recent_points + seasons_max * phase_points)) in time and memory; about 4 ms for 720 points and a window of 120.
    Source: median and MAD as location and scale, Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation"; the seasonal-naive
    forecast, Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", 5.2.
    """

    period_s: int = 86_400  # one season; 0: none
    seasons_max: int = 7
    phase_points: int = 1
    recent_points: int = 120
    lag_points: int = 6
    history_min: int = 12  # values needed before anything is said
    z_half: float = 4.0
    floor: float = 0.0  # the spread is never less than this, in the unit of y
    floor_relative: float = 0.05  # nor less than this share of the expected value
    direction: Direction = "both"

    @property
    def claims(self) -> frozenset[Claim]:
        """Causal; equivariant to scale without an absolute floor, and to shift without any floor."""
        claims = {Claim.CAUSAL}
        if self.floor == 0.0:
            claims.add(Claim.SCALE)
        if self.floor == 0.0 and self.floor_relative == 0.0:
            claims.add(Claim.SHIFT)
        return frozenset(claims)

    def score(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """See `Detector.score`; samples are not used."""
        times, values, _ = checked(t, y, samples)
        places, step_s = grid_places(times)
        grid = _on_grid(places, values)
        expected, spread = self._baseline(grid, step_s)
        return self._scores(grid, expected, spread)[places]

    def expect(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """See `Detector.expect`."""
        times, values, _ = checked(t, y, samples)
        places, step_s = grid_places(times)
        return self._baseline(_on_grid(places, values), step_s)[0][places]

    def _baseline(self, grid: Floats, step_s: int) -> tuple[Floats, Floats]:
        """The expected value and the spread of each place of the grid, NaN where there is too little history."""
        recent = trailing(grid, width=self.recent_points, lag=self.lag_points)
        recent_median = row_median(recent, valid_min=self.history_min)
        recent_spread = row_median(np.abs(recent - recent_median[:, None]), valid_min=self.history_min)
        seasonal = self._same_phase(grid, step_s)
        expected = np.where(np.isnan(seasonal), recent_median, seasonal)
        residuals = np.abs(trailing(grid - expected, width=self.recent_points, lag=self.lag_points))
        residual_spread = row_median(residuals, valid_min=self.history_min)
        use_recent = np.isnan(seasonal) | np.isnan(residual_spread)
        spread = MAD_TO_SIGMA * np.where(use_recent, recent_spread, residual_spread)
        return expected, np.maximum(spread, np.maximum(self.floor, self.floor_relative * np.abs(expected)))

    def _same_phase(self, grid: Floats, step_s: int) -> Floats:
        """The median of the same phase in earlier seasons; NaN without a whole season before the place."""
        period = self.period_s // step_s
        if period <= self.phase_points or grid.size <= period:
            return np.full(grid.size, np.nan)
        offsets = [
            season * period + neighbour
            for season in range(1, min(self.seasons_max, grid.size // period) + 1)
            for neighbour in range(-self.phase_points, self.phase_points + 1)
        ]
        rows = np.full((grid.size, len(offsets)), np.nan)
        for column, offset in enumerate(offsets):
            if offset < grid.size:
                rows[offset:, column] = grid[: grid.size - offset]
        return row_median(rows, valid_min=self.phase_points + 1)

    def _scores(self, grid: Floats, expected: Floats, spread: Floats) -> Floats:
        """Deviations in the watched direction as scores; a deviation with no spread at all scores one."""
        deviation = grid - expected
        if self.direction == "low":
            deviation = np.maximum(-deviation, 0.0)
        elif self.direction == "high":
            deviation = np.maximum(deviation, 0.0)
        squared = np.square(deviation)
        whole = squared + np.square(self.z_half * spread)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(whole > 0.0, squared / whole, 0.0)
        return np.where(np.isnan(deviation) | np.isnan(spread), np.nan, scores)


def _on_grid(places: Ints, values: Floats) -> Floats:
    """Values at their places, NaN between them."""
    grid = np.full(int(places[-1]) + 1 if places.size else 0, np.nan)
    grid[places] = values
    return grid

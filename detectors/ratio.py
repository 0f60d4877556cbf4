"""A detector for success ratios that knows on how many samples each ratio stands."""

from __future__ import annotations

import msgspec
import numpy as np

# scipy is a hard dependency of scikit-learn and ships no types.
from scipy.special import betainc  # type: ignore[import-untyped]

from detectors.base import Claim, Floats, Ints, checked
from detectors.rolling import trailing_sum


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ratio", tag_field="kind"):
    """The probability that the true success ratio has fallen below its baseline by more than a margin.

    The samples of the last `recent_points` points update a Beta prior that is centred on the baseline and worth `prior_samples`; the score is
    the posterior mass below baseline - margin. A few failures move the prior little, a total outage moves it at once: with the defaults
    three failures of three score 0.89, four of four 0.965, six of six 0.998. The baseline is the pooled ratio of `baseline_points` points before
    the recent ones, held up by a pseudo-history at `healthy` and never below `floor`, so that an outage cannot become the norm.

    Works for: ratios of successes to trials, from a handful to millions of samples a point, from the very first point.
    Does not work for: values that are not ratios; slow drifts that stay within the margin; too high a ratio (it only looks down).
    Cost: O(n) and one incomplete beta function a point; below 1 ms for 720 points.
    Source: conjugate Beta-binomial inference, Gelman et al., "Bayesian Data Analysis", 2.4.
    """

    healthy: float = 0.99
    healthy_samples: float = 100.0  # how much history `healthy` is worth
    floor: float = 0.9
    margin: float = 0.05
    baseline_points: int = 120
    lag_points: int = 6
    recent_points: int = 3
    prior_samples: float = 20.0
    samples_min: int = 3  # in the recent points together; with fewer the detector cannot say

    @property
    def claims(self) -> frozenset[Claim]:
        """Causal."""
        return frozenset({Claim.CAUSAL})

    def score(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """See `Detector.score`; values outside [0, 1] are clipped, a point with no samples is a point with no data."""
        _, values, counts = checked(t, y, samples)
        present, trials, successes = _trials(values, counts)
        baseline = self._baseline(trials, successes)
        recent_trials = trailing_sum(trials, width=self.recent_points, lag=0)
        recent_successes = np.minimum(trailing_sum(successes, width=self.recent_points, lag=0), recent_trials)
        alpha = baseline * self.prior_samples + recent_successes
        beta = (1.0 - baseline) * self.prior_samples + (recent_trials - recent_successes)
        scores = np.asarray(betainc(alpha, beta, np.clip(baseline - self.margin, 0.0, 1.0)), dtype=np.float64)
        return np.where(present & (recent_trials >= self.samples_min), np.clip(scores, 0.0, 1.0), np.nan)

    def expect(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """See `Detector.expect`; known from the first point on."""
        _, values, counts = checked(t, y, samples)
        _, trials, successes = _trials(values, counts)
        return self._baseline(trials, successes)

    def _baseline(self, trials: Floats, successes: Floats) -> Floats:
        """The ratio held normal at each point, in (0, 1)."""
        lag = max(self.lag_points, self.recent_points)
        before_trials = trailing_sum(trials, width=self.baseline_points, lag=lag)
        before_successes = trailing_sum(successes, width=self.baseline_points, lag=lag)
        pooled = (self.healthy * self.healthy_samples + before_successes) / (self.healthy_samples + before_trials)
        return np.clip(np.maximum(pooled, self.floor), 1e-6, 1.0 - 1e-6)


def _trials(values: Floats, counts: Ints) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], Floats, Floats]:
    """Which points have data, their trials and their successes; zeros elsewhere."""
    present = ~np.isnan(values) & (counts > 0)
    trials = np.where(present, counts, 0).astype(np.float64)
    successes = np.where(present, np.clip(np.nan_to_num(values), 0.0, 1.0), 0.0) * trials
    return present, trials, successes

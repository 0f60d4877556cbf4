"""A learned detector: an isolation forest over a point's size, its change and the unrest around it."""

from __future__ import annotations

import msgspec
import numpy as np

from detectors.base import Bools, Claim, Floats, Ints, checked
from detectors.rolling import row_median, trailing
from detectors.seasonal import MAD_TO_SIGMA

_FEATURES = 3


class Forest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="forest", tag_field="kind"):
    """How easily random cuts isolate a point from the past, as the paper's score: about 0.5 is normal, above 0.65 is rare.

    Each point becomes three numbers: its distance from the median of the history, its change since the point before, and the spread of the last
    `recent_points` points, all in robust standard deviations. The forest is fitted on all but the last `judged_points` points, and all are
    scored by it, so an anomaly that is going on does not teach it.

    Works for: unusual combinations (a value that is fine by itself but not after that jump) in series with a few hundred points.
    Does not work for: short series (NaN below `train_min` points), strong seasons (the phase is not a feature), exact probabilities;
    it is not causal, so scores of old points change as the series grows.
    Cost: fitting dominates; about 0.1 s for 100 trees, whatever the length, because each tree sees at most 256 points.
    Source: Liu, Ting and Zhou 2008, "Isolation Forest", ICDM; the implementation is scikit-learn's.
    """

    trees: int = 100
    judged_points: int = 30
    recent_points: int = 5
    train_min: int = 64
    seed: int = 7

    @property
    def claims(self) -> frozenset[Claim]:
        """Equivariant to scale and shift, because its features are."""
        return frozenset({Claim.SCALE, Claim.SHIFT})

    def score(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """See `Detector.score`; samples are not used."""
        _, values, _ = checked(t, y, samples)
        scores = np.full(values.size, np.nan)
        train_end = values.size - self.judged_points
        features = self._features(values, max(train_end, 0))
        known: Bools = np.asarray(~np.isnan(features).any(axis=1), dtype=np.bool_)
        if train_end <= 0 or int(np.count_nonzero(known[:train_end])) < self.train_min:
            return scores
        scores[known] = self._isolation(features[:train_end][known[:train_end]], features[known])
        return scores

    def expect(self, t: Ints, y: Floats, samples: Ints | None = None) -> Floats:
        """The median of the history, the same for every point."""
        _, values, _ = checked(t, y, samples)
        centre, _ = _centre(values[: max(values.size - self.judged_points, 0)])
        return np.full(values.size, centre)

    def _features(self, values: Floats, train_end: int) -> Floats:
        """Size, change and unrest of each point, shape (n, 3); NaN where the value is."""
        centre, spread = _centre(values[:train_end])
        sizes = (values - centre) / spread
        features = np.full((values.size, _FEATURES), np.nan)
        features[:, 0] = sizes
        features[1:, 1] = np.nan_to_num(np.diff(sizes))
        features[:1, 1] = 0.0
        nearby = trailing(sizes, width=self.recent_points, lag=1)
        unrest = row_median(np.abs(nearby - row_median(nearby, valid_min=1)[:, None]), valid_min=1)
        features[:, 2] = np.nan_to_num(unrest)
        # Rounded, so that y and c * y fall on the same side of every cut.
        return np.round(features, 6)

    def _isolation(self, train: Floats, points: Floats) -> Floats:
        """The paper's anomaly score of each point, by a forest fitted on `train`."""
        # Importing scikit-learn costs a second and 80 MB; a control plane none of whose watches uses a forest does not pay for it.
        from sklearn.ensemble import IsolationForest  # noqa: PLC0415

        forest = IsolationForest(n_estimators=self.trees, random_state=self.seed, n_jobs=1)
        forest.fit(train)
        return np.clip(-np.asarray(forest.score_samples(points), dtype=np.float64), 0.0, 1.0)


def _centre(history: Floats) -> tuple[float, float]:
    """Median and robust standard deviation of the history; a spread of one where there is none. NaN median for an empty history."""
    known = history[~np.isnan(history)]
    if known.size == 0:
        return float("nan"), 1.0
    centre = float(np.median(known))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(known - centre)))
    return centre, spread if spread > 0.0 else 1.0

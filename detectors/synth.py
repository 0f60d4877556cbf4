"""Seeded labelled series: a rhythm, noise, and the faults that were put in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detectors.base import Bools, Floats, Ints

START_S = 1_700_006_400  # a midnight UTC, so that phases are easy to read


class Labelled(NamedTuple):
    """A series and the truth about it, all of shape (n,). labels: True where a fault is going on."""

    t: Ints
    y: Floats
    samples: Ints
    labels: Bools

    def head(self, length: int) -> Labelled:
        """The first `length` points."""
        return Labelled(self.t[:length], self.y[:length], self.samples[:length], self.labels[:length])


def latency(
    *, seed: int, points: int, step_s: int = 60, season_s: int = 86_400, level: float = 0.4, noise: float = 0.05
) -> Labelled:
    """A first-token latency in seconds: a level that swings by a third over each season, with log-normal noise.

    noise: standard deviation of the logarithm. samples: a traffic that swings with the season, at least 1.
    """
    random = np.random.default_rng(seed)
    t = START_S + step_s * np.arange(points, dtype=np.int64)
    swing = np.sin(2.0 * np.pi * (t - START_S) / season_s)
    y = level * (1.0 + swing / 3.0) * np.exp(random.normal(0.0, noise, points))
    samples = 1 + random.poisson(20.0 * (1.2 + swing))
    return Labelled(t, y, samples.astype(np.int64), np.zeros(points, dtype=np.bool_))


def success_ratio(
    *, seed: int, points: int, step_s: int = 10, healthy: float = 0.995, samples_mean: float = 20.0
) -> Labelled:
    """A success ratio: binomial successes of Poisson trials at a constant rate; NaN where a point has no trial."""
    random = np.random.default_rng(seed)
    t = START_S + step_s * np.arange(points, dtype=np.int64)
    trials = random.poisson(samples_mean, points)
    return Labelled(
        t, _ratio(random, trials, np.full(points, healthy)), trials.astype(np.int64), np.zeros(points, dtype=np.bool_)
    )


def with_outage(series: Labelled, *, seed: int, start: int, length: int, healthy: float) -> Labelled:
    """A success ratio whose true rate is `healthy` for `length` points from `start`; 0.0 is a total outage."""
    random = np.random.default_rng(seed)
    y, labels = series.y.copy(), series.labels.copy()
    window = slice(start, start + length)
    y[window] = _ratio(random, series.samples[window], np.full(y[window].size, healthy))
    labels[window] = True
    return series._replace(y=y, labels=labels)


def with_step(series: Labelled, *, start: int, length: int, factor: float) -> Labelled:
    """A regression: values times `factor` for `length` points from `start`."""
    y, labels = series.y.copy(), series.labels.copy()
    y[start : start + length] *= factor
    labels[start : start + length] = True
    return series._replace(y=y, labels=labels)


def with_spikes(series: Labelled, *, places: tuple[int, ...], factor: float) -> Labelled:
    """Single points times `factor`."""
    y, labels = series.y.copy(), series.labels.copy()
    y[list(places)] *= factor
    labels[list(places)] = True
    return series._replace(y=y, labels=labels)


def with_drift(series: Labelled, *, start: int, factor: float) -> Labelled:
    """Values that grow evenly from `start` on, up to `factor` times at the end; labelled from the start."""
    y, labels = series.y.copy(), series.labels.copy()
    y[start:] *= np.linspace(1.0, factor, y.size - start)
    labels[start:] = True
    return series._replace(y=y, labels=labels)


def with_gap(series: Labelled, *, start: int, length: int) -> Labelled:
    """No data for `length` points from `start`: NaN, no samples, and no fault."""
    y, samples, labels = series.y.copy(), series.samples.copy(), series.labels.copy()
    y[start : start + length], samples[start : start + length], labels[start : start + length] = np.nan, 0, False
    return series._replace(y=y, samples=samples, labels=labels)


def _ratio(random: np.random.Generator, trials: Ints, healthy: Floats) -> Floats:
    """Successes over trials, NaN where there are none."""
    successes = random.binomial(trials, healthy).astype(np.float64)
    return np.where(trials > 0, successes / np.maximum(trials, 1), np.nan)

"""The synthetic series are seeded and their labels are true."""

from __future__ import annotations

import numpy as np

from detectors.synth import latency, success_ratio, with_drift, with_gap, with_outage, with_spikes, with_step


def test_a_seed_is_a_series() -> None:
    """The same seed gives the same series, another seed another one."""
    assert np.array_equal(latency(seed=1, points=50).y, latency(seed=1, points=50).y)
    assert not np.array_equal(latency(seed=1, points=50).y, latency(seed=2, points=50).y)


def test_an_outage_is_labelled_and_total() -> None:
    """Within the labels no call succeeds; outside them nothing changed."""
    calm = success_ratio(seed=1, points=100)
    series = with_outage(calm, seed=1, start=40, length=20, healthy=0.0)
    assert list(range(40, 60)) == np.flatnonzero(series.labels).tolist()
    assert 0.0 == np.nanmax(series.y[40:60])
    assert np.array_equal(calm.y[:40], series.y[:40], equal_nan=True)
    assert 0 == int(calm.labels.sum())


def test_steps_spikes_and_drifts_multiply_what_was_there() -> None:
    """Factors apply to the labelled points only."""
    calm = latency(seed=1, points=100)
    assert np.allclose(calm.y[10:20] * 2.0, with_step(calm, start=10, length=10, factor=2.0).y[10:20])
    assert np.allclose(calm.y[[3, 7]] * 5.0, with_spikes(calm, places=(3, 7), factor=5.0).y[[3, 7]])
    drift = with_drift(calm, start=50, factor=3.0)
    assert np.isclose(calm.y[-1] * 3.0, drift.y[-1])
    assert 50 == int(drift.labels.sum())


def test_a_gap_is_silence_and_no_fault() -> None:
    """Neither values nor samples nor a label are left."""
    series = with_gap(with_step(latency(seed=1, points=50), start=10, length=10, factor=2.0), start=10, length=10)
    assert np.isnan(series.y[10:20]).all()
    assert 0 == int(series.samples[10:20].sum())
    assert 0 == int(series.labels.sum())

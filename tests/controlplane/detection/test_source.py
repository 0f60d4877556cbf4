"""Series for watches from the real store, and a whole sweep over them."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry

from controlplane.clock import ManualClock
from controlplane.contract.records import AttemptError, CallRecord, Outcome
from controlplane.detection.metrics import SweepMetrics
from controlplane.detection.signals import Anomaly, Cleared
from controlplane.detection.source import StoreSeries
from controlplane.detection.sweep import Sweep
from controlplane.detection.watch import alias_watch, first_token_watch, success_ratio_watch
from controlplane.metrics import DetectionMetrics
from controlplane.settings import DetectionSettings
from controlplane.store.client import Store
from tests.controlplane.detection.fakes import GivenTelemetry
from tests.controlplane.store.fakes import START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

START_S = START_US // 1_000_000
SICK, WELL = "openai/gpt", "backup/gpt"


def _calls(first: int, last: int, *, sick: bool) -> list[CallRecord]:
    """Two calls a second from `first` to `last`: each tries the sick deployment, then the well one if that fails."""
    calls = []
    for number in range(first * 2, last * 2):
        at_us = START_US + number * 500_000
        error = AttemptError.STATUS_5XX if sick else AttemptError.NONE
        attempts = [an_attempt(SICK, at_us=at_us, error=error, latency_us=100_000)]
        if sick:
            attempts.append(an_attempt(WELL, at_us=at_us, latency_us=100_000))
        calls.append(a_call(number, at_us=at_us, latency_us=200_000, attempts=tuple(attempts)))
    return calls


def test_each_kind_has_its_series(store: Store) -> None:
    """Ratios by deployment and alias, latency in seconds, silence where nothing was ever seen."""
    fill(
        store,
        *_calls(0, 10, sick=False),
        a_call(99, at_us=START_US, outcome=Outcome.EXHAUSTED, status=502, attempts=()),
    )
    source, now_s = StoreSeries(store), START_S + 10.5
    ratio = source.fetch(success_ratio_watch(SICK, "openai", step_s=5, window_s=20), now_s)
    assert [10, 10] == ratio.samples[-2:].tolist()
    assert [1.0, 1.0] == ratio.y[-2:].tolist()
    assert np.isnan(ratio.y[:2]).all()
    alias = source.fetch(alias_watch("gpt", step_s=5, window_s=20), now_s)
    assert 10 / 11 == alias.y[-2]
    latency = source.fetch(first_token_watch(SICK, "openai", step_s=5, window_s=60), now_s + 30)
    assert np.isclose(0.3, latency.y[-1], atol=0.01)
    silent = source.fetch(success_ratio_watch("other/m", "other", step_s=5, window_s=20), now_s)
    assert (4, 0) == (silent.y.size, int(silent.samples.sum()))
    assert np.isnan(silent.y).all()


def test_all_watches_of_a_sweep_see_one_moment(store: Store) -> None:
    """What arrives while a sweep goes on is for the next sweep."""
    fill(store, *_calls(0, 5, sick=False))
    source, now_s = StoreSeries(store), START_S + 5.5
    watch = success_ratio_watch(SICK, "openai", step_s=5, window_s=10)
    source.fetch(watch, now_s)
    fill(store, a_call(500, at_us=START_US), segment=1)
    assert 10 == int(source.fetch(watch, now_s).samples.sum())
    assert 11 == int(source.fetch(watch, now_s + 0.1).samples.sum())


def test_a_sweep_over_the_store_finds_the_sick_deployment(store: Store) -> None:
    """Twenty seconds into an outage the sick deployment is an anomaly, its backup and the alias are well."""
    fill(store, *_calls(0, 120, sick=False), *_calls(120, 140, sick=True))
    clock, registry = ManualClock(START_US + 140_500_000), CollectorRegistry()
    watches = [
        success_ratio_watch(SICK, "openai", step_s=5, window_s=600),
        success_ratio_watch(WELL, "backup", step_s=5, window_s=600),
        alias_watch("gpt", step_s=5, window_s=600),
    ]
    sweep = Sweep(
        source=StoreSeries(store),
        watches=lambda: watches,
        telemetry=GivenTelemetry(),
        settings=DetectionSettings(),
        metrics=DetectionMetrics(registry),
        sweep_metrics=SweepMetrics(registry),
        clock=clock,
    )
    sick, well, alias = sweep.once().signals
    assert isinstance(sick, Anomaly)
    assert START_US + 120_000_000 == sick.started_us
    assert isinstance(well, Cleared)
    assert isinstance(alias, Cleared)

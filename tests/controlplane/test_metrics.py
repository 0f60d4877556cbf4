"""Metrics are named and explained alike."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from controlplane.metrics import Metrics

REGISTRY = Metrics(CollectorRegistry()).registry
LABELS = {"result", "state", "watch", "playbook", "action", "reason", "kind", "route", "status", "loop"}


@pytest.mark.parametrize("metric", list(REGISTRY.collect()), ids=lambda metric: metric.name)
def test_every_metric_has_our_prefix_and_a_sentence(metric) -> None:  # type: ignore[no-untyped-def]
    """Names are lower-case words after `heph_`, without a unit that is not a base unit; help is a sentence."""
    assert re.fullmatch(r"heph(_[a-z]+)+", metric.name)
    assert not re.search(r"_(ms|us|kb|mb|minutes)$", metric.name)
    assert metric.documentation.endswith(".")


@pytest.mark.parametrize("group", [name for name in vars(Metrics(CollectorRegistry())) if name != "registry"])
def test_labels_are_few_and_known(group: str) -> None:
    """No metric has more than two labels, and each is one of a known few that clients cannot fill."""
    for metric in vars(getattr(Metrics(CollectorRegistry()), group)).values():
        assert len(metric._labelnames) <= 2
        assert set(metric._labelnames) <= LABELS


def test_two_sets_do_not_disturb_each_other() -> None:
    """Metrics live in the registry that is passed in, so that two control planes fit into one process."""
    one, other = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    one.ingest.records.inc()
    assert (1.0, 0.0) == (
        one.registry.get_sample_value("heph_ingest_records_total"),
        other.registry.get_sample_value("heph_ingest_records_total"),
    )

"""Every metric of the control plane in one registry, for the reference: what a running one exposes, part by part."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from controlplane.api.counters import ApiCounters
from controlplane.detection.metrics import ProbeMetrics, SweepMetrics
from controlplane.healing.metrics import WorkerMetrics
from controlplane.incidents.metrics import SignalMetrics
from controlplane.journal.metrics import JournalMetrics
from controlplane.metrics import Metrics


def all_metrics(registry: CollectorRegistry) -> CollectorRegistry:
    """The registry with every group of metrics that the control plane has; once for each registry."""
    ApiCounters(Metrics(registry))
    for group in (JournalMetrics, SweepMetrics, ProbeMetrics, SignalMetrics, WorkerMetrics):
        group(registry)
    return registry

"""What the worker tells Prometheus about itself, beside what `controlplane.metrics.HealingMetrics` counts of the runs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class WorkerMetrics:
    """Counters of one worker, in the registry given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.errors = Counter(
            "heph_healing_errors",
            "Turns of a run that ended in an unexpected error; they are tried again.",
            registry=registry,
        )
        self.bounded = Counter(
            "heph_healing_turns_bounded", "Times a run had more to do than one turn allows.", registry=registry
        )
        self.turn_seconds = Histogram("heph_healing_turn_seconds", "Time of one turn over all runs.", registry=registry)

"""What incidents tell Prometheus beyond `controlplane.metrics.IncidentMetrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class SignalMetrics:
    """What happened to signals."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.expired = Counter(
            "heph_incidents_signals_expired",
            "Signals taken as over because nobody reported them for too long, or their target is gone.",
            ["by"],
            registry=registry,
        )
        self.reopened = Counter(
            "heph_incidents_reopened", "Incidents reopened because a signal came back soon.", registry=registry
        )
        self.dismissed = Counter(
            "heph_incidents_dismissed",
            "Incidents whose signals went away before they were confirmed.",
            registry=registry,
        )
        self.conflicts = Counter(
            "heph_incidents_conflicts",
            "Incidents read anew because another process had changed them.",
            registry=registry,
        )

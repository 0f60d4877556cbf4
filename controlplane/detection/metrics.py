"""What detection tells Prometheus beyond `controlplane.metrics.DetectionMetrics`: lateness, blindness, failures and probes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class SweepMetrics:
    """How well the sweep keeps up, and what it could not see."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag_s = Gauge(
            "heph_detection_lag_seconds", "How late the last sweep began, beyond its period.", registry=registry
        )
        self.stale = Gauge(
            "heph_detection_telemetry_stale",
            "1 while telemetry is too old to conclude anything from it.",
            registry=registry,
        )
        self.telemetry_lag_s = Gauge(
            "heph_detection_telemetry_lag_seconds",
            "Age of the oldest telemetry that is not stored yet.",
            registry=registry,
        )
        self.fetch_failures = Counter(
            "heph_detection_fetch_failures", "Series that could not be read from the store.", registry=registry
        )


class ProbeMetrics:
    """Active probes of sick deployments."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.probes = Counter(
            "heph_detection_probes",
            "Active probes sent, by result (ok, failed, timed_out).",
            ["result"],
            registry=registry,
        )
        self.records_dropped = Counter(
            "heph_detection_probe_records_dropped",
            "Records of what probes cost that were given up because the store took none for too long.",
            registry=registry,
        )
        self.targets = Gauge("heph_detection_probe_targets", "Deployments that are being probed.", registry=registry)
        self.targets_dropped = Counter(
            "heph_detection_probe_targets_dropped",
            "Deployments not probed because too many were sick.",
            registry=registry,
        )

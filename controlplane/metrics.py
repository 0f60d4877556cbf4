"""The control plane's own metrics: `heph_*`, one sentence of help each, few labels with few values; the journal names its own.

`Metrics(registry)` makes them against the registry that is passed in; app.py makes one and hands it down. Seconds and bytes are the
base units. A label never holds a text that a client chose.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """Every metric of the control plane, in groups by the part that owns them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.ingest = IngestMetrics(registry)
        self.catalog = CatalogMetrics(registry)
        self.store = StoreMetrics(registry)
        self.detection = DetectionMetrics(registry)
        self.incidents = IncidentMetrics(registry)
        self.healing = HealingMetrics(registry)
        self.alerts = AlertMetrics(registry)
        self.door = DoorMetrics(registry)
        self.api = ApiMetrics(registry)
        self.loops = LoopMetrics(registry)


class IngestMetrics:
    """What came in from the proxies."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter(
            "heph_ingest_batches",
            "Batches received, by result (stored, repeated, refused, failed).",
            ["result"],
            registry=registry,
        )
        self.records = Counter("heph_ingest_records", "Call records stored.", registry=registry)
        self.bytes = Counter("heph_ingest_bytes", "Bytes of batches received.", registry=registry)
        self.torn_bytes = Counter(
            "heph_ingest_torn_bytes",
            "Bytes cut off at the end of batches: records that no proxy had settled.",
            registry=registry,
        )
        self.repaired = Counter(
            "heph_ingest_repaired",
            "Batches that were in the store with something missing, and were made whole.",
            registry=registry,
        )
        self.lag_s = Gauge(
            "heph_ingest_lag_seconds", "Age of the oldest call of the last batch when it was stored.", registry=registry
        )
        self.statuses_forgotten = Counter(
            "heph_ingest_statuses_forgotten",
            "Proxies whose last word was forgotten because too many are known; the next one is stored whole.",
            registry=registry,
        )
        self.waiting = Gauge("heph_ingest_waiting", "Batches that wait for the store.", registry=registry)
        self.seconds = Histogram(
            "heph_ingest_seconds",
            "Time from a batch's arrival to its durable insert.",
            buckets=_SLOW_S,
            registry=registry,
        )


class CatalogMetrics:
    """What the proxies are told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.version = Gauge("heph_catalog_version", "Version of the newest snapshot.", registry=registry)
        self.reloads = Counter(
            "heph_catalog_reloads", "Reloads, by result (applied, unchanged, refused).", ["result"], registry=registry
        )
        self.refused = Gauge(
            "heph_catalog_refused",
            "1 while the configuration file on disk is refused and the last good one serves.",
            registry=registry,
        )
        self.waiters = Gauge("heph_catalog_waiters", "Long polls that wait for a newer snapshot.", registry=registry)
        self.waiters_refused = Counter(
            "heph_catalog_waiters_refused", "Long polls sent away because too many waited.", registry=registry
        )
        self.proxies = Gauge("heph_catalog_proxies", "Proxy workers that reported lately.", registry=registry)
        self.proxies_behind = Gauge(
            "heph_catalog_proxies_behind",
            "Live proxy workers that do not have the newest snapshot yet.",
            registry=registry,
        )
        self.proxies_refused = Counter(
            "heph_catalog_proxies_refused",
            "Status reports left out because too many proxies are known.",
            registry=registry,
        )
        self.leases = Gauge("heph_catalog_leases", "Leased overrides in force.", registry=registry)
        self.confirm_seconds = Histogram(
            "heph_catalog_confirm_seconds",
            "Time from a snapshot's publication until all live proxies had it.",
            buckets=_FAST_S,
            registry=registry,
        )


class StoreMetrics:
    """The telemetry store as seen from here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queries = Counter(
            "heph_store_queries", "Queries, by result (ok, failed, timed_out).", ["result"], registry=registry
        )
        self.seconds = Histogram("heph_store_query_seconds", "Time of one query.", buckets=_FAST_S, registry=registry)
        self.waiting = Gauge("heph_store_waiting", "Statements that wait for the store.", registry=registry)


class DetectionMetrics:
    """The watches."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sweeps = Counter(
            "heph_detection_sweeps", "Sweeps, by result (ok, failed, timed_out, stale).", ["result"], registry=registry
        )
        self.sweep_seconds = Histogram(
            "heph_detection_sweep_seconds", "Time of one sweep.", buckets=_FAST_S, registry=registry
        )
        self.series = Gauge("heph_detection_series", "Series evaluated by the last sweep.", registry=registry)
        self.series_dropped = Counter(
            "heph_detection_series_dropped", "Series left out because a sweep had too many.", registry=registry
        )
        self.anomalies = Counter("heph_detection_anomalies", "Anomalies found, by watch.", ["watch"], registry=registry)


class IncidentMetrics:
    """The incidents."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge(
            "heph_incidents_open", "Incidents that are not resolved, by state.", ["state"], registry=registry
        )
        self.opened = Counter("heph_incidents_opened", "Incidents opened.", registry=registry)
        self.resolved = Counter("heph_incidents_resolved", "Incidents resolved.", registry=registry)
        self.joined = Counter(
            "heph_incidents_joined",
            "Anomalies joined to an open incident because too many were open.",
            registry=registry,
        )
        self.seconds = Histogram(
            "heph_incident_seconds",
            "Time from the start of an incident to its end.",
            buckets=_SLOW_S,
            registry=registry,
        )


class HealingMetrics:
    """The playbook runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter(
            "heph_healing_runs", "Runs that ended, by playbook and how.", ["playbook", "result"], registry=registry
        )
        self.open = Gauge("heph_healing_runs_open", "Runs that have not ended.", registry=registry)
        self.steps = Counter(
            "heph_healing_steps", "Steps done, by action and result.", ["action", "result"], registry=registry
        )
        self.refused = Counter(
            "heph_healing_refused",
            "Runs not opened, by reason (disabled, bound, autonomy, guard).",
            ["reason"],
            registry=registry,
        )
        self.enabled = Gauge("heph_healing_enabled", "0 while the kill switch is on.", registry=registry)


class AlertMetrics:
    """Telling people."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deliveries = Counter(
            "heph_alert_deliveries",
            "Tries to deliver, by sink kind and result (ok, retried, given_up).",
            ["kind", "result"],
            registry=registry,
        )
        self.waiting = Gauge("heph_alerts_waiting", "Alerts that wait for their delivery.", registry=registry)


class DoorMetrics:
    """The ClickHouse HTTP door."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queries = Counter(
            "heph_door_queries",
            "Queries, by result (ok, denied, refused, failed, timed_out).",
            ["result"],
            registry=registry,
        )
        self.seconds = Histogram("heph_door_query_seconds", "Time of one query.", buckets=_FAST_S, registry=registry)
        self.running = Gauge("heph_door_running", "Queries that run.", registry=registry)
        self.waiting = Gauge("heph_door_waiting", "Queries that wait for their turn.", registry=registry)


class ApiMetrics:
    """The operator API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "heph_api_requests", "Requests, by route template and status class.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "heph_api_request_seconds", "Time of one request.", ["route"], buckets=_FAST_S, registry=registry
        )
        self.denied = Counter("heph_api_denied", "Requests without a valid token.", registry=registry)


class LoopMetrics:
    """The loops that app.py keeps running, and the disk that all of them need."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.disk_free_bytes = Gauge(
            "heph_disk_free_bytes", "Free space on the disk of the data folder.", registry=registry
        )
        self.turns = Counter(
            "heph_loop_turns",
            "Turns of a background loop, by loop and result (ok, failed).",
            ["loop", "result"],
            registry=registry,
        )
        self.last_ok = Gauge(
            "heph_loop_last_ok_seconds", "Unix time of a background loop's last good turn.", ["loop"], registry=registry
        )

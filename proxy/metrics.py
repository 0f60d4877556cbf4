"""The proxy's Prometheus metrics. Base units, bounded labels; every bound that is hit is counted.

Each worker has a registry of its own and says so in the label `worker`; `/metrics` serves the worker that answers.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from controlplane.contract.pricing import TOKEN_KINDS, Tokens
from controlplane.contract.records import AttemptRecord, CallRecord

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
BREAKER_LEVELS = {"closed": 0, "half_open": 1, "open": 2}


class ProxyMetrics:
    """All metrics of one worker; children are bound at first use and kept, their label values are closed or from the catalog."""

    def __init__(self, worker: str) -> None:
        self.registry = CollectorRegistry()
        self.worker = worker
        self._calls = self._counter(
            "calls_total", "Calls answered, by how they ended.", "operation", "outcome", "cache"
        )
        self._attempts = self._counter("attempts_total", "Tries on deployments, by error.", "deployment", "error")
        self._tokens = self._counter("tokens_total", "Tokens billed by upstreams, by kind.", "kind")
        self._bounds = self._counter("bound_hits_total", "How often a bound of the settings was reached.", "bound")
        self._breaker = self._gauge(
            "breaker_state", "State of a deployment's breaker: 0 closed, 1 half open, 2 open.", "deployment"
        )
        self._cost = self._counter("cost_nanousd_total", "Cost of all attempts in nano-USD.").labels(worker)
        self.inflight = self._gauge("inflight_calls", "Calls being served now.").labels(worker)
        self.snapshot_version = self._gauge("snapshot_version", "Version of the snapshot in use.").labels(worker)
        self._duration = self._histogram(
            "call_duration_seconds", "Time from the first byte in to the last byte out.", _SECONDS
        )
        self._first_token = self._histogram("first_token_seconds", "Time to the first content of a stream.", _SECONDS)
        self._overhead = self._histogram("overhead_seconds", "Our own part of a call's duration.", _OVERHEAD)
        self._call_children: dict[tuple[str, str, str], Counter] = {}
        self._attempt_children: dict[tuple[str, str], Counter] = {}
        self._bound_children: dict[str, Counter] = {}
        self._token_children = {kind: self._tokens.labels(worker, kind) for kind in TOKEN_KINDS}

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"heph_proxy_{name}", help_, ("worker", *labels), registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"heph_proxy_{name}", help_, ("worker", *labels), registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(f"heph_proxy_{name}", help_, ("worker",), registry=self.registry, buckets=buckets)
        return metric.labels(self.worker)

    def call_settled(self, record: CallRecord) -> None:
        """Counts one settled call."""
        labels = (record.operation, record.outcome.value, record.cache.value)
        child = self._call_children.get(labels)
        if child is None:
            child = self._call_children[labels] = self._calls.labels(self.worker, *labels)
        child.inc()
        self._duration.observe(record.latency_us / 1e6)
        self._overhead.observe(record.overhead_us / 1e6)
        if record.first_token_us:
            self._first_token.observe(record.first_token_us / 1e6)
        if record.cost_nanousd:
            self._cost.inc(record.cost_nanousd)

    def attempt_finished(self, record: AttemptRecord) -> None:
        """Counts one try and its tokens."""
        labels = (record.deployment, record.error.value)
        child = self._attempt_children.get(labels)
        if child is None:
            child = self._attempt_children[labels] = self._attempts.labels(self.worker, *labels)
        child.inc()
        if record.tokens.total:
            self._count_tokens(record.tokens)

    def _count_tokens(self, tokens: Tokens) -> None:
        for kind, child in self._token_children.items():
            count: int = getattr(tokens, kind)
            if count:
                child.inc(count)

    def bound_hit(self, bound: str) -> None:
        """Counts that a bound was reached; bound is the name of its setting or policy."""
        child = self._bound_children.get(bound)
        if child is None:
            child = self._bound_children[bound] = self._bounds.labels(self.worker, bound)
        child.inc()

    def breaker_changed(self, deployment: str, state: str) -> None:
        """Shows a breaker's new state."""
        self._breaker.labels(self.worker, deployment).set(BREAKER_LEVELS[state])

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

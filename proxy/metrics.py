"""The proxy's Prometheus metrics. Base units, bounded labels; every bound that is hit is counted.

On the hot path a metric is a number in a dictionary; Prometheus's own objects are made when somebody looks. Each worker has a
registry of its own and says so in the label `worker`; `/metrics` serves the worker that answers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.contract.pricing import ITEM_KINDS, TOKEN_KINDS, Item, Tokens
from controlplane.contract.records import AttemptRecord, CallRecord

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
_BREAKER_LEVELS = {"closed": 0, "half_open": 1, "open": 2}
_LABELLED = {
    "breaker_openings": (
        "cause",
        "Breakers that opened: for the ratio of errors, a streak of them, slowness, a failed probe, or a failure after another worker's word.",
    ),
    "fallbacks": ("kind", "Calls that another model was asked to serve."),
    "hedges": ("result", "Late calls of hedged routes: which try won, or why there was no second one."),
    "loops_failed": (
        "loop",
        "Failures of a loop that the worker lives by, which was begun again: bugs of ours; the log has them.",
    ),
    "refused_requests": (
        "code",
        "Requests that became no call and left no record, by the refusal that they got: no such path, a wrong method, no snapshot yet.",
    ),
    "shed_calls": ("priority", "Calls refused because every place was taken and nobody worse waited."),
}


class _Times:
    """A histogram of durations, in microseconds until it is shown."""

    __slots__ = ("_bounds_us", "counts", "sum_us")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_us = tuple(round(bound * 1_000_000) for bound in bounds_s)
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_us = 0

    def observe(self, value_us: int) -> None:
        self.counts[bisect_left(self._bounds_us, value_us)] += 1
        self.sum_us += value_us

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound_us, count in zip((*self._bounds_us, None), self.counts, strict=True):
            total += count
            rows.append(("+Inf" if bound_us is None else repr(bound_us / 1_000_000), total))
        return rows


class ProxyMetrics(Collector):
    """All metrics of one worker. Label values are closed sets or come from the catalog.

    watch: adds a figure that somebody else keeps, read when it is shown.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._calls: dict[tuple[str, str, str], int] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._tokens = dict.fromkeys(TOKEN_KINDS, 0)
        self._cost_nanousd = 0
        self._saved_nanousd = 0
        self._items = dict.fromkeys(ITEM_KINDS, 0)
        self._unpriced_items = dict.fromkeys(ITEM_KINDS, 0)
        self._bounds: dict[str, int] = {}
        self._breakers: dict[str, int] = {}
        self._labelled: dict[tuple[str, str], int] = {}
        self._duration = _Times(_SECONDS)
        self._first_token = _Times(_SECONDS)
        self._overhead = _Times(_OVERHEAD_SECONDS)
        self._watched: list[tuple[str, str, Callable[[], float], bool]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def call_settled(self, record: CallRecord) -> None:
        """Counts one settled call."""
        labels = (record.operation, record.outcome, record.cache)
        self._calls[labels] = self._calls.get(labels, 0) + 1
        self._duration.observe(record.latency_us)
        self._overhead.observe(record.overhead_us)
        if record.first_token_us:
            self._first_token.observe(record.first_token_us)
        self._cost_nanousd += record.cost_nanousd
        self._saved_nanousd += record.saved_nanousd

    def attempt_finished(self, record: AttemptRecord) -> None:
        """Counts one try and its tokens."""
        labels = (record.deployment, record.error)
        self._attempts[labels] = self._attempts.get(labels, 0) + 1
        tokens, counts = record.tokens, self._tokens
        counts["input"] += tokens.input
        counts["output"] += tokens.output
        if tokens.special:
            for kind in TOKEN_KINDS:
                if kind not in ("input", "output"):
                    counts[kind] += getattr(tokens, kind)

    def tokens_found(self, tokens: Tokens) -> None:
        """Counts tokens of a try that was counted before they were known."""
        for kind in TOKEN_KINDS:
            self._tokens[kind] += getattr(tokens, kind)

    def items_found(self, items: tuple[Item, ...]) -> None:
        """Counts what upstreams bill that is no token."""
        for item in items:
            counts = self._items if item.nanousd is not None else self._unpriced_items
            counts[item.kind] += item.micros

    def bound_hit(self, bound: str) -> None:
        """Counts that a bound was reached; bound is the name of its setting or policy."""
        self._bounds[bound] = self._bounds.get(bound, 0) + 1

    def breaker_changed(self, deployment: str, state: str, cause: str = "") -> None:
        """Shows a breaker's new state; cause: what opened it, counted when it opens."""
        self._breakers[deployment] = _BREAKER_LEVELS[state]
        if state == "open":
            self._count("breaker_openings", cause)

    def fell_back(self, kind: str) -> None:
        """Counts a call that another model was asked to serve."""
        self._count("fallbacks", kind)

    def hedge_ended(self, result: str) -> None:
        """Counts a late call: which try won, or why there was no second one."""
        self._count("hedges", result)

    def call_shed(self, priority: str) -> None:
        """Counts a call that was refused because there was too much to do."""
        self._count("shed_calls", priority)

    def loop_failed(self, name: str) -> None:
        """Counts that a loop which must not end has failed."""
        self._count("loops_failed", name)

    def request_refused(self, code: str) -> None:
        """Counts a request that became no call, by the code of its refusal."""
        self._count("refused_requests", code)

    def _count(self, name: str, label: str) -> None:
        self._labelled[(name, label)] = self._labelled.get((name, label), 0) + 1

    def forget_breaker(self, deployment: str) -> None:
        """The deployment is no longer in the catalog."""
        self._breakers.pop(deployment, None)

    def watch(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Shows a figure kept elsewhere; a name that ends in `_total` is a counter, any other a gauge."""
        self._watched.append((name, help_, read, name.endswith("_total")))

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Prometheus's own objects, made for one look."""
        worker = self._worker
        calls = _counter("calls", "Calls answered, by how they ended.", "operation", "outcome", "cache")
        for (operation, outcome, cache), count in self._calls.items():
            calls.add_metric([worker, operation, outcome, cache], count)
        attempts = _counter(
            "attempts", "Tries on deployments, by error; no error means success.", "deployment", "error"
        )
        for (deployment, error), count in self._attempts.items():
            attempts.add_metric([worker, deployment, error], count)
        tokens = _counter("tokens", "Tokens billed by upstreams, by kind.", "kind")
        for kind, count in self._tokens.items():
            tokens.add_metric([worker, kind], count)
        bounds = _counter(
            "bound_hits", "How often a bound of the settings or of a tenant's policy was reached.", "bound"
        )
        for bound, count in self._bounds.items():
            bounds.add_metric([worker, bound], count)
        cost = _counter("cost_nanousd", "Cost of all attempts, in nano-USD.")
        cost.add_metric([worker], self._cost_nanousd)
        saved = _counter("saved_nanousd", "What stored and shared answers would have cost, in nano-USD.")
        saved.add_metric([worker], self._saved_nanousd)
        items = _counter("items", "What upstreams bill one by one, beside tokens or instead of them, by kind.", "kind")
        unpriced = _counter(
            "unpriced_items", "The same where the price does not know the kind: they bill more than is booked.", "kind"
        )
        for shown, found in ((items, self._items), (unpriced, self._unpriced_items)):
            for kind, micros in found.items():
                shown.add_metric([worker, kind], micros / 1_000_000)
        breakers = _gauge(
            "breaker_state", "State of a deployment's breaker: 0 closed, 1 half open, 2 open.", "deployment"
        )
        for deployment, level in self._breakers.items():
            breakers.add_metric([worker, deployment], level)
        yield from (calls, attempts, tokens, bounds, cost, saved, items, unpriced, breakers)
        for name, (label, help_) in _LABELLED.items():
            labelled = _counter(name, help_, label)
            for (counted, value), count in self._labelled.items():
                if counted == name:
                    labelled.add_metric([worker, value], count)
            yield labelled
        yield self._histogram(
            "call_duration_seconds", "Time from a call's first byte in to its settlement.", self._duration
        )
        yield self._histogram("first_token_seconds", "Time to the first content of a stream.", self._first_token)
        yield self._histogram("overhead_seconds", "Our own part of a call's duration.", self._overhead)
        for name, help_, read, counts_up in self._watched:
            family = _counter(name.removesuffix("_total"), help_) if counts_up else _gauge(name, help_)
            family.add_metric([worker], read())
            yield family

    def _histogram(self, name: str, help_: str, times: _Times) -> HistogramMetricFamily:
        family = HistogramMetricFamily(f"heph_proxy_{name}", help_, labels=["worker"])
        family.add_metric([self._worker], times.buckets(), times.sum_us / 1_000_000)
        return family


def _counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"heph_proxy_{name}", help_, labels=["worker", *labels])


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"heph_proxy_{name}", help_, labels=["worker", *labels])

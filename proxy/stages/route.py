"""Where to: the alias's deployments in the order in which they are to be tried, and until when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import ClassVar

from controlplane.contract.snapshot import LeaseKind
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.runtime import Candidate, RouteEntry


class RouteStage:
    """Weighted choice among the first live deployments, the others behind them as fallbacks.

    A drained deployment gets no calls but the probes of its breaker. When all are drained the drains are ignored: a call that may
    fail is better than one that must. A deployment with a share is demoted to a fallback often enough to keep it.

    probe_due: whether a deployment's breaker wants a probe; draw: uniform in [0, 1).
    """

    name: ClassVar[str] = "route"

    def __init__(
        self,
        metrics: ProxyMetrics,
        *,
        timeout_s_max: float,
        probe_due: Callable[[str], bool],
        draw: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._metrics = metrics
        self._timeout_s_max = timeout_s_max
        self._probe_due = probe_due
        self._draw = draw
        self._monotonic = monotonic
        self._now_us = now_us

    def enter(self, call: Call) -> Reply | None:
        """Refuses an alias that has no route, and a timeout that is no number."""
        assert call.view is not None, "decode comes first"  # noqa: S101
        entry = call.runtime.routes.get(call.view.model)
        if entry is None or not entry.groups:
            message = f"there is no model `{call.view.model[:128]}`; GET /v1/models lists those that are there"
            return refuse(refusals.NO_ROUTE, message, param="model")
        if call.operation not in entry.serves:
            narrowed = entry.narrowed.get(call.operation)
            if narrowed is None:
                message = f"model `{call.view.model[:128]}` does not serve {call.operation}: none of its upstreams does"
                return refuse(refusals.NO_ROUTE, message, param="model")
            entry = narrowed
        timeout_s = min(entry.route.timeout_s, self._timeout_s_max)
        asked = call.headers.get(b"x-heph-timeout-ms")
        if asked is not None:
            if not asked.isdigit() or len(asked) > 9 or int(asked) == 0:
                return refuse(refusals.MALFORMED, "x-heph-timeout-ms must be a positive number of milliseconds")
            timeout_s = min(timeout_s, int(asked) / 1000)
        call.deadline = self._monotonic() + timeout_s
        call.route = entry
        call.candidates = entry.plain if entry.plain is not None else self._order(entry)
        return None

    def leave(self, call: Call) -> None:
        """Nothing was taken."""

    def _order(self, entry: RouteEntry) -> tuple[Candidate, ...]:
        now_us = self._now_us()
        probes: list[Candidate] = []
        first: list[Candidate] = []
        fallbacks: list[Candidate] = []
        demoted: list[Candidate] = []
        for group in entry.groups:
            live: list[Candidate] = []
            for candidate in group:
                lease = candidate.lease
                if lease is None or lease.expires_us <= now_us:
                    live.append(candidate)
                elif lease.kind is LeaseKind.SHARE:
                    (live if self._draw() < lease.share else demoted).append(candidate)
                elif self._probe_due(candidate.deployment.id):
                    probes.append(candidate)
            if first:
                fallbacks.extend(live)
            else:
                first = self._by_weight(live)
        ordered = (*probes, *first, *fallbacks, *demoted)
        if first or demoted:
            return ordered
        self._metrics.bound_hit("all_drained")
        return tuple(candidate for group in entry.groups for candidate in self._by_weight(list(group)))

    def _by_weight(self, group: list[Candidate]) -> list[Candidate]:
        """One drawn by weight, the others behind it, heaviest first."""
        if len(group) < 2:
            return group
        total = sum(max(0, candidate.deployment.weight) for candidate in group)
        if total == 0:
            return group
        at = self._draw() * total
        chosen = group[-1]
        for candidate in group:
            at -= max(0, candidate.deployment.weight)
            if at < 0:
                chosen = candidate
                break
        rest = sorted((item for item in group if item is not chosen), key=lambda item: -item.deployment.weight)
        return [chosen, *rest]

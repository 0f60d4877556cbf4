"""Copies of answered calls: to a route's shadow, and to a sick deployment that no call would otherwise probe.

A copy is sent after its call was answered, so it delays nobody; its reply is read to the end and thrown away. It leaves a record of its own,
with the tag `heph-shadow` (`copy` or `probe`), the original's id in `heph-shadow-of` and the agent `hephaestus`, but without a tenant: its
cost is real and in every total, and in nobody's budget.

A failover target gets no calls while the first deployment is healthy, so without these probes a breaker that has once opened there would stay
open until it is needed, and be seen as trouble for as long.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection
from typing import Protocol

from controlplane.contract.ids import new_id
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, CallRecord, Outcome
from proxy import meter
from proxy.call import Call, Reply, StreamBroken
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate
from proxy.transports.attempt import Attempt, AttemptFailed, AttemptTransport
from proxy.transports.breaker import BreakerOpen
from proxy.transports.concurrency import Saturated

# Asked twice, these change nothing anywhere but the bill.
_REPEATABLE = frozenset(("chat", "completions", "messages", "embeddings", "moderations"))
_AGENT = "hephaestus"  # as the control plane's own probes
_TAG, _OF = "heph-shadow", "heph-shadow-of"


class Records(Protocol):
    """Where settled calls go: the spool."""

    def append(self, record: CallRecord) -> bool:
        """Keeps the record; False when it had to be dropped, which is counted there."""
        ...


class Shadow:
    """Sends copies, a bounded number at once.

    sick: deployments whose breaker is not closed; probe_due: whether one of them wants a probe. draw: uniform in [0, 1).
    """

    def __init__(
        self,
        inner: AttemptTransport,
        records: Records,
        settings: ProxySettings,
        metrics: ProxyMetrics,
        *,
        sick: Collection[str],
        probe_due: Callable[[str], bool],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._records = records
        self._settings = settings
        self._metrics = metrics
        self._sick = sick
        self._probe_due = probe_due
        self._draw = draw
        self._running: set[asyncio.Task[None]] = set()
        self.sent_total = 0

    @property
    def running(self) -> int:
        """Copies that run now."""
        return len(self._running)

    def copy(self, call: Call) -> None:
        """Sends an answered call once more, where its route or a sick deployment wants that. Never waits."""
        entry = call.route
        if entry is None or call.operation not in _REPEATABLE or call.view is None:
            return
        shadow = entry.route.shadow
        asked = bool(call.attempts)  # a stored or shared answer is no news, and its copy would be paid all the same
        if asked and shadow is not None and entry.shadow is not None and self._draw() < shadow.ratio:
            self._start(call, entry.shadow, "copy")
        if self._sick and call.runtime.snapshot.breaker.probe_idle:
            for group in entry.groups:
                for candidate in group:
                    name = candidate.deployment.id
                    if (
                        name in self._sick
                        and self._probe_due(name)
                        and name not in {a.deployment for a in call.attempts}
                    ):
                        self._start(call, candidate, "probe")

    async def aclose(self) -> None:
        """Ends the copies that run; safe to call twice."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, call: Call, candidate: Candidate, kind: str) -> None:
        if candidate.endpoint is None or call.operation not in candidate.endpoint.wires:
            return
        if len(self._running) >= self._settings.shadow_calls_max:
            self._metrics.bound_hit("shadow_calls_max")
            return
        task = asyncio.get_running_loop().create_task(self._run(_copy_of(call, candidate, kind), candidate))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, call: Call, candidate: Candidate) -> None:
        attempt = Attempt(call, candidate, metrics=self._metrics, tokens_per_s=self._settings.abandoned_tokens_per_s)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + call.deadline - time.monotonic()):
                reply = await self._inner.send(attempt)
                call.reply, call.status = reply, reply.status
                await _read(reply)
                call.outcome = Outcome.OK
        except (BreakerOpen, Saturated):
            return  # nothing was tried
        except AttemptFailed as failure:
            attempt.fail(failure)
            call.outcome, call.error_code = Outcome.EXHAUSTED, "exhausted"
            call.status = attempt.status
        except StreamBroken as broken:
            call.outcome, call.error_code = broken.outcome, "broken_stream"
        except (TimeoutError, asyncio.CancelledError):
            attempt.finish(AttemptError.CANCELLED)
            call.outcome, call.error_code = Outcome.TIMED_OUT, "timed_out"
        finally:
            if call.reply is not None and call.reply.stream is not None:
                call.reply.stream.close()
            if attempt.judge is not None:  # whatever happened, its place and its probe are given back
                attempt.finish(AttemptError.CANCELLED)
        self.sent_total += 1
        meter.sum_up(call)
        record = meter.record_of(call)
        self._records.append(record)
        self._metrics.call_settled(record)


async def _read(reply: Reply) -> None:
    """Reads a stream to its end, for its usage."""
    stream = reply.stream
    while stream is not None and await stream.read():
        pass


def _copy_of(call: Call, candidate: Candidate, kind: str) -> Call:
    """The same request as nobody's call."""
    headers = {name: value for name, value in call.headers.items() if name != b"idempotency-key"}
    copy = Call(
        call.runtime,
        call.operation,
        call.path,
        headers,
        call.body,
        call_id=new_id("call"),
        started_us=time.time_ns() // 1000,
        started_ns=time.monotonic_ns(),
    )
    copy.query, copy.view, copy.output_ceiling = call.query, call.view, call.output_ceiling
    copy.route, copy.candidates = call.route, (candidate,)
    timeout_s = 120.0 if call.route is None else call.route.route.timeout_s
    copy.deadline = time.monotonic() + timeout_s
    copy.agent = _AGENT
    copy.tags = {_TAG: kind, _OF: call.call_id}
    return copy

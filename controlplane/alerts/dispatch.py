"""Sends what waits in the outbox: at least once, each time under the same id, by a schedule, never faster than a sink wants."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import msgspec
import structlog

from controlplane.alerts.alert import ALERTS_PREFIX, AlertSink, Notification
from controlplane.alerts.sinks.base import Delivery, Result, Sink
from controlplane.alerts.sinks.webhook import WebhookSink
from controlplane.clock import US_PER_S, Clock
from controlplane.errors import ConfigError, HephaestusError
from controlplane.journal.events import Codec, NewEvent, OutboxEntry
from controlplane.journal.journal import Journal
from controlplane.metrics import AlertMetrics
from controlplane.settings import AlertSettings

STREAM = "alerts"
SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0)  # Standard Webhooks; the settings cap each wait
JITTER = 0.2
BATCH_MAX = 50  # of one sink in one turn
_RESULTS = ("ok", "retried", "given_up")

log = structlog.get_logger(__name__)


class SinkDisabled(msgspec.Struct, frozen=True, tag="alert.sink_disabled"):
    """A receiver said that it wants no more (410); it is tried again when its address changes."""

    sink: str
    address: str
    reason: str


def make_sinks(configs: Iterable[AlertSink], settings: AlertSettings, clock: Clock) -> tuple[Sink, ...]:
    """The sinks of a configuration; raises ConfigError for a kind that there is not, and for a name that is there twice."""
    sinks: list[Sink] = []
    for config in configs:
        if config.kind != "webhook":
            raise ConfigError.at("alerts", f"sink `{config.name}` has the unknown kind `{config.kind}`", hint="webhook")
        if any(sink.name == config.name for sink in sinks):
            raise ConfigError.at("alerts", f"two sinks have the name `{config.name}`")
        sinks.append(WebhookSink(config, timeout_s=settings.timeout_s, now_us=clock.now_us))
    return tuple(sinks)


class Dispatcher:
    """Looks at the outbox and delivers. One at a time looks after a journal."""

    def __init__(
        self,
        journal: Journal,
        sinks: Iterable[Sink],
        settings: AlertSettings,
        *,
        clock: Clock,
        metrics: AlertMetrics,
        chance: random.Random | None = None,
    ) -> None:
        self._journal = journal
        self._sinks: dict[str, Sink] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._wanted: tuple[Sink, ...] | None = tuple(sinks)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._chance = random.Random() if chance is None else chance
        self._codec: Codec[SinkDisabled] = Codec(SinkDisabled)

    def use(self, sinks: Iterable[Sink]) -> None:
        """Deliver to other sinks from the next turn on, which also closes the ones before."""
        self._wanted = tuple(sinks)

    async def run(self) -> None:
        """Turn for ever, until cancelled."""
        while True:
            try:
                await self.turn()
            except HephaestusError as error:  # the journal is away: all messages are still in it
                log.warning("alerts must wait", reason=error.message)
            await self._clock.sleep(self._settings.poll_every_s)

    async def turn(self) -> int:
        """Try everything that is due; how many tries there were."""
        await self._take_wanted()
        now_us = self._clock.now_us()
        self._metrics.waiting.set(await asyncio.to_thread(self._journal.outbox_waiting, ALERTS_PREFIX))
        due = await asyncio.to_thread(self._journal.due_outbox, now_us, 1, sink_prefix=ALERTS_PREFIX)
        if not due:
            return 0
        disabled = await asyncio.to_thread(self._disabled)
        tried = await asyncio.gather(*(self._serve(sink, now_us, disabled) for sink in self._sinks.values()))
        await self._give_up_unknown(now_us)
        return sum(tried)

    async def _take_wanted(self) -> None:
        """Change to the sinks that `use` was given; a sink that keeps its rate keeps its bucket."""
        if self._wanted is None:
            return
        before, self._sinks, self._wanted = self._sinks, {sink.name: sink for sink in self._wanted}, None
        for sink in self._sinks.values():
            for result in _RESULTS:  # there from 0 on, so that an alarm sees the first one grow
                self._metrics.deliveries.labels(kind=sink.kind, result=result)
        self._buckets = {
            name: self._buckets[name]
            if name in before and before[name].per_minute == sink.per_minute
            else _Bucket(sink.per_minute, self._clock)
            for name, sink in self._sinks.items()
        }
        for sink in before.values():
            await sink.aclose()

    async def aclose(self) -> None:
        """Close all sinks."""
        await self._take_wanted()
        for sink in self._sinks.values():
            await sink.aclose()

    async def _serve(self, sink: Sink, now_us: int, disabled: set[tuple[str, str]]) -> int:
        """Deliver what is due for one sink, in order, as far as its rate allows."""
        tried = 0
        entries = await asyncio.to_thread(self._journal.due_outbox, now_us, BATCH_MAX, sink=ALERTS_PREFIX + sink.name)
        for entry in entries:
            if (sink.name, sink.address) in disabled:
                await self._dead(entry, sink.kind, "the receiver wants no more (410)")
                continue
            if not self._buckets[sink.name].take():
                break
            tried += 1
            result = await self._try(sink, entry)
            if result is Result.RETRY:
                break  # it is down or hangs: one wait a turn, so that the other sinks' turns come soon
            if result is Result.GONE:
                disabled.add((sink.name, sink.address))
        return tried

    async def _try(self, sink: Sink, entry: OutboxEntry) -> Result:
        try:
            notification = msgspec.json.decode(entry.payload, type=Notification)
        except msgspec.MsgspecError as error:
            await self._dead(entry, sink.kind, f"it cannot be read: {error}")
            return Result.REFUSED
        delivery = await sink.deliver(entry.id, notification)
        if delivery.result is Result.OK:
            await asyncio.to_thread(self._journal.mark_sent, entry.row)
            self._metrics.deliveries.labels(kind=sink.kind, result="ok").inc()
        elif delivery.result is Result.GONE:
            event = SinkDisabled(sink=sink.name, address=sink.address, reason=delivery.detail)
            await asyncio.to_thread(self._journal.append, STREAM, None, [NewEvent(event, actor="alerts")])
            await self._dead(entry, sink.kind, delivery.detail)
        elif delivery.result is Result.REFUSED or entry.attempts + 1 >= self._settings.attempts_max:
            await self._dead(entry, sink.kind, delivery.detail)
        else:
            next_try_us = self._clock.now_us() + round(self._wait_s(entry, delivery) * US_PER_S)
            await asyncio.to_thread(self._journal.mark_failed, entry.row, next_try_us, delivery.detail)
            self._metrics.deliveries.labels(kind=sink.kind, result="retried").inc()
        return delivery.result

    def _wait_s(self, entry: OutboxEntry, delivery: Delivery) -> float:
        """The wait before the next try: the schedule's, capped and spread, but never less than the receiver asked for."""
        planned_s = min(SCHEDULE_S[min(entry.attempts, len(SCHEDULE_S) - 1)], self._settings.retry_s_max)
        spread_s = planned_s * (1 + JITTER * (2 * self._chance.random() - 1))
        return max(spread_s, delivery.retry_after_s or 0.0)

    async def _dead(self, entry: OutboxEntry, kind: str, reason: str) -> None:
        await asyncio.to_thread(self._journal.mark_dead, entry.row, reason)
        self._metrics.deliveries.labels(kind=kind, result="given_up").inc()
        log.error(
            "an alert was given up", sink=entry.sink, message=entry.id, attempts=entry.attempts + 1, reason=reason
        )

    async def _give_up_unknown(self, now_us: int) -> None:
        """Messages for sinks that are no longer configured are given up, so that they do not wait for ever."""
        entries = await asyncio.to_thread(self._journal.due_outbox, now_us, BATCH_MAX, sink_prefix=ALERTS_PREFIX)
        for entry in entries:
            if entry.sink.removeprefix(ALERTS_PREFIX) not in self._sinks:
                await self._dead(entry, "unknown", "the sink is no longer configured")

    def _disabled(self) -> set[tuple[str, str]]:
        found = (self._codec.decode(event) for event in self._journal.load(STREAM))
        return {(event.sink, event.address) for event in found}


class _Bucket:
    """A token bucket: a minute's worth at most, refilled evenly."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._clock = clock
        self._per_s = per_minute / 60
        self._most = float(per_minute)
        self._tokens = self._most
        self._filled = clock.monotonic()

    def take(self) -> bool:
        """Take one token; False when there is none."""
        now = self._clock.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._per_s)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

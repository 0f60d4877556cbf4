"""From spooled batches to rows: what the proxies report is stored exactly once, however often it is sent.

A batch goes to its tables one after the other, each insert under a token made of the batch's; at the end the batch is marked as stored.
A batch that is marked is left out. One that was cut short anywhere is simply sent again: the tables that have it drop the repetition
and the rest is filled in, roll-ups included. The first batch of each proxy after a start or an error is counted as well, see `store.repair`.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import zlib
from collections import OrderedDict

import msgspec
import structlog

from controlplane.clock import US_PER_S, Clock
from controlplane.contract import wire
from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.errors import HephaestusError, TooLarge, TooMany
from controlplane.metrics import IngestMetrics
from controlplane.settings import IngestSettings
from controlplane.store import schema
from controlplane.store.client import Store, UnfitValue
from controlplane.store.repair import Repaired, make_whole
from controlplane.store.rows import Batch, Columns, batch_rows, breaker_columns, proxy_status_columns

TOKEN_CHARACTERS_MAX = 200
_FRAME_HEADER = struct.Struct("<II")


class PoisonBatch(HephaestusError):
    """A batch that can never be stored; sending it again will not help."""

    code = "poison_batch"
    status = 422


class IngestResult(msgspec.Struct, frozen=True):
    """What became of a batch. duplicate: it was stored before. torn_bytes: cut off at its end, never settled by its proxy. repaired: it was there in part."""

    token: str
    records: int
    duplicate: bool = False
    torn_bytes: int = 0
    repaired: bool = False


class Ingest:
    """Stores batches one at a time, and what proxies say about themselves."""

    def __init__(
        self, store: Store, *, clock: Clock, metrics: IngestMetrics, limits: IngestSettings | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._limits = limits or IngestSettings()
        self._turn = asyncio.Lock()
        self._storing = threading.Lock()  # a cancelled request gives its turn up while its thread is still at work
        self._waiting = 0
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._trusted: OrderedDict[str, None] = OrderedDict()  # proxies whose last batch went in without trouble

    async def accept(self, token: str, body: bytes) -> IngestResult:
        """Stores a batch; when this returns it is stored completely, now or before.

        Raises TooLarge or PoisonBatch when it never can be, StoreUnavailable or TooMany when it should be sent again later.
        """
        if self._waiting >= self._limits.waiting_max:
            self._metrics.batches.labels("refused").inc()
            raise TooMany("too many batches wait to be stored; send it again later")
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        arrived = self._clock.monotonic()
        try:
            self._check(token, body)
            async with self._turn:
                result = await self._store.run(self._store_alone, token, body)
        except (PoisonBatch, TooLarge):
            self._metrics.batches.labels("refused").inc()
            raise
        except HephaestusError:
            self._metrics.batches.labels("failed").inc()
            raise
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)
        self._metrics.seconds.observe(self._clock.monotonic() - arrived)
        self._count(result, len(body))
        return result

    def _check(self, token: str, body: bytes) -> None:
        """Raises for what is not worth reading."""
        if not 0 < len(token) <= TOKEN_CHARACTERS_MAX or not token.isprintable():
            raise PoisonBatch(f"a batch needs a token of 1 to {TOKEN_CHARACTERS_MAX} printable characters")
        if len(body) > self._limits.batch_bytes_max:
            raise TooLarge(f"batch {token} has {len(body)} bytes; at most {self._limits.batch_bytes_max} are taken")

    def _store_alone(self, token: str, body: bytes) -> IngestResult:
        with self._storing:
            return self._store_batch(token, body)

    def _store_batch(self, token: str, body: bytes) -> IngestResult:
        """Blocking. Each step may be repeated; the last one says that all are done."""
        stored = self._store.columns(
            "SELECT records FROM batches WHERE token = {token:String} LIMIT 1", {"token": token}
        )
        if stored:
            return IngestResult(token, int(str(stored[0][0])), duplicate=True)
        records, torn_bytes = read_batch(token, body)
        proxy = token.rpartition("/")[0]
        trusted = proxy in self._trusted
        self._trusted.pop(proxy, None)  # until this batch is in as well
        try:
            batch = batch_rows(records, token=token, body_bytes=len(body))
            plan = steps(batch)
            for table, columns in plan:
                self._store.insert(table, columns, token=f"{token}:{table.name}")
        except UnfitValue as error:
            raise PoisonBatch(f"batch {token} cannot be stored: {error.message}") from error
        repaired = Repaired() if trusted else make_whole(self._store, plan, token=token)
        if repaired != Repaired():
            _log().warning("batch_repaired", batch=token, rows=repaired.rows, minutes=repaired.minutes)
        self._trusted[proxy] = None
        while len(self._trusted) > self._limits.proxies_max:
            self._trusted.popitem(last=False)
        if records:
            ended_us = min(record.started_us + record.latency_us for record in records)
            self._metrics.lag_s.set(max(0.0, (self._clock.now_us() - ended_us) / US_PER_S))
        return IngestResult(token, batch.records, torn_bytes=torn_bytes, repaired=repaired != Repaired())

    def _count(self, result: IngestResult, body_bytes: int) -> None:
        self._metrics.batches.labels("repeated" if result.duplicate else "stored").inc()
        self._metrics.bytes.inc(body_bytes)
        if result.duplicate:
            return
        self._metrics.records.inc(result.records)
        self._metrics.torn_bytes.inc(result.torn_bytes)
        self._metrics.repaired.inc(result.repaired)
        if result.torn_bytes:
            _log().warning("batch_torn", batch=result.token, torn_bytes=result.torn_bytes)

    async def status(self, status: ProxyStatus) -> int:
        """Stores what is new in a proxy's status, and all of it once in a while; returns the rows written."""
        told = self._told.setdefault(status.proxy_id, _Told())
        self._told.move_to_end(status.proxy_id)
        while len(self._told) > self._limits.proxies_max:
            self._told.popitem(last=False)
            self._metrics.statuses_forgotten.inc()
        now = self._clock.monotonic()
        due = now >= told.due
        changed = [b for b in status.breakers if due or told.states.get(b.deployment) != b.state]
        itself = (status.snapshot_version, status.lease_ids)
        says = due or told.itself != itself
        if not changed and not says:
            return 0
        await self._store.run(self._store_status, status, changed, says)
        told.states = {b.deployment: b.state for b in status.breakers}
        told.itself = itself
        if due:
            told.due = now + self._limits.status_every_s
        return len(changed) + says

    def _store_status(self, status: ProxyStatus, changed: list[BreakerStatus], itself: bool) -> None:  # noqa: FBT001
        """Blocking."""
        if changed:
            self._store.insert(schema.DEPLOYMENT_STATUS, breaker_columns(status, changed))
        if itself:
            self._store.insert(schema.PROXY_STATUS, proxy_status_columns(status))


class _Told:
    """What a proxy last said that was stored."""

    __slots__ = ("due", "itself", "states")

    def __init__(self) -> None:
        self.due = float("-inf")
        self.states: dict[str, str] = {}
        self.itself: tuple[int, tuple[str, ...]] = (-1, ())


def _log() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("ingest")
    return logger


def steps(batch: Batch) -> list[tuple[schema.Table, Columns]]:
    """The inserts of a batch in their order, the mark that it is stored last."""
    facts = [(schema.CALLS, batch.calls), (schema.ATTEMPTS, batch.attempts), (schema.PAYLOADS, batch.payloads)]
    return [(table, columns) for table, columns in facts if columns[0]] + [(schema.BATCHES, batch.summary)]


def read_batch(token: str, body: bytes) -> tuple[list[CallRecord], int]:
    """The records of a batch, and how many bytes at its end are no whole record.

    A tail that was cut by a crash is left out, as its proxy never counted it as settled. Raises PoisonBatch when nothing can be read, or
    when a record is whole but says something this version does not understand.
    """
    records: list[CallRecord] = []
    ends = [0]
    try:
        for end, record in wire.frames(body):
            records.append(record)
            ends.append(end)
    except (wire.TornFrame, msgspec.DecodeError) as error:
        if _is_whole_frame(body, ends[-1]):
            reason = error.__cause__ or error
            raise PoisonBatch(
                f"batch {token} holds a record at byte {ends[-1]} that this version cannot read: {reason}"
            ) from error
        if not records:
            raise PoisonBatch(f"batch {token} holds no whole record") from error
    return records, len(body) - ends[-1]


def _is_whole_frame(body: bytes, at: int) -> bool:
    """Whether the bytes from `at` are a frame as it was written, so that only its content can be wrong.

    A frame of nothing is none: it is what a file system leaves where the power went.
    """
    if at + _FRAME_HEADER.size > len(body):
        return False
    length, checksum = _FRAME_HEADER.unpack_from(body, at)
    payload = body[at + _FRAME_HEADER.size : at + _FRAME_HEADER.size + length]
    return bool(0 < len(payload) == length <= wire.RECORD_BYTES_MAX and zlib.crc32(payload) == checksum)

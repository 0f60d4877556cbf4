"""The journal: append with an expected version, load, read, and verify.

Every method blocks for a short while and may be called from any thread; asynchronous callers use `asyncio.to_thread`. Several processes may
have one journal open: a writer takes the database's write lock for the length of one append.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import msgspec
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, Engine, Row, func, select
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from controlplane.contract.ids import new_id
from controlplane.errors import JournalUnavailable
from controlplane.journal import outbox as outbox_rows
from controlplane.journal import timers as timer_rows
from controlplane.journal.connect import WRITES, connect
from controlplane.journal.events import (
    AppendResult,
    ChainBroken,
    ChainHead,
    Event,
    Guard,
    JournalError,
    NewEvent,
    NewOutbox,
    NewTimer,
    OutboxEntry,
    Timer,
    VersionConflict,
    tag_of,
)
from controlplane.journal.metrics import JournalMetrics
from controlplane.journal.tables import CHECKPOINTS, COMMAND_DEDUP, EVENTS

_GENESIS = bytes(32)
_PAGE = 1000


class _Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    actor: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    tenant: str = ""


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_meta = msgspec.json.Decoder(_Meta).decode


class Journal:
    """An append-only store of events in streams, with what must happen because of them (timers, outbox, guards)."""

    def __init__(
        self, engine: Engine, *, now_us: Callable[[], int], metrics: JournalMetrics, write_wait_s: float
    ) -> None:
        self._engine = engine
        self._now_us = now_us
        self._metrics = metrics
        self._write_wait_s = write_wait_s
        self._writing = threading.Lock()  # one writer per process: SQLite's own lock is not fair among threads

    @classmethod
    def open(
        cls,
        url: str,
        *,
        now_us: Callable[[], int] | None = None,
        registry: CollectorRegistry | None = None,
        busy_timeout_s: float = 30.0,
    ) -> Self:
        """Open the journal at `url`, making or migrating its tables.

        now_us: the clock for events without a moment of their own; the system's if None.
        """
        engine = connect(url, busy_timeout_s=busy_timeout_s)
        metrics = JournalMetrics(CollectorRegistry() if registry is None else registry)
        return cls(engine, now_us=now_us or _system_us, metrics=metrics, write_wait_s=busy_timeout_s)

    def close(self) -> None:
        """Close all connections; calling it twice is harmless."""
        self._engine.dispose()

    def append(
        self,
        stream_id: str,
        expected_version: int | None,
        events: Sequence[NewEvent],
        *,
        dedup_key: str | None = None,
        outbox: Sequence[NewOutbox] = (),
        timers: Sequence[NewTimer] = (),
        timers_done: Sequence[str] = (),
        guards: Sequence[Guard] = (),
        guards_released: Sequence[str] = (),
    ) -> AppendResult:
        """Append events to a stream, together with all else, in one transaction: all of it happens or nothing.

        expected_version: what the stream must be at (0: must not exist yet); None: wherever it is.
        dedup_key: of the command; a second append with it changes nothing and returns the first one's result.
        guards_released: holders whose tokens are given back, before `guards` are taken.
        Raises VersionConflict or GuardRefused, with nothing changed, and JournalUnavailable as every method does.
        """
        if not events:
            raise JournalError(f"an append to {stream_id!r} needs at least one event")
        now_us = self._now_us()
        with self._metrics.append_seconds.time(), self._write() as connection:
            known = None if dedup_key is None else _known_command(connection, dedup_key)
            if known is not None:
                return known
            version = _version(connection, stream_id)
            if expected_version is not None and expected_version != version:
                self._metrics.conflicts.inc()
                raise VersionConflict(stream_id, expected=expected_version, actual=version)
            timer_rows.release_guards(connection, guards_released)
            timer_rows.acquire_guards(connection, guards, now_us=now_us)
            result = _insert(connection, stream_id, version, events, now_us=now_us)
            timer_rows.remove_timers(connection, timers_done)
            timer_rows.set_timers(connection, stream_id, timers)
            outbox_rows.insert(connection, outbox, global_pos=result.global_pos, now_us=now_us)
            if dedup_key is not None:
                connection.execute(
                    COMMAND_DEDUP.insert().values(
                        key=dedup_key,
                        stream_id=stream_id,
                        version=result.version,
                        global_pos=result.global_pos,
                        created_us=now_us,
                    )
                )
        self._metrics.events.inc(len(events))
        return result

    def load(self, stream_id: str, after_version: int = 0) -> list[Event]:
        """All events of a stream after a version, oldest first; empty if there are none."""
        where = (EVENTS.c.stream_id == stream_id) & (EVENTS.c.version > after_version)
        with self._read() as connection:
            rows = connection.execute(select(EVENTS).where(where).order_by(EVENTS.c.version)).all()
        return [_event(row) for row in rows]

    def read(self, after_pos: int, limit: int, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events of all streams after a position, in order; only of `types` if given."""
        query = select(EVENTS).where(EVENTS.c.global_pos > after_pos)
        if types is not None:
            query = query.where(EVENTS.c.type.in_(types))
        with self._read() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.global_pos).limit(limit)).all()
        return [_event(row) for row in rows]

    def position(self) -> int:
        """The position of the newest event, 0 if there is none; cheap enough to poll."""
        with self._read() as connection:
            return connection.execute(select(func.max(EVENTS.c.global_pos))).scalar() or 0

    def streams(self, prefix: str, *, after: str = "", limit: int = 10_000) -> list[str]:
        """Ids of at most `limit` streams that start with a prefix, sorted, after an id."""
        column = EVENTS.c.stream_id
        query = select(column).where(
            column >= prefix, column < prefix + "\U0010ffff", column > after, EVENTS.c.version == 1
        )
        with self._read() as connection:
            return list(connection.execute(query.order_by(column).limit(limit)).scalars())

    def due_timers(self, now_us: int, limit: int, *, stream_prefix: str = "") -> list[Timer]:
        """Timers whose moment has come, the oldest first; only of streams that start with a prefix."""
        with self._read() as connection:
            return timer_rows.due_timers(connection, now_us, limit, stream_prefix=stream_prefix)

    def complete_timer(self, timer_id: str) -> None:
        """Remove a timer that was acted on; harmless if it is gone."""
        with self._write() as connection:
            timer_rows.remove_timers(connection, (timer_id,))

    cancel_timer = complete_timer

    def guard_holders(self, scope: str) -> list[str]:
        """Who holds a guard now."""
        with self._read() as connection:
            return timer_rows.holders(connection, scope, now_us=self._now_us())

    def due_outbox(
        self, now_us: int, limit: int, *, sink: str | None = None, sink_prefix: str = ""
    ) -> list[OutboxEntry]:
        """Messages that wait to be sent and may be tried now, the longest due first; of one sink, or of those with a prefix."""
        with self._read() as connection:
            return outbox_rows.due(connection, now_us, limit, sink=sink, sink_prefix=sink_prefix)

    def outbox_waiting(self, sink_prefix: str = "") -> int:
        """How many messages are neither sent nor given up."""
        with self._read() as connection:
            return outbox_rows.waiting(connection, sink_prefix)

    def mark_sent(self, row: int) -> None:
        """A message has left; it is never due again."""
        with self._write() as connection:
            outbox_rows.mark(connection, row, done_us=self._now_us())

    def mark_failed(self, row: int, next_try_us: int, error: str = "") -> None:
        """A message was refused; it is due again at `next_try_us`."""
        with self._write() as connection:
            outbox_rows.mark(connection, row, next_try_us=next_try_us, last_error=error[:500])

    def mark_dead(self, row: int, error: str) -> None:
        """A message is given up; it stays in the table for a person to see."""
        with self._write() as connection:
            outbox_rows.mark(connection, row, dead_us=self._now_us(), last_error=error[:500])

    def checkpoint(self, projection: str) -> int:
        """How far a projection has read, 0 if it never did."""
        query = select(CHECKPOINTS.c.global_pos).where(CHECKPOINTS.c.projection == projection)
        with self._read() as connection:
            return connection.execute(query).scalar() or 0

    def save_checkpoint(self, projection: str, global_pos: int) -> None:
        """Remember how far a projection has read."""
        with self._write() as connection:
            connection.execute(CHECKPOINTS.delete().where(CHECKPOINTS.c.projection == projection))
            connection.execute(CHECKPOINTS.insert().values(projection=projection, global_pos=global_pos))

    def forget_commands(self, before_us: int) -> int:
        """Drop deduplication keys older than a moment, so that their table stays small; returns how many."""
        with self._write() as connection:
            return connection.execute(COMMAND_DEDUP.delete().where(COMMAND_DEDUP.c.created_us < before_us)).rowcount

    def verify_chain(self) -> ChainHead:
        """Recompute the hash of every event; raises ChainBroken at the first that does not fit."""
        head = ChainHead(events=0, global_pos=0, hash=_GENESIS)
        while True:
            query = (
                select(EVENTS).where(EVENTS.c.global_pos > head.global_pos).order_by(EVENTS.c.global_pos).limit(_PAGE)
            )
            with self._read() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                if row.prev_hash != head.hash:
                    raise ChainBroken(row.global_pos, "an event before it was removed or changed")
                if row.hash != _hash(row.prev_hash, row):
                    raise ChainBroken(row.global_pos, "its contents were changed")
                head = ChainHead(events=head.events + 1, global_pos=row.global_pos, hash=row.hash)
            if len(rows) < _PAGE:
                return head

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if not self._writing.acquire(timeout=self._write_wait_s):
            raise JournalUnavailable(
                f"no turn to write within {self._write_wait_s} s: another thread holds the journal"
            )
        try:
            with self._answering(), self._connected_to_write() as connection, connection.begin():
                yield connection
        finally:
            self._writing.release()

    def _connected_to_write(self) -> Connection:
        return self._engine.connect().execution_options(**{WRITES: True})

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._answering(), self._engine.connect() as connection, connection.begin():
            yield connection

    @staticmethod
    @contextmanager
    def _answering() -> Iterator[None]:
        """Map the driver's trouble (locked for too long, disk full, file gone or damaged) to our one word for it."""
        try:
            yield
        except IntegrityError:
            raise  # two writers at once: whoever appends knows
        except (DatabaseError, PoolTimeout) as error:
            raise JournalUnavailable(
                f"the journal does not answer: {error.__cause__ or error}; see `hephaestus doctor`"
            ) from error


def _system_us() -> int:
    return time.time_ns() // 1000


def _known_command(connection: Connection, key: str) -> AppendResult | None:
    row = connection.execute(select(COMMAND_DEDUP).where(COMMAND_DEDUP.c.key == key)).first()
    return None if row is None else AppendResult(version=row.version, global_pos=row.global_pos, duplicate=True)


def _version(connection: Connection, stream_id: str) -> int:
    query = select(func.max(EVENTS.c.version)).where(EVENTS.c.stream_id == stream_id)
    return connection.execute(query).scalar() or 0


def _insert(
    connection: Connection, stream_id: str, version: int, events: Sequence[NewEvent], *, now_us: int
) -> AppendResult:
    """Insert events as the next links of the chain; the write lock is held, so nobody else can be last."""
    last = connection.execute(select(EVENTS.c.hash).order_by(EVENTS.c.global_pos.desc()).limit(1)).scalar()
    prev_hash = _GENESIS if last is None else last
    global_pos = 0
    for event in events:
        version += 1
        meta = _Meta(event.actor, event.correlation_id, event.causation_id, event.tenant)
        link = _Link(
            stream_id=stream_id,
            version=version,
            event_id=new_id("event"),
            type=tag_of(event.payload),
            schema_ver=event.schema_ver,
            data=_encode(event.payload),
            meta=_encode(meta),
            occurred_us=now_us if event.occurred_us is None else event.occurred_us,
        )
        digest = _hash(prev_hash, link)
        values = msgspec.structs.asdict(link)
        inserted = connection.execute(
            EVENTS.insert().values(**values, prev_hash=prev_hash, hash=digest).returning(EVENTS.c.global_pos)
        )
        global_pos = inserted.scalar_one()
        prev_hash = digest
    return AppendResult(version=version, global_pos=global_pos)


class _Link(msgspec.Struct, frozen=True):
    """The part of a row that its hash covers."""

    stream_id: str
    version: int
    event_id: str
    type: str
    schema_ver: int
    data: bytes
    meta: bytes
    occurred_us: int


def _hash(prev_hash: bytes, link: _Link | Row[tuple[object, ...]]) -> bytes:
    """SHA-256 of the previous hash and each column with its length before it, so that no two rows read the same."""
    digest = hashlib.sha256(prev_hash)
    for name in _Link.__struct_fields__:
        value = getattr(link, name)
        column = value if isinstance(value, bytes) else str(value).encode()
        digest.update(len(column).to_bytes(8, "big"))
        digest.update(column)
    return digest.digest()


def _event(row: Row[tuple[object, ...]]) -> Event:
    meta = _decode_meta(row.meta)
    return Event(
        global_pos=row.global_pos,
        stream_id=row.stream_id,
        version=row.version,
        event_id=row.event_id,
        type=row.type,
        schema_ver=row.schema_ver,
        data=row.data,
        occurred_us=row.occurred_us,
        actor=meta.actor,
        correlation_id=meta.correlation_id,
        causation_id=meta.causation_id,
        tenant=meta.tenant,
    )

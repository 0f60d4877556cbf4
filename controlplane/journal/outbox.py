"""Rows of messages that must leave: appended with their cause, sent at least once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from controlplane.journal.events import NewOutbox, OutboxEntry
from controlplane.journal.tables import OUTBOX

_WAITING = OUTBOX.c.done_us.is_(None) & OUTBOX.c.dead_us.is_(None)


def insert(connection: Connection, entries: Sequence[NewOutbox], *, global_pos: int, now_us: int) -> None:
    """Add messages; a pair of id and sink that was added before is left as it is."""
    for entry in entries:
        same = (OUTBOX.c.id == entry.id) & (OUTBOX.c.sink == entry.sink)
        if connection.execute(select(OUTBOX.c.row).where(same)).first() is not None:
            continue
        connection.execute(
            OUTBOX.insert().values(
                id=entry.id,
                sink=entry.sink,
                payload=entry.payload,
                global_pos=global_pos,
                created_us=now_us,
                next_try_us=entry.next_try_us,
                attempts=0,
                last_error="",
            )
        )


def due(connection: Connection, now_us: int, limit: int, *, sink: str | None, sink_prefix: str) -> list[OutboxEntry]:
    """Messages neither sent nor given up whose moment has come, the longest due first."""
    query = select(OUTBOX).where(_WAITING, OUTBOX.c.next_try_us <= now_us)
    if sink is not None:
        query = query.where(OUTBOX.c.sink == sink)
    if sink_prefix:
        query = query.where(OUTBOX.c.sink.startswith(sink_prefix, autoescape=True))
    rows = connection.execute(query.order_by(OUTBOX.c.next_try_us, OUTBOX.c.row).limit(limit))
    return [
        OutboxEntry(
            row=row.row,
            id=row.id,
            sink=row.sink,
            payload=row.payload,
            global_pos=row.global_pos,
            next_try_us=row.next_try_us,
            attempts=row.attempts,
            created_us=row.created_us,
        )
        for row in rows
    ]


def waiting(connection: Connection, sink_prefix: str) -> int:
    """How many messages are neither sent nor given up."""
    query = select(func.count()).select_from(OUTBOX).where(_WAITING)
    return connection.execute(query.where(OUTBOX.c.sink.startswith(sink_prefix, autoescape=True))).scalar_one()


def mark(connection: Connection, row: int, **values: int | str) -> None:
    """Write the result of one try to send."""
    connection.execute(OUTBOX.update().where(OUTBOX.c.row == row).values(attempts=OUTBOX.c.attempts + 1, **values))

"""Rows of messages that must leave: appended with their cause, sent at least once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from controlplane.journal.events import NewOutbox, OutboxEntry
from controlplane.journal.tables import OUTBOX


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


def due(connection: Connection, now_us: int, limit: int) -> list[OutboxEntry]:
    """Messages neither sent nor given up whose moment has come, the longest due first."""
    waiting = OUTBOX.c.done_us.is_(None) & OUTBOX.c.dead_us.is_(None) & (OUTBOX.c.next_try_us <= now_us)
    rows = connection.execute(select(OUTBOX).where(waiting).order_by(OUTBOX.c.next_try_us, OUTBOX.c.row).limit(limit))
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


def mark(connection: Connection, row: int, **values: int | str) -> None:
    """Write the result of one try to send."""
    connection.execute(OUTBOX.update().where(OUTBOX.c.row == row).values(attempts=OUTBOX.c.attempts + 1, **values))

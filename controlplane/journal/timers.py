"""Rows that are about time: timers of streams, and guard tokens that expire."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from controlplane.journal.events import Guard, GuardRefused, NewTimer, Timer
from controlplane.journal.tables import GUARD_TOKENS, TIMERS


def set_timers(connection: Connection, stream_id: str, timers: Sequence[NewTimer]) -> None:
    """Set timers of a stream; one with the same id is replaced."""
    for timer in timers:
        connection.execute(TIMERS.delete().where(TIMERS.c.id == timer.id))
        connection.execute(
            TIMERS.insert().values(id=timer.id, stream_id=stream_id, due_us=timer.due_us, kind=timer.kind)
        )


def remove_timers(connection: Connection, ids: Sequence[str]) -> None:
    """Remove timers by id; ids that are gone are fine."""
    if ids:
        connection.execute(TIMERS.delete().where(TIMERS.c.id.in_(ids)))


def due_timers(connection: Connection, now_us: int, limit: int, *, stream_prefix: str) -> list[Timer]:
    """Timers with `due_us` at or before a moment, the oldest first, of streams that start with a prefix."""
    query = select(TIMERS).where(TIMERS.c.due_us <= now_us)
    if stream_prefix:
        query = query.where(TIMERS.c.stream_id >= stream_prefix, TIMERS.c.stream_id < stream_prefix + "\U0010ffff")
    rows = connection.execute(query.order_by(TIMERS.c.due_us, TIMERS.c.id).limit(limit))
    return [Timer(row.id, row.stream_id, row.due_us, row.kind) for row in rows]


def acquire_guards(connection: Connection, guards: Sequence[Guard], *, now_us: int) -> None:
    """Take tokens; raises GuardRefused when a scope is full of other, unexpired holders. Taking twice renews."""
    for guard in guards:
        others = [name for name in holders(connection, guard.scope, now_us=now_us) if name != guard.holder]
        if len(others) >= guard.limit:
            raise GuardRefused(guard.scope, limit=guard.limit, holders=others)
        mine_or_expired = (GUARD_TOKENS.c.scope == guard.scope) & (
            (GUARD_TOKENS.c.holder == guard.holder) | (GUARD_TOKENS.c.expires_us <= now_us)
        )
        connection.execute(GUARD_TOKENS.delete().where(mine_or_expired))
        connection.execute(
            GUARD_TOKENS.insert().values(
                scope=guard.scope, holder=guard.holder, acquired_us=now_us, expires_us=guard.expires_us
            )
        )


def release_guards(connection: Connection, released: Sequence[str]) -> None:
    """Give back every token of these holders."""
    if released:
        connection.execute(GUARD_TOKENS.delete().where(GUARD_TOKENS.c.holder.in_(released)))


def holders(connection: Connection, scope: str, *, now_us: int) -> list[str]:
    """Who holds a token of the scope that has not expired."""
    query = select(GUARD_TOKENS.c.holder).where(GUARD_TOKENS.c.scope == scope, GUARD_TOKENS.c.expires_us > now_us)
    return list(connection.execute(query.order_by(GUARD_TOKENS.c.holder)).scalars())

"""The tables of the journal as SQLAlchemy Core knows them; the migrations make them.

The types are chosen so that both SQLite (STRICT) and PostgreSQL can hold them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()
_BIG = BigInteger().with_variant(Integer(), "sqlite")

EVENTS = Table(
    "events",
    METADATA,
    Column("global_pos", _BIG, primary_key=True, autoincrement=True),
    Column("stream_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("schema_ver", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),  # the payload as JSON
    Column("meta", LargeBinary, nullable=False),  # actor, correlation, causation and tenant as JSON
    Column("occurred_us", _BIG, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("version >= 1", name="events_version_positive"),
    UniqueConstraint("stream_id", "version", name="events_stream_version"),
    UniqueConstraint("event_id", name="events_event_id"),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

COMMAND_DEDUP = Table(
    "command_dedup",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("stream_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("global_pos", _BIG, nullable=False),
    Column("created_us", _BIG, nullable=False),
    sqlite_strict=True,
)

OUTBOX = Table(
    "outbox",
    METADATA,
    Column("row", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("sink", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("global_pos", _BIG, nullable=False),
    Column("created_us", _BIG, nullable=False),
    Column("next_try_us", _BIG, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("done_us", _BIG),  # sent
    Column("dead_us", _BIG),  # given up
    UniqueConstraint("id", "sink", name="outbox_id_sink"),
    Index("outbox_due", "done_us", "dead_us", "next_try_us"),
    sqlite_strict=True,
)

TIMERS = Table(
    "timers",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("stream_id", Text, nullable=False),
    Column("due_us", _BIG, nullable=False),
    Column("kind", Text, nullable=False),
    Index("timers_due", "due_us"),
    sqlite_strict=True,
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("projection", Text, primary_key=True),
    Column("global_pos", _BIG, nullable=False),
    sqlite_strict=True,
)

GUARD_TOKENS = Table(
    "guard_tokens",
    METADATA,
    Column("scope", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("acquired_us", _BIG, nullable=False),
    Column("expires_us", _BIG, nullable=False),
    sqlite_strict=True,
)

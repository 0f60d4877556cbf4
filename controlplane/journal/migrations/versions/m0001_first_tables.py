"""The first tables: events with a hash chain, deduplication, outbox, timers, checkpoints, guard tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables and, on SQLite, the triggers that keep events append-only."""
    _make_events()
    _make_outbox()
    _make_small_tables()
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER events_no_{verb} BEFORE {verb.upper()} ON events "
                "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
            )


def _make_events() -> None:
    op.create_table(
        "events",
        sa.Column("global_pos", BIG, primary_key=True, autoincrement=True),
        sa.Column("stream_id", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("schema_ver", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("meta", sa.LargeBinary, nullable=False),
        sa.Column("occurred_us", BIG, nullable=False),
        sa.Column("prev_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("version >= 1", name="events_version_positive"),
        sa.UniqueConstraint("stream_id", "version", name="events_stream_version"),
        sa.UniqueConstraint("event_id", name="events_event_id"),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )


def _make_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("row", BIG, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("sink", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("global_pos", BIG, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sa.Column("next_try_us", BIG, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("done_us", BIG),
        sa.Column("dead_us", BIG),
        sa.UniqueConstraint("id", "sink", name="outbox_id_sink"),
        sqlite_strict=True,
    )
    op.create_index("outbox_due", "outbox", ["done_us", "dead_us", "next_try_us"])


def _make_small_tables() -> None:
    op.create_table(
        "command_dedup",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("stream_id", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("global_pos", BIG, nullable=False),
        sa.Column("created_us", BIG, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "timers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("stream_id", sa.Text, nullable=False),
        sa.Column("due_us", BIG, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("timers_due", "timers", ["due_us"])
    op.create_table(
        "checkpoints",
        sa.Column("projection", sa.Text, primary_key=True),
        sa.Column("global_pos", BIG, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "guard_tokens",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("acquired_us", BIG, nullable=False),
        sa.Column("expires_us", BIG, nullable=False),
        sqlite_strict=True,
    )

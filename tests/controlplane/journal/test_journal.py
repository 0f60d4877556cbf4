"""The journal: append, load, read, guards, timers, outbox, chain."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from controlplane.errors import JournalUnavailable
from controlplane.journal.events import (
    ChainBroken,
    Guard,
    GuardRefused,
    JournalError,
    NewEvent,
    NewOutbox,
    NewTimer,
    Timer,
    VersionConflict,
)
from controlplane.journal.journal import Journal
from controlplane.journal.tables import METADATA
from tests.controlplane.journal.conftest import Clock, Opened, Paid

ANN = NewEvent(Opened("ann"), actor="op", correlation_id="c1", tenant="acme")


def _raw(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"))


def test_an_appended_event_is_loaded_as_it_was_given(journal: Journal) -> None:
    """What comes back is the payload, the type from its tag, the meta data and the positions."""
    result = journal.append("account-1", 0, [ANN, NewEvent(Paid(5), occurred_us=7)])
    first, second = journal.load("account-1")
    assert (2, 2) == (result.version, result.global_pos)
    assert ("account.opened", 1, 1, "op", "c1", "acme", 1_000_000) == (
        first.type,
        first.version,
        first.global_pos,
        first.actor,
        first.correlation_id,
        first.tenant,
        first.occurred_us,
    )
    assert (b'{"type":"account.paid","amount":5}', 7) == (second.data, second.occurred_us)
    assert [second] == journal.load("account-1", after_version=1)


@pytest.mark.parametrize(("expected", "actual"), [(0, 1), (2, 1), (5, 1)])
def test_a_wrong_expected_version_is_a_conflict(journal: Journal, expected: int, actual: int) -> None:
    """An append that expects another version changes nothing and says both versions."""
    journal.append("account-1", 0, [ANN])
    with pytest.raises(VersionConflict) as caught:
        journal.append("account-1", expected, [NewEvent(Paid(1))])
    assert (expected, actual) == (caught.value.expected, caught.value.actual)
    assert 1 == len(journal.load("account-1"))


def test_no_expected_version_appends_wherever_the_stream_is(journal: Journal) -> None:
    """None as the expected version never conflicts."""
    versions = [journal.append("account-1", None, [NewEvent(Paid(n))]).version for n in range(3)]
    assert [1, 2, 3] == versions


def test_an_append_without_events_is_refused(journal: Journal) -> None:
    """An append must have at least one event."""
    with pytest.raises(JournalError, match="at least one event"):
        journal.append("account-1", 0, [])


def test_a_payload_without_a_tag_is_refused(journal: Journal) -> None:
    """A struct that has no tag cannot be an event, and nothing is written."""
    with pytest.raises(JournalError, match="no text tag"):
        journal.append("account-1", 0, [NewEvent(Timer("t", "s", 1, "k"))])
    assert 0 == journal.position()


def test_a_repeated_command_changes_nothing(journal: Journal) -> None:
    """The second append with a deduplication key returns the first one's result, marked as a duplicate."""
    first = journal.append("account-1", 0, [ANN], dedup_key="cmd-1")
    again = journal.append("account-1", 0, [ANN], dedup_key="cmd-1")
    assert (first.version, first.global_pos, True) == (again.version, again.global_pos, again.duplicate)
    assert 1 == journal.position()


def test_forgotten_commands_may_run_again(journal: Journal, clock: Clock) -> None:
    """Deduplication keys older than the moment given are dropped, younger ones stay."""
    journal.append("account-1", None, [ANN], dedup_key="old")
    clock.now_us += 10
    journal.append("account-1", None, [ANN], dedup_key="new")
    assert 1 == journal.forget_commands(clock.now_us)
    assert not journal.append("account-1", None, [ANN], dedup_key="old").duplicate
    assert journal.append("account-1", None, [ANN], dedup_key="new").duplicate


def test_read_follows_the_order_of_all_streams(journal: Journal) -> None:
    """`read` pages through every stream in the order of appending, filtered by type if asked."""
    journal.append("a", 0, [ANN])
    journal.append("b", 0, [NewEvent(Paid(1)), NewEvent(Paid(2))])
    journal.append("a", 1, [NewEvent(Paid(3))])
    assert [1, 2, 3, 4] == [event.global_pos for event in journal.read(0, 10)]
    assert [3, 4] == [event.global_pos for event in journal.read(2, 10)]
    assert [1, 2] == [event.global_pos for event in journal.read(0, 2)]
    assert [1] == [event.global_pos for event in journal.read(0, 10, types=["account.opened"])]
    assert 4 == journal.position()


def test_streams_lists_ids_by_prefix(journal: Journal) -> None:
    """Only streams with the prefix are listed, sorted, in pages."""
    for stream in ("run-2", "run-1", "lease-1", "runner"):
        journal.append(stream, 0, [ANN])
    assert ["run-1", "run-2"] == journal.streams("run-")
    assert ["run-1"] == journal.streams("run-", limit=1)
    assert ["run-2"] == journal.streams("run-", after="run-1")


def test_timers_are_set_rescheduled_and_done_with_an_append(journal: Journal) -> None:
    """A timer is due from its moment on, moves when set again and goes when an append completes it."""
    journal.append("run-1", 0, [ANN], timers=[NewTimer("t1", 50, "bake"), NewTimer("t2", 60, "ttl")])
    assert [] == journal.due_timers(49, 10)
    assert [Timer("t1", "run-1", 50, "bake")] == journal.due_timers(50, 10)
    assert [Timer("t1", "run-1", 50, "bake")] == journal.due_timers(50, 10, stream_prefix="run-")
    assert [] == journal.due_timers(50, 10, stream_prefix="lease-")
    journal.append("run-1", 1, [ANN], timers=[NewTimer("t1", 90, "bake")], timers_done=["t2"])
    assert [] == journal.due_timers(89, 10)
    journal.complete_timer("t1")
    journal.complete_timer("t1")
    assert [] == journal.due_timers(1000, 10)


def test_a_guard_admits_its_limit_of_holders(journal: Journal) -> None:
    """A full guard refuses the whole append; a release in the same append as the taking makes room."""
    journal.append("run-1", 0, [ANN], guards=[Guard("playbook-p", "run-1", 1, expires_us=10**12)])
    with pytest.raises(GuardRefused, match="run-1"):
        journal.append("run-2", 0, [ANN], guards=[Guard("playbook-p", "run-2", 1, expires_us=10**12)])
    assert [] == journal.load("run-2")
    journal.append("run-1", 1, [ANN], guards=[Guard("playbook-p", "run-1", 1, expires_us=10**12)])
    journal.append("run-1", 2, [ANN], guards_released=["run-1"])
    journal.append("run-2", 0, [ANN], guards=[Guard("playbook-p", "run-2", 1, expires_us=10**12)])
    assert ["run-2"] == journal.guard_holders("playbook-p")


def test_an_expired_guard_token_blocks_nobody(journal: Journal, clock: Clock) -> None:
    """A holder that died keeps its token only until it expires."""
    journal.append("run-1", 0, [ANN], guards=[Guard("g", "run-1", 1, expires_us=clock.now_us + 5)])
    clock.now_us += 5
    journal.append("run-2", 0, [ANN], guards=[Guard("g", "run-2", 1, expires_us=clock.now_us + 5)])
    assert ["run-2"] == journal.guard_holders("g")


def test_the_outbox_keeps_a_message_until_it_is_sent_or_given_up(journal: Journal) -> None:
    """A message is due until marked; a failed one comes back at its next moment with its tries counted."""
    messages = [
        NewOutbox("m1", "ops", b"x"),
        NewOutbox("m1", "chat", b"x"),
        NewOutbox("m2", "ops", b"y", next_try_us=9),
    ]
    journal.append("run-1", 0, [ANN], outbox=messages)
    first, second = journal.due_outbox(5, 10)
    assert [second] == journal.due_outbox(5, 10, sink="chat")
    assert [first] == journal.due_outbox(5, 10, sink_prefix="op")
    assert (3, 2, 0) == (journal.outbox_waiting(), journal.outbox_waiting("ops"), journal.outbox_waiting("%"))
    assert ("m1", "ops", b"x", 0, 1) == (first.id, first.sink, first.payload, first.attempts, first.global_pos)
    journal.mark_sent(first.row)
    journal.mark_failed(second.row, 100, "refused")
    (third,) = journal.due_outbox(99, 10)
    assert "m2" == third.id
    journal.mark_dead(third.row, "gone")
    (again,) = journal.due_outbox(100, 10)
    assert ("chat", 1) == (again.sink, again.attempts)


def test_one_message_goes_to_one_sink_once(journal: Journal) -> None:
    """The same id and sink appended twice is one message."""
    journal.append("run-1", 0, [ANN], outbox=[NewOutbox("m1", "ops", b"x")])
    journal.append("run-1", 1, [ANN], outbox=[NewOutbox("m1", "ops", b"other")])
    assert [b"x"] == [entry.payload for entry in journal.due_outbox(10**15, 10)]


def test_a_checkpoint_is_remembered(journal: Journal, url: str) -> None:
    """A projection's position survives reopening; one that never ran is at 0."""
    assert 0 == journal.checkpoint("runs")
    journal.save_checkpoint("runs", 5)
    journal.save_checkpoint("runs", 7)
    reopened = Journal.open(url)
    assert 7 == reopened.checkpoint("runs")
    reopened.close()


@pytest.mark.parametrize("statement", ["UPDATE events SET type='x'", "DELETE FROM events"])
def test_the_database_itself_refuses_to_change_events(journal: Journal, url: str, statement: str) -> None:
    """Even with another tool an event cannot be changed or deleted by accident."""
    journal.append("a", 0, [ANN])
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        _raw(url).execute(statement)


TAMPERINGS: list[tuple[str, int]] = [
    ("UPDATE events SET data=x'7b7d' WHERE global_pos=2", 2),
    ("UPDATE events SET occurred_us=1 WHERE global_pos=1", 1),
    ("UPDATE events SET meta=x'7b7d' WHERE global_pos=1", 1),
    ("UPDATE events SET type='other' WHERE global_pos=3", 3),
    ("UPDATE events SET stream_id='b' WHERE global_pos=3", 3),
    ("DELETE FROM events WHERE global_pos=2", 3),
    ("UPDATE events SET hash=zeroblob(32) WHERE global_pos=2", 2),
]


@pytest.mark.parametrize(("statement", "position"), TAMPERINGS)
def test_tampering_breaks_the_chain_where_it_happened(
    journal: Journal, url: str, statement: str, position: int
) -> None:
    """Whatever column is changed or row removed behind the triggers, verification names the place."""
    journal.append("a", 0, [ANN, ANN, ANN])
    raw = _raw(url)
    raw.executescript(f"DROP TRIGGER events_no_update; DROP TRIGGER events_no_delete; {statement}")
    with pytest.raises(ChainBroken) as caught:
        journal.verify_chain()
    assert position == caught.value.global_pos


def test_a_whole_chain_verifies_and_gives_its_head(journal: Journal) -> None:
    """An untouched journal verifies across streams and appends; an empty one does too."""
    assert 0 == journal.verify_chain().events
    for number in range(5):
        journal.append(f"s-{number % 2}", None, [ANN, NewEvent(Paid(number))])
    assert (10, 10) == (journal.verify_chain().events, journal.verify_chain().global_pos)


def test_the_migrations_make_the_tables_the_code_uses(journal: Journal) -> None:
    """Alembic finds no difference between the migrated database and the table definitions."""
    with journal._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "journal_version"})
        assert [] == compare_metadata(context, METADATA)


def test_durability_is_set_on_every_connection(journal: Journal) -> None:
    """The file is in WAL mode, commits are synced in full, and a busy database is waited for."""
    with journal._read() as connection:
        pragma: Callable[[str], object] = lambda name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()  # noqa: E731
        assert ("wal", 2, 30_000) == (pragma("journal_mode"), pragma("synchronous"), pragma("busy_timeout"))


def test_reopening_finds_all_events(journal: Journal, url: str, tmp_path: Path) -> None:
    """A second handle on the same file sees what the first appended, and can append to it."""
    journal.append("a", 0, [ANN])
    other = Journal.open(url)
    other.append("a", 1, [NewEvent(Paid(1))])
    assert 2 == len(journal.load("a"))
    assert (tmp_path / "journal.db").exists()
    other.close()


def test_a_journal_locked_for_too_long_is_unavailable(url: str, journal: Journal) -> None:
    """When another process holds the write lock past the wait, the append fails with our own error and no event."""
    impatient = Journal.open(url, busy_timeout_s=0.05)
    other = _raw(url)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalUnavailable, match="locked"):
        impatient.append("a", 0, [ANN])
    other.rollback()
    assert 1 == impatient.append("a", 0, [ANN]).version
    impatient.close()

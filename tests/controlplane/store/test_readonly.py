"""Read-only handles: what the engine itself refuses and bounds, even where the guard were silent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.errors import HephaestusError, TooMany
from controlplane.store.client import QueryFailed, Store
from controlplane.store.guard import Checked, Refused
from controlplane.store.readonly import TOO_LARGE, ReadLimits, ReadOnlyHandles
from tests.controlplane.store.fakes import a_call
from tests.controlplane.store.fill import fill

LIMITS = ReadLimits(
    execution_s_max=1.0, result_rows_max=1_000, result_bytes_max=100_000, memory_bytes_max=50_000_000, handles=2
)


@pytest.fixture
def handles(store: Store) -> Iterator[ReadOnlyHandles]:
    """Handles with tight limits on a store with one call."""
    fill(store, a_call(1))
    found = ReadOnlyHandles(store, LIMITS)
    yield found
    found.close()


def unguarded(handles: ReadOnlyHandles, sql: str) -> bytes:
    """Runs a query as if the guard had let it through."""
    return handles.run(Checked(sql, "TabSeparated"), {}).body


def test_reads_the_telemetry(handles: ReadOnlyHandles) -> None:
    """A guarded query is answered."""
    checked = handles.guard.check("SELECT count(), any(tenant) FROM calls", default_format="TabSeparated")
    assert handles.run(checked, {}).body == b"1\tacme\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", b"plain"),
        ("a\\tb", b"a\\tb"),
        ("back\\\\slash", b"back\\\\slash"),
        ("it\\'s", b"it\\'s"),
        ("é", "é".encode()),
    ],
)
def test_parameters_are_escaped_text(handles: ReadOnlyHandles, value: str, text: bytes) -> None:
    """A parameter comes in the escaped form of the HTTP protocol and is a value, never SQL."""
    checked = handles.guard.check("SELECT {x:String}", default_format="TabSeparated")
    assert handles.run(checked, {"x": value}).body == text + b"\n"


def test_parameters_of_other_types(handles: ReadOnlyHandles) -> None:
    """Numbers and arrays can be parameters too."""
    checked = handles.guard.check("SELECT {n:UInt64} + 1, {a:Array(String)}", default_format="TabSeparated")
    assert handles.run(checked, {"n": "41", "a": "['x','y\\'z']"}).body == b"42\t['x','y\\'z']\n"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT %(x)s AS file",
        "SELECT %(x)s /* {x:String} */",
        "SELECT %(x)s -- {x:String}",
        "SELECT %(x)s, '{x:String}'",
        "SELECT %(x)s, {x:String}",
        "SELECT %(x)s, {y:String}",
        "SELECT %s",
    ],
)
def test_parameters_are_never_pasted_into_the_query(handles: ReadOnlyHandles, sql: str) -> None:
    """A parameter's value is a value or nothing: no way of writing the query puts its text into the SQL behind the guard's back."""
    try:
        checked = handles.guard.check(sql, default_format="TabSeparated")
        answer = handles.run(checked, {"x": "file('/etc/hostname')", "y": "1"}).body
    except HephaestusError as error:
        answer = error.message.encode()
    assert Path("/etc/hostname").read_bytes().strip() not in answer
    with pytest.raises(QueryFailed, match="SYNTAX_ERROR"):
        handles.run(Checked("SELECT %(x)s FORMAT TabSeparated", "TabSeparated"), {"x": "1"})


@pytest.mark.parametrize("sql", ["SELECT { x:String}", "SELECT {x :String}", "SELECT {x/**/:String}"])
def test_parameters_with_blanks_are_refused(handles: ReadOnlyHandles, sql: str) -> None:
    """A parameter that the driver would not find is refused."""
    with pytest.raises(Refused, match="without blanks"):
        handles.guard.check(sql, default_format="TabSeparated")


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO calls SELECT * FROM calls",
        "CREATE TABLE x (a UInt8) ENGINE = Memory",
        "DROP TABLE calls",
        "ALTER TABLE calls DELETE WHERE 1",
        "TRUNCATE TABLE calls",
        "SET max_execution_time = 0",
        "SET readonly = 0",
        "SELECT 1 SETTINGS max_memory_usage = 0",
        "SELECT * FROM file('x.tsv')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'TSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1', system.one)",
        "SELECT * FROM executable('x', 'TSV', 'a String')",
        "CREATE USER x",
        "SYSTEM FLUSH LOGS",
    ],
)
def test_the_engine_refuses_by_itself(handles: ReadOnlyHandles, sql: str) -> None:
    """The guard is not the only wall: a session of the door cannot write, set or reach out even when it is asked to directly."""
    with pytest.raises(QueryFailed) as caught:
        unguarded(handles, sql)
    assert caught.value.number in (164, 497)


@pytest.mark.parametrize(
    ("sql", "numbers"),
    [
        ("SELECT * FROM numbers(1001)", {TOO_LARGE}),
        ("SELECT repeat('x', 200) FROM numbers(900)", {TOO_LARGE}),
        ("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", {159}),
        ("SELECT uniqExact(number) FROM numbers(20000000)", {241, 159}),
        ("SELECT groupArray(number) FROM numbers(20000000)", {241, 159}),
    ],
)
def test_limits(handles: ReadOnlyHandles, sql: str, numbers: set[int]) -> None:
    """Time, memory, rows and bytes of a query are bounded by the engine."""
    checked = handles.guard.check(sql, default_format="TabSeparated")
    with pytest.raises(QueryFailed) as caught:
        handles.run(checked, {})
    assert caught.value.number in numbers


def test_a_failed_query_leaves_the_session_usable(handles: ReadOnlyHandles) -> None:
    """After an error the same handles answer again."""
    for _ in range(2 * LIMITS.handles):
        with pytest.raises(QueryFailed):
            unguarded(handles, "SELECT no_such_column FROM calls")
        assert unguarded(handles, "SELECT count() FROM calls") == b"1\n"


def test_handles_are_bounded(handles: ReadOnlyHandles) -> None:
    """When all handles are taken for longer than a query may take, the next is told to come again."""
    slow = "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"

    def occupy() -> None:
        for _ in range(2):
            with pytest.raises((QueryFailed, TooMany)):
                unguarded(handles, slow)

    threads = [threading.Thread(target=occupy) for _ in range(2 * LIMITS.handles)]
    for thread in threads:
        thread.start()
    results: list[object] = []
    for _ in range(3):
        try:
            results.append(unguarded(handles, "SELECT 1"))
        except TooMany as error:
            results.append(error)
    for thread in threads:
        thread.join()
    assert any(isinstance(result, TooMany) or result == b"1\n" for result in results)
    assert unguarded(handles, "SELECT 1") == b"1\n"


def test_close_is_repeatable(store: Store) -> None:
    """Closed handles answer nobody and can be closed again."""
    handles = ReadOnlyHandles(store, LIMITS)
    assert unguarded(handles, "SELECT 1") == b"1\n"
    handles.close()
    handles.close()
    with pytest.raises(TooMany):
        unguarded(handles, "SELECT 1")

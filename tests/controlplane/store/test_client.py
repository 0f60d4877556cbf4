"""The store's client: addresses, errors, bounds, threads and handles."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from controlplane.errors import ConfigError, StoreUnavailable, TooMany
from controlplane.metrics import StoreMetrics
from controlplane.settings import StoreSettings
from controlplane.store import schema
from controlplane.store.client import QueryFailed, Store, StoreAddress, StoreLimits, UnfitValue
from controlplane.store.rows import batch_rows
from tests.controlplane.store.fakes import a_call


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        ("chdb:///data/telemetry", StoreAddress(path="/data/telemetry")),
        ("chdb:///with%20space", StoreAddress(path="/with space")),
        ("clickhouse://db:9000/other", StoreAddress(host="db", port=9000, database="other")),
        ("clickhouse://ana@db", StoreAddress(host="db", user="ana")),
        (
            "clickhouse://ana@db:8443/x?secure=1",
            StoreAddress(host="db", port=8443, user="ana", database="x", secure=True),
        ),
    ],
)
def test_addresses(dsn: str, address: StoreAddress) -> None:
    """Both kinds of address are read, with their defaults."""
    assert address == StoreAddress.parse(dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        "", "chdb://", "chdb:///", "chdb://host/path", "clickhouse://", "clickhouse:///db", "postgresql://db/x",
        "clickhouse://ana:secret@db/x", "clickhouse://db/x;DROP", "clickhouse://db:99999/x", "clickhouse://db:port/x",
    ],
)  # fmt: skip
def test_bad_addresses(dsn: str) -> None:
    """What is no address of a store is refused with a hint."""
    with pytest.raises(ConfigError, match="use "):
        StoreAddress.parse(dsn)


def test_password_is_not_repeated() -> None:
    """A password in an address is refused without showing it."""
    with pytest.raises(ConfigError) as caught:
        StoreAddress.parse("clickhouse://ana:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_values_go_in_as_parameters(store: Store) -> None:
    """A value is never read as SQL, whatever is in it."""
    evil = "'; DROP TABLE calls; --\\"
    assert [(evil,)] == [tuple(row) for row in store.rows("SELECT {x:String}", {"x": evil})]


class Pair(msgspec.Struct, frozen=True):
    """Two columns."""

    name: str
    count: int


def test_results_as_rows_columns_and_structs(store: Store) -> None:
    """A result can be had in three shapes, also when it is empty."""
    sql = "SELECT toString(number) AS name, number + 1 AS count FROM numbers({n:UInt64})"
    assert [("0", 1), ("1", 2)] == [tuple(row) for row in store.rows(sql, {"n": 2})]
    assert [["0", "1"], [1, 2]] == [list(column) for column in store.columns(sql, {"n": 2})]
    assert [Pair("0", 1), Pair("1", 2)] == store.structs(Pair, sql, {"n": 2})
    assert store.rows(sql, {"n": 0}) == []
    assert store.columns(sql, {"n": 0}) == []
    assert store.structs(Pair, sql, {"n": 0}) == []


def test_failed_query_carries_the_engines_number(store: Store) -> None:
    """A query the engine refuses is our error with ClickHouse's own number."""
    with pytest.raises(QueryFailed, match="UNKNOWN_TABLE") as caught:
        store.rows("SELECT * FROM no_such_table")
    assert caught.value.number == 60


def test_value_out_of_range_is_unfit(store: Store) -> None:
    """A number that its column cannot hold is told apart from trouble that passes."""
    columns = batch_rows([a_call()], token="p/1", body_bytes=1).calls
    columns[5] = [70_000]  # status is UInt16
    with pytest.raises(UnfitValue, match="status"):
        store.insert(schema.CALLS, columns)
    assert store.rows("SELECT count() FROM calls") == [(0,)]


def test_handles_do_not_share_session_state(store: Store) -> None:
    """What one handle sets, another does not see."""
    first, second = store.new_handle(), store.new_handle()
    try:
        first.command("SET ROLE NONE")
        assert first.query("SELECT currentRoles()").result_rows == [([],)]
        assert second.query("SELECT currentRoles()").result_rows == [(["owner"],)]
    finally:
        first.close()
        second.close()


async def test_many_threads_at_once(store: Store) -> None:
    """Reads and writes from many tasks at once all end with their own result."""

    def write(number: int) -> None:
        store.insert(schema.CALLS, batch_rows([a_call(number)], token="p/1", body_bytes=1).calls, token=f"t{number}")

    def read(number: int) -> object:
        return store.rows("SELECT {n:UInt64} + 1", {"n": number})[0][0]

    writes = [store.run(write, number) for number in range(10)]
    reads = [store.run(read, number) for number in range(30)]
    results = await asyncio.gather(*writes, *reads)
    assert [None] * 10 + list(range(1, 31)) == results
    assert store.rows("SELECT count() FROM calls") == [(10,)]


async def test_waiting_is_bounded(store: Store) -> None:
    """When too much waits the next one is told at once, and later ones are served again."""
    release = threading.Event()
    most = store.limits.waiting_max + store.limits.readers
    waiting = [asyncio.ensure_future(store.run(release.wait, 30)) for _ in range(most)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await store.run(store.rows, "SELECT 1")
    release.set()
    assert [True] * most == await asyncio.gather(*waiting)
    assert await store.run(store.rows, "SELECT 1") == [(1,)]


def test_slow_query_is_ended_by_the_engine(opened_store: Store) -> None:
    """A query runs no longer than the store's bound, and then it is unavailable rather than wrong."""
    handle = opened_store.new_handle()
    try:
        assert handle.get_client_setting("max_execution_time") == str(StoreLimits().query_s_max)
    finally:
        handle.close()
    with pytest.raises(StoreUnavailable):
        opened_store.rows("SELECT sum(sipHash64(number)) FROM numbers(100000000000) SETTINGS max_execution_time = 0.05")


_OPEN_ELSEWHERE = """
import sys
from pathlib import Path
from controlplane.errors import StoreUnavailable
from controlplane.store.client import Store
try:
    Store.open(sys.argv[1], data_dir=Path(sys.argv[2]))
except StoreUnavailable as error:
    print(error.message)
"""


def test_second_process_is_told_why(opened_store: Store, tmp_path: Path) -> None:
    """Opening the embedded store from another process fails with a sentence that names the cause."""
    run = subprocess.run(
        [sys.executable, "-c", _OPEN_ELSEWHERE, f"chdb://{opened_store.address.path}", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "another process has it open" in run.stdout


_OPEN_AND_CLOSE = """
import sys
from pathlib import Path
from controlplane.errors import StoreUnavailable
from controlplane.store.client import Store
dsn, data_dir = sys.argv[1], Path(sys.argv[2])
for _ in range(2):
    store = Store.open(dsn, data_dir=data_dir)
    assert store.rows("SELECT 1") == [(1,)]
    store.close()
    store.close()
    try:
        store.rows("SELECT 1")
    except StoreUnavailable:
        print("closed")
engine = data_dir / "engine"
print(oct(engine.stat().st_mode & 0o777), *sorted(oct(file.stat().st_mode & 0o777) for file in engine.glob("*.xml")))
"""


def test_close_is_repeatable_and_the_store_can_be_opened_again(tmp_path: Path) -> None:
    """Closing twice is fine, a closed store says so, and the configuration is readable by its owner alone."""
    run = subprocess.run(
        [sys.executable, "-c", _OPEN_AND_CLOSE, f"chdb://{tmp_path}/telemetry", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ["closed", "closed", "0o700 0o600 0o600"] == run.stdout.splitlines()


def test_server_that_does_not_answer(tmp_path: Path) -> None:
    """A server that is not there is unavailable, not a stack trace."""
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1 does not answer"):
        Store.open("clickhouse://127.0.0.1:1/x", data_dir=tmp_path, metrics=StoreMetrics(CollectorRegistry()))


def test_the_settings_give_the_bounds() -> None:
    """What is written in the file is what the store is opened with, and both have the same defaults."""
    assert StoreLimits() == StoreLimits.of(StoreSettings())
    changed = StoreSettings(readers=5, query_s_max=7.0, memory_bytes_max=2**30)
    limits = StoreLimits.of(changed)
    assert (5, 7.0, 2**30) == (limits.readers, limits.query_s_max, limits.engine.memory_bytes_max)


def test_a_servers_password_is_shown_to_the_server_alone(tmp_path: Path) -> None:
    """It travels in a header of the first request, and no message of ours holds it."""
    asked: list[bytes] = []

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65_536))
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        address = f"clickhouse://hephaestus@127.0.0.1:{listener.getsockname()[1]}/hephaestus"
        with pytest.raises(StoreUnavailable) as caught:
            Store.open(address, data_dir=tmp_path, password="open sesame")
        listener.shutdown(socket.SHUT_RDWR)
    assert base64.b64encode(b"hephaestus:open sesame") in asked[0] or b"open sesame" in asked[0]
    assert "sesame" not in caught.value.message

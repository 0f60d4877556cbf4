"""The ClickHouse door over real HTTP: with clickhouse-connect, with plain requests, and as Grafana's data source asks."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import clickhouse_connect
import httpx
import pytest
import uvicorn
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from prometheus_client import CollectorRegistry

from controlplane.api.clickhouse_door import ClickHouseDoor
from controlplane.metrics import DoorMetrics
from controlplane.secrets import Secret
from controlplane.settings import DoorSettings
from controlplane.store.client import Store
from controlplane.store.native import with_block_headers
from controlplane.store.schema import TABLES
from tests.controlplane.store.fakes import MINUTE_US, START_US, a_call
from tests.controlplane.store.fill import fill


@contextmanager
def serving(app: ClickHouseDoor) -> Iterator[str]:
    """A real server on a port of its own, in a thread; gives the door's address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/clickhouse/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        app.close()


@pytest.fixture(scope="module")
def filled(opened_store: Store) -> Store:
    """A store with three calls; nothing in this file can change it."""
    for table in TABLES:
        opened_store.command(f"TRUNCATE TABLE {table.name}")
    fill(opened_store, *(a_call(n, at_us=START_US + n * MINUTE_US, cost_nanousd=n + 1) for n in range(3)))
    return opened_store


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    """The open door's counters."""
    return CollectorRegistry()


@pytest.fixture(scope="module")
def url(filled: Store, registry: CollectorRegistry) -> Iterator[str]:
    """The address of a door without a password, with tight limits."""
    settings = DoorSettings(
        max_execution_s=1.0, max_result_rows=3_000, max_memory_bytes=64 * 1024 * 1024, concurrency=2
    )
    with serving(ClickHouseDoor(filled, settings=settings, metrics=DoorMetrics(registry))) as address:
        yield address


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client; `get("", params=...)` asks the door."""
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield client


def counted(registry: CollectorRegistry, result: str) -> float:
    """How many queries ended so."""
    return registry.get_sample_value("heph_door_queries_total", {"result": result}) or 0.0


def connected(url: str, **options: object) -> Client:
    """A clickhouse-connect client on the door."""
    parts = httpx.URL(url)
    return clickhouse_connect.get_client(
        host=parts.host, port=parts.port, proxy_path="/clickhouse", autogenerate_session_id=False, **options
    )  # type: ignore[call-overload]


async def test_clickhouse_connect(url: str) -> None:
    """The official Python client connects, reads typed rows, passes parameters and gets errors as errors."""

    def use() -> None:
        client = connected(url, database="hephaestus")
        try:
            assert client.ping()
            assert client.command("SELECT count() FROM calls") == 3
            rows = client.query(
                "SELECT call_id, cost_usd, tags FROM calls WHERE tenant = {t:String} ORDER BY call_id", {"t": "acme"}
            )
            assert (f"call_{0:026d}", Decimal("0.000000001"), {"team": "search"}) == rows.result_rows[0]
            assert client.query("SELECT {x:String}", {"x": "it's \\ a\ttab\nline é"}).result_rows == [
                ("it's \\ a\ttab\nline é",)
            ]
            assert client.query("SELECT arraySort({a:Array(String)})", {"a": ["b'", "a"]}).result_rows == [
                (["a", "b'"],)
            ]
            assert client.query_np("SELECT number FROM numbers(5)").sum() == 10
            with client.query_row_block_stream("SELECT number FROM numbers(900)") as stream:
                assert sum(len(block) for block in stream) == 900
            with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
                client.query("SELECT * FROM nothing")
            with pytest.raises(DatabaseError):
                client.insert("calls", [["x"]], column_names=["call_id"])
            with pytest.raises(DatabaseError):
                client.command("DROP TABLE calls")
        finally:
            client.close()

    await asyncio.to_thread(use)


async def test_plain_get_and_post(http: httpx.AsyncClient) -> None:
    """`curl` gets tab-separated text, by address or by body, with ClickHouse's headers."""
    answer = await http.get("", params={"query": "SELECT call_id, status FROM calls ORDER BY call_id LIMIT 1"})
    assert (200, f"call_{0:026d}\t200\n") == (answer.status_code, answer.text)
    assert "TabSeparated" == answer.headers["x-clickhouse-format"]
    assert "text/tab-separated-values; charset=UTF-8" == answer.headers["content-type"]
    for name in ("x-clickhouse-query-id", "x-clickhouse-server-display-name", "x-clickhouse-timezone"):
        assert answer.headers[name]
    assert "19" <= json.loads(answer.headers["x-clickhouse-summary"])["result_bytes"]
    by_body = await http.post("", content="SELECT count() FROM calls", params={"query_id": "q-1"})
    assert ("3\n", "q-1") == (by_body.text, by_body.headers["x-clickhouse-query-id"])
    split = await http.post("", content="FROM calls FORMAT CSV", params={"query": "SELECT count()"})
    assert split.text == "3\n"
    without_slash = await http.get(str(http.base_url).rstrip("/"), params={"query": "SELECT 1"})
    assert without_slash.text == "1\n"


@pytest.mark.parametrize(
    ("format_name", "kind", "start"),
    [
        ("Native", "application/octet-stream", b"\x01\x02\x01n"),
        ("JSON", "application/json", b'{\n\t"meta"'),
        ("JSONEachRow", "application/x-ndjson", b'{"n":0}\n{"n":1}\n'),
        ("JSONCompact", "application/json", b"{"),
        ("TabSeparated", "text/tab-separated-values", b"0\n1\n"),
        ("TabSeparatedWithNamesAndTypes", "text/tab-separated-values", b"n\nUInt64\n0\n1\n"),
        ("CSVWithNames", "text/csv", b'"n"\n0\n1\n'),
        ("RowBinary", "application/octet-stream", b"\x00" * 8 + b"\x01"),
        ("RowBinaryWithNamesAndTypes", "application/octet-stream", b"\x01\x01n\x06UInt64"),
        ("Arrow", "application/vnd.apache.arrow", b"ARROW1"),
        ("Parquet", "application/octet-stream", b"PAR1"),
    ],
)
async def test_formats(http: httpx.AsyncClient, format_name: str, kind: str, start: bytes) -> None:
    """A format is taken from the query, the address or a header."""
    sql = "SELECT number AS n FROM numbers(2)"
    by_query = await http.get("", params={"query": f"{sql} FORMAT {format_name};"})
    by_address = await http.get("", params={"query": sql, "default_format": format_name})
    by_header = await http.get("", params={"query": sql}, headers={"X-ClickHouse-Format": format_name})
    for answer in (by_query, by_address, by_header):
        assert answer.status_code == 200
        assert answer.content.startswith(start)
        assert format_name == answer.headers["x-clickhouse-format"]
        assert answer.headers["content-type"].startswith(kind)


async def test_parameters(http: httpx.AsyncClient) -> None:
    """`param_x` values are escaped text, as the protocol says, and never SQL."""
    for value, text in (
        ("a'b", "a\\'b\n"),
        ("x\\ty", "x\\ty\n"),
        ("1); DROP TABLE calls; --", "1); DROP TABLE calls; --\n"),
    ):
        answer = await http.get("", params={"query": "SELECT {x:String}", "param_x": value})
        assert text == answer.text
    unset = await http.get("", params={"query": "SELECT {x:String}"})
    assert (400, "456") == (unset.status_code, unset.headers["x-clickhouse-exception-code"])


async def test_compression(http: httpx.AsyncClient) -> None:
    """Large answers are compressed for clients that ask for it by both of the protocol's signs; queries may come compressed."""
    params = {"query": "SELECT repeat('x', 5000)", "enable_http_compression": "1"}
    asked = await http.get("", params=params, headers={"accept-encoding": "lz4, gzip"})
    assert ("gzip", "x" * 5000 + "\n") == (asked.headers["content-encoding"], asked.text)
    for without in ({"accept-encoding": "lz4"}, {"accept-encoding": "identity"}):
        assert "content-encoding" not in (await http.get("", params=params, headers=without)).headers
    plain = await http.get("", params={"query": params["query"]}, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    for encoding, body in (("gzip", gzip.compress(b"SELECT 42")), ("deflate", zlib.compress(b"SELECT 42"))):
        assert (await http.post("", content=body, headers={"content-encoding": encoding})).text == "42\n"


GRAFANA = {
    "default_format": "Native",
    "client_protocol_version": "54460",
    "database": "hephaestus",
    "enable_http_compression": "1",
}
GRAFANA_QUERIES = [
    "SELECT displayName(), version(), revision(), timezone()",
    "SELECT version()",
    "SELECT 1",
    "SELECT name FROM system.databases",
    "SELECT name FROM system.tables WHERE database = 'hephaestus'",
    "SELECT name, type, table FROM system.columns WHERE database = 'hephaestus' AND table = 'calls'",
    "DESC TABLE hephaestus.calls",
    """SELECT toStartOfInterval(toDateTime(started), INTERVAL 60 second) AS time, deployment, count() AS calls, avg(latency_us) / 1e6 AS s
    FROM hephaestus.calls WHERE ( started >= toDateTime64(1799999000, 3) AND started <= toDateTime64(1800003600, 3) )
    AND tenant IN ('acme', 'beta') GROUP BY time, deployment ORDER BY time ASC""",
    """SELECT minute AS time, sum(cost_usd) AS cost, arrayElement(quantilesTDigestMerge(0.5, 0.95, 0.99)(latency_us), 2) AS p95
    FROM calls_minute WHERE minute >= toDateTime(1799999000) GROUP BY time ORDER BY time""",
    "SELECT DISTINCT tenant FROM calls ORDER BY tenant",
    "SELECT * FROM calls",
    "SELECT * FROM attempts LIMIT 10",
]  # fmt: skip


@pytest.mark.parametrize("sql", GRAFANA_QUERIES)
async def test_what_grafana_sends(http: httpx.AsyncClient, sql: str) -> None:
    """Queries of Grafana's data source, in the form of its Go driver, are answered with blocks of the version it announced."""
    answer = await http.post(
        "", content=sql, params=GRAFANA, headers={"accept-encoding": "gzip", "user-agent": "grafana"}
    )
    assert answer.status_code == 200, answer.text
    plain = await http.post("", content=sql, params={"default_format": "Native"})
    assert plain.content
    assert with_block_headers(plain.content) == answer.content
    assert answer.content.startswith(b"\x01\x00\x02\xff\xff\xff\xff\x00")


async def test_grafana_without_rows(http: httpx.AsyncClient) -> None:
    """A query without rows is an empty answer, which the driver takes as no blocks."""
    answer = await http.post("", content="SELECT * FROM calls WHERE tenant = 'nobody'", params=GRAFANA)
    assert (200, b"") == (answer.status_code, answer.content)


async def test_states_are_refused_to_grafana_by_name(http: httpx.AsyncClient) -> None:
    """A column whose layout cannot be rewritten is an error that names it, not a broken stream."""
    answer = await http.post("", content="SELECT latency_us FROM calls_minute", params=GRAFANA)
    assert (501, "48") == (answer.status_code, answer.headers["x-clickhouse-exception-code"])
    assert "AggregateFunction" in answer.text


@pytest.mark.parametrize(
    ("params", "status", "number"),
    [
        ({"query": "SELECT * FROM nothing"}, 404, "60"),
        ({"query": "SELECT nothing FROM calls"}, 404, "47"),
        ({"query": "SELEC 1"}, 403, "164"),
        ({"query": "SELECT (1"}, 400, "62"),
        ({"query": ""}, 400, "62"),
        ({}, 400, "62"),
        ({"query": "SELECT 1 FORMAT Template"}, 400, "73"),
        ({"query": "SELECT 1", "default_format": "CustomSeparated"}, 400, "73"),
        ({"query": "SELECT 1", "database": "system"}, 404, "81"),
        ({"query": "SELECT 1", "database": "other"}, 404, "81"),
        ({"query": "SELECT 1", "role": "owner"}, 403, "497"),
        ({"query": "SELECT 1", "max_memory_usage": "0"}, 403, "164"),
        ({"query": "SELECT 1", "format_schema": "/etc/passwd"}, 403, "164"),
        ({"query": "SELECT 1", "compress": "1"}, 501, "48"),
        ({"query": "SELECT file('/etc/passwd')"}, 403, "497"),
        ({"query": "SELECT * FROM system.processes"}, 403, "497"),
        ({"query": "SELECT 1 INTO OUTFILE '/tmp/never'"}, 403, "164"),
        ({"query": "SELECT 1; SELECT 2"}, 400, "62"),
        ({"query": "SET ROLE owner"}, 403, "164"),
        ({"query": "KILL QUERY WHERE 1"}, 403, "164"),
        ({"query": "SELECT 1 SETTINGS max_execution_time = 0"}, 403, "164"),
        ({"query": "INSERT INTO calls (call_id) VALUES ('x')"}, 403, "164"),
        ({"query": "SELECT * FROM numbers(3001)"}, 500, "396"),
        ({"query": "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"}, 408, "159"),
        (
            {"query": "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", "max_execution_time": "600"},
            408,
            "159",
        ),
        ({"query": "SELECT 1" + " " * 300_000}, 0, ""),
    ],
)
async def test_errors(http: httpx.AsyncClient, params: dict[str, str], status: int, number: str) -> None:
    """What is wrong or forbidden is answered as a ClickHouse server does: status, number in a header, text with the number."""
    if not status:
        answer = await http.post("", content=params["query"])
        status, number = 400, "62"
    else:
        answer = await http.get("", params=params)
    assert (status, number) == (answer.status_code, answer.headers["x-clickhouse-exception-code"])
    assert answer.text.startswith(f"Code: {number}. DB::Exception: ")


def test_nothing_is_written(url: str, tmp_path: Path) -> None:
    """No way of asking makes the engine write a file."""
    target = tmp_path / "out"
    for sql in (f"SELECT 1 INTO OUTFILE '{target}'", f"EXPLAIN SELECT 1 INTO OUTFILE '{target}' TRUNCATE FORMAT CSV"):
        assert httpx.get(url, params={"query": sql}).status_code == 403
    assert list(tmp_path.iterdir()) == []


async def test_raised_limits_in_the_address_do_not_raise_limits(http: httpx.AsyncClient) -> None:
    """Bounds that clients send of their own accord are tolerated and change nothing."""
    raised = {"max_result_rows": "0", "max_result_bytes": "0", "result_overflow_mode": "break", "readonly": "0"}
    answer = await http.get("", params={"query": "SELECT * FROM numbers(3001)", **raised})
    assert answer.headers["x-clickhouse-exception-code"] == "396"


async def test_ping_and_other_paths(http: httpx.AsyncClient) -> None:
    """Ping says Ok; there is nothing else, and no other method."""
    ping = await http.get("ping")
    assert (200, "Ok.\n") == (ping.status_code, ping.text)
    assert (await http.get("dashboard")).status_code == 404
    assert (await http.get("../../etc/passwd")).status_code == 404
    assert (await http.delete("")).status_code == 405
    assert (await http.put("", content="SELECT 1")).status_code == 405


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\xff\xfe", {}),
        (b"SELECT '\xff'", {}),
        (b"not gzip", {"content-encoding": "gzip"}),
        (gzip.compress(b"SELECT 1" + b" " * 10_000_000, mtime=0), {"content-encoding": "gzip"}),
        (gzip.compress(b"SELECT 1", mtime=0)[:-9], {"content-encoding": "gzip"}),
        (b"SELECT 1", {"content-encoding": "br"}),
    ],
)
async def test_bodies_that_cannot_be_read(http: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> None:
    """Bad text, bad compression and bombs are refused."""
    answer = await http.post("", content=body, headers=headers)
    assert answer.status_code in (400, 501)
    assert answer.text.startswith("Code: ")


async def test_too_many_parameters(http: httpx.AsyncClient) -> None:
    """The address has a bounded number of parameters."""
    answer = await http.get("", params={"query": "SELECT 1", **{f"param_{n}": "x" for n in range(300)}})
    assert answer.status_code == 400


async def test_counts(http: httpx.AsyncClient, registry: CollectorRegistry) -> None:
    """Every query is counted by what became of it."""
    before = {result: counted(registry, result) for result in ("ok", "failed", "refused")}
    for sql in ("SELECT 1", "SELECT * FROM nothing", "SELECT file('x')"):
        await http.get("", params={"query": sql})
    assert {result: number + 1 for result, number in before.items()} == {
        result: counted(registry, result) for result in before
    }
    assert registry.get_sample_value("heph_door_running") == 0


async def test_many_at_once(filled: Store) -> None:
    """More queries than may run wait, more than may wait are told to come again, and all of them get an answer."""
    door = ClickHouseDoor(
        filled, settings=DoorSettings(concurrency=2, waiting_max=4), metrics=DoorMetrics(CollectorRegistry())
    )
    sql = "SELECT sum(sipHash64(number)) FROM numbers(10000000)"
    with serving(door) as address:
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            answers = await asyncio.gather(*(client.get("", params={"query": sql}) for _ in range(20)))
            codes = [answer.status_code for answer in answers]
            assert {200, 503} == set(codes)
            assert codes.count(200) >= 6
            assert (await client.get("", params={"query": "SELECT 1"})).text == "1\n"


PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def locked_registry() -> CollectorRegistry:
    """The locked door's counters."""
    return CollectorRegistry()


@pytest.fixture(scope="module")
def locked(filled: Store, locked_registry: CollectorRegistry) -> Iterator[str]:
    """The address of a door with a password."""
    settings = DoorSettings(user="reader", password="env:DOOR")
    with serving(
        ClickHouseDoor(filled, settings=settings, metrics=DoorMetrics(locked_registry), password=Secret(PASSWORD))
    ) as address:
        yield address


def basic(user: str, password: str) -> dict[str, str]:
    """Basic authentication."""
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("params", "headers", "status"),
    [
        ({}, {"x-clickhouse-user": "reader", "x-clickhouse-key": PASSWORD}, 200),
        ({}, basic("reader", PASSWORD), 200),
        ({"user": "reader", "password": PASSWORD}, {}, 200),
        ({}, {}, 401),
        ({"user": "reader"}, {}, 401),
        ({}, {"x-clickhouse-user": "reader", "x-clickhouse-key": "wrong"}, 403),
        ({}, {"x-clickhouse-user": "other", "x-clickhouse-key": PASSWORD}, 403),
        ({}, {"x-clickhouse-key": PASSWORD}, 403),
        ({}, basic("reader", "wrong"), 403),
        ({}, {"authorization": "Basic %%%"}, 401),
        ({}, {"authorization": f"Bearer {PASSWORD}"}, 401),
        ({"user": "reader", "password": "wrong"}, {}, 403),
        ({"user": "reader", "password": PASSWORD}, {"x-clickhouse-user": "reader", "x-clickhouse-key": "wrong"}, 403),
        ({}, {"x-clickhouse-user": "reader", "x-clickhouse-key": "é"}, 403),
    ],
)
async def test_password(
    locked: str, locked_registry: CollectorRegistry, params: dict[str, str], headers: dict[str, str], status: int
) -> None:
    """With a password everybody must show it, this machine too, in any of the protocol's three ways."""
    denied = counted(locked_registry, "denied")
    encoded = {name: value.encode("utf-8") for name, value in headers.items()}
    async with httpx.AsyncClient() as client:
        answer = await client.get(locked, params={"query": "SELECT 1", **params}, headers=encoded)
    assert status == answer.status_code
    if status != 200:
        assert answer.headers["x-clickhouse-exception-code"] == "516"
        assert PASSWORD not in answer.text
        assert denied + 1 == counted(locked_registry, "denied")


async def test_password_with_clickhouse_connect(locked: str) -> None:
    """The official client logs in, and is told when its password is wrong."""

    def use() -> None:
        client = connected(locked, username="reader", password=PASSWORD)
        assert client.command("SELECT count() FROM calls") == 3
        client.close()
        with pytest.raises(DatabaseError, match="Authentication failed"):
            connected(locked, username="reader", password="wrong")

    await asyncio.to_thread(use)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"host": "evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "10.0.0.1"},
        {"host": ""},
    ],
)
async def test_relayed_and_lured_callers_are_denied(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Without a password, a relay in front or a foreign name for this machine does not count as this machine."""
    answer = await http.get("", params={"query": "SELECT 1"}, headers=headers)
    assert (403, "516") == (answer.status_code, answer.headers["x-clickhouse-exception-code"])


async def test_callers_from_elsewhere_are_denied(filled: Store) -> None:
    """Without a password nobody from another address gets in, whatever they say; an unknown address is another address."""
    door = ClickHouseDoor(filled, settings=DoorSettings(), metrics=DoorMetrics(CollectorRegistry()))
    for client in (("10.0.0.7", 1), ("::ffff:10.0.0.7", 1), None):
        transport = httpx.ASGITransport(door, client=client)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as elsewhere:
            assert (await elsewhere.get("/clickhouse/", params={"query": "SELECT 1"})).status_code == 403
    door.close()
    door.close()


async def test_closed_door(filled: Store) -> None:
    """A door that the settings close says so, and still answers a ping."""
    door = ClickHouseDoor(filled, settings=DoorSettings(enabled=False), metrics=DoorMetrics(CollectorRegistry()))
    with serving(door) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            answer = await client.get("", params={"query": "SELECT 1"})
            assert (403, True) == (answer.status_code, "closed" in answer.text)
            assert (await client.get("ping")).status_code == 200

"""The ClickHouse door of a running control plane: the official client and plain requests, while calls are being written."""

from __future__ import annotations

import json

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.e2e.load import Load
from tests.e2e.processes import World, eventually

pytestmark = pytest.mark.e2e
CALLS = 30


async def _write(made: World, prompt: str) -> None:
    """Calls of their own tenant's key, in the store when this returns."""
    seen = await Load(made.base_url, made.key("globex")).burst(CALLS, prompt=None)
    assert {one.status for one in seen} == {200}, prompt
    ids = ", ".join(f"'{one.call_id}'" for one in seen)
    eventually(
        lambda: str(made.sql(f"SELECT count() AS n FROM calls WHERE call_id IN ({ids})")[0]["n"]) == str(CALLS),
        what="rows",
    )


async def test_the_official_client_reads_native_blocks(calm: World) -> None:
    """`clickhouse-connect` over HTTP gets typed columns, with query parameters, and cannot change anything."""
    await _write(calm, "native")
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=calm.port, proxy_path="/clickhouse", username="reader", database="hephaestus"
    )
    try:
        found = client.query(
            "SELECT tenant, count() AS n, sum(cost_usd) AS usd FROM calls WHERE tenant = {tenant:String} GROUP BY tenant",
            parameters={"tenant": "globex"},
        )
        ((tenant, count, usd),) = found.result_rows
        assert ("globex", True, True) == (tenant, count >= CALLS, usd > 0)
        frame = client.query("SELECT started, latency_us FROM calls ORDER BY started LIMIT 5")
        assert len(frame.result_rows) == 5
        for statement in ("DROP TABLE calls", "INSERT INTO calls (call_id) VALUES ('x')", "SELECT * FROM system.users"):
            with pytest.raises(DatabaseError):
                client.command(statement)
    finally:
        client.close()


@pytest.mark.parametrize("output", ["JSON", "JSONEachRow", "TabSeparated", "TabSeparatedWithNames"])
async def test_plain_requests_get_the_format_they_name(calm: World, output: str) -> None:
    """As with `curl`: the query in the URL or in the body, the format in its own clause."""
    url = f"http://127.0.0.1:{calm.port}/clickhouse/"
    sql = f"SELECT number, toString(number) AS text FROM numbers(3) FORMAT {output}"
    async with httpx.AsyncClient(timeout=20) as http:
        by_url = await http.get(url, params={"query": sql})
        by_body = await http.post(url, content=sql)
    assert (200, 200) == (by_url.status_code, by_body.status_code), by_url.text
    wanted = {
        "JSON": lambda text: len(json.loads(text)["data"]) == 3,
        "JSONEachRow": lambda text: len(text.splitlines()) == 3,
        "TabSeparated": lambda text: text == "0\t0\n1\t1\n2\t2\n",
        "TabSeparatedWithNames": lambda text: text == "number\ttext\n0\t0\n1\t1\n2\t2\n",
    }
    assert wanted[output](by_url.text)
    assert wanted[output](by_body.text)


async def test_a_greedy_query_ends_at_its_limits_and_the_control_plane_serves_on(calm: World) -> None:
    """A query without end is refused with an error, and afterwards the next one is answered."""
    url = f"http://127.0.0.1:{calm.port}/clickhouse/"
    async with httpx.AsyncClient(timeout=60) as http:
        greedy = await http.get(url, params={"query": "SELECT number FROM numbers(100000000) ORDER BY rand()"})
        assert greedy.status_code >= 400 or "Exception" in greedy.text
        assert "1" == (await http.get(url, params={"query": "SELECT 1"})).text.strip()
    assert 200 == calm.get(f"http://127.0.0.1:{calm.port}/readyz").status_code

"""The operator's resources: catalog, calls, incidents, runs, costs."""

from __future__ import annotations

import csv
import io

import httpx
import pytest

from controlplane.api.costs import exact_usd
from controlplane.api.pages import bounded
from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import ProxyStatus
from controlplane.errors import BadRequest
from controlplane.settings import ApiSettings, Settings
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import HOSTILE, OPERATOR, START_US, World


async def test_the_catalog_is_what_proxies_have(operator: httpx.AsyncClient) -> None:
    """Tenants and models come from the current snapshot."""
    assert [{"id": "acme"}] == (await operator.get("/api/v1/tenants")).json()["tenants"]
    assert "gpt-4o-mini" == (await operator.get("/api/v1/models")).json()["models"][0]["alias"]


async def test_proxies_are_shown_whole(world: World, operator: httpx.AsyncClient) -> None:
    """Every number of a proxy's status is there, zeros too."""
    world.publisher.confirm(ProxyStatus(proxy_id="p1", at_us=START_US, snapshot_version=7))
    answer = (await operator.get("/api/v1/proxies")).json()
    assert 7 == answer["snapshot_version"]
    (shown,) = answer["proxies"]
    assert ("p1", 0, 0, 0) == (shown["id"], shown["ledger_calls"], shown["ledger_nanousd"], shown["spool_dropped"])


async def test_a_key_is_made_shown_once_and_revoked(world: World, operator: httpx.AsyncClient) -> None:
    """The secret is in the first answer alone; the list never shows it nor its hash."""
    made = await operator.post("/api/v1/keys", json={"tenant": "acme", "name": "ci", "expires_in_s": 60})
    assert (201, "sk-heph-secret") == (made.status_code, made.json()["key"])
    listed = await operator.get("/api/v1/keys")
    assert "secret" not in listed.text
    assert "hash" not in listed.text
    (key,) = listed.json()["keys"]
    assert ("ci", START_US + 60 * US_PER_S, 0) == (key["name"], key["expires_us"], key["revoked_us"])
    assert START_US == (await operator.delete(f"/api/v1/keys/{key['id']}")).json()["revoked_us"]
    assert ["operator", "operator"] == world.keys.actors


async def test_a_key_for_an_unknown_tenant_is_not_made(operator: httpx.AsyncClient) -> None:
    """The tenant must exist."""
    assert 404 == (await operator.post("/api/v1/keys", json={"tenant": "nobody"})).status_code


async def test_calls_are_filtered_and_paged(world: World, operator: httpx.AsyncClient) -> None:
    """Filters reach the query as they are, and a full page says where the next one begins."""
    answer = (await operator.get("/api/v1/calls", params={"agent": HOSTILE, "outcome": "ok", "limit": 2})).json()
    assert 2 == len(answer["calls"])
    assert answer["calls"][-1]["started_us"] == answer["next_us"]
    (asked,) = world.calls.asked
    assert (HOSTILE, "ok", 2) == (asked.agent, asked.outcome, asked.limit)
    assert (START_US - 3600 * US_PER_S, START_US) == (asked.from_us, asked.to_us)
    assert 0 == (await operator.get("/api/v1/calls")).json()["next_us"]


async def test_pages_are_bounded_by_the_setting() -> None:
    """Who asks for more rows than allowed gets as many as allowed."""
    world = World(settings=Settings(api=ApiSettings(page_rows_max=3)))
    from controlplane.api.app import create_app  # noqa: PLC0415 - beside its use

    headers = {"authorization": f"Bearer {OPERATOR}"}
    transport = httpx.ASGITransport(create_app(world.parts))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
        assert 3 == len((await client.get("/api/v1/calls?limit=100000")).json()["calls"])


async def test_one_call_can_be_seen(operator: httpx.AsyncClient) -> None:
    """A call is found by its id, or not found."""
    assert "call_3" == (await operator.get("/api/v1/calls/call_3")).json()["call_id"]
    assert 404 == (await operator.get("/api/v1/calls/call_9")).status_code


async def test_incidents_have_their_story(operator: httpx.AsyncClient) -> None:
    """The list is a summary, the single incident has its timeline."""
    assert ["inc_1"] == [one["id"] for one in (await operator.get("/api/v1/incidents")).json()["incidents"]]
    assert [] == (await operator.get("/api/v1/incidents?state=firing")).json()["incidents"]
    story = (await operator.get("/api/v1/incidents/inc_1")).json()["timeline"]
    assert ("incident.opened", "incident.resolved") == (story[0]["kind"], story[-1]["kind"])


async def test_a_run_is_approved_once(world: World, operator: httpx.AsyncClient) -> None:
    """An approval names who gave it and why; a second one is a conflict."""
    assert 200 == (await operator.post("/api/v1/runs/run_1/approve", json={"reason": "go"})).status_code
    assert [("approve", "operator", "go")] == world.runs.decisions
    assert 409 == (await operator.post("/api/v1/runs/run_1/approve", json={})).status_code


@pytest.mark.parametrize("decision", ["reject", "abort"])
async def test_a_run_is_stopped(world: World, operator: httpx.AsyncClient, decision: str) -> None:
    """A run can be refused and stopped."""
    assert 200 == (await operator.post(f"/api/v1/runs/run_1/{decision}", json={"reason": "no"})).status_code
    assert [(decision, "operator", "no")] == world.runs.decisions
    assert ["run_1"] == [one["id"] for one in (await operator.get("/api/v1/runs")).json()["runs"]]


async def test_the_kill_switch_stops_healing_and_lets_it_go(operator: httpx.AsyncClient) -> None:
    """The switch says who engaged it and why."""
    assert not (await operator.get("/api/v1/kill-switch")).json()["engaged"]
    engaged = (await operator.put("/api/v1/kill-switch", json={"engaged": True, "reason": "storm"})).json()
    assert (True, "operator", "storm") == (engaged["engaged"], engaged["actor"], engaged["reason"])
    assert not (await operator.put("/api/v1/kill-switch", json={"engaged": False})).json()["engaged"]


async def test_costs_come_as_json_and_csv(operator: httpx.AsyncClient) -> None:
    """Both carry the same money, exact to the nano-USD; a formula in a name is made text."""
    report = (await operator.get("/api/v1/costs?by=agent,model")).json()
    assert 1_500_000_007 == report["total_nanousd"] == sum(row["nanousd"] for row in report["rows"])
    answer = await operator.get("/api/v1/costs?by=agent,model&format=csv")
    assert "text/csv; charset=utf-8" == answer.headers["content-type"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert ("'=1+1", "1.500000000") == (rows[0]["agent"], rows[0]["cost_usd"])
    assert "0.000000007" == rows[1]["cost_usd"]


@pytest.mark.parametrize(
    ("nanousd", "expected"),
    [(0, "0.000000000"), (1, "0.000000001"), (-1, "-0.000000001"), (10**18, "1000000000.000000000")],
)
def test_exact_money_has_nine_decimals(nanousd: int, expected: str) -> None:
    """Nothing is rounded."""
    assert expected == exact_usd(nanousd)


def test_a_period_has_two_ends() -> None:
    """Without ends it is the last hour; an empty one is refused."""
    now_us = START_US
    assert (now_us - 3600 * US_PER_S, now_us) == bounded(None, None, now_us=now_us)
    assert (1, 2) == bounded(1, 2, now_us=now_us)
    assert (0, 5) == bounded(None, 5, now_us=now_us)
    with pytest.raises(BadRequest):
        bounded(2, 2, now_us=now_us)

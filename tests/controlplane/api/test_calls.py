"""Calls over HTTP."""

from __future__ import annotations

import httpx

from controlplane.api.app import create_app
from controlplane.clock import US_PER_S
from controlplane.settings import ApiSettings, Settings
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import HOSTILE, OPERATOR, START_US, World


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
    headers = {"authorization": f"Bearer {OPERATOR}"}
    transport = httpx.ASGITransport(create_app(world.parts))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
        assert 3 == len((await client.get("/api/v1/calls?limit=100000")).json()["calls"])


async def test_one_call_can_be_seen(operator: httpx.AsyncClient) -> None:
    """A call is found by its id, or not found."""
    assert "call_3" == (await operator.get("/api/v1/calls/call_3")).json()["call_id"]
    assert 404 == (await operator.get("/api/v1/calls/call_9")).status_code

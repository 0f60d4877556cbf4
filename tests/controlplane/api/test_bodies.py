"""The bound on how long a body may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from controlplane.api.app import create_app
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.settings import Settings
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import OPERATOR, World


async def test_a_client_that_stops_sending_is_cut_off() -> None:
    """A body that does not come in time is answered with 408 and counted."""
    world = World(settings=Settings(proxy=ProxySettings(body_timeout_s=0.01)))
    never = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield b'{"tenant":'
        await never.wait()

    headers = {"authorization": f"Bearer {OPERATOR}"}
    transport = httpx.ASGITransport(create_app(world.parts))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
        answer = await client.post("/api/v1/keys", content=stalls())
    assert (408, "slow_body") == (answer.status_code, answer.json()["code"])
    assert 1.0 == world.metrics.registry.get_sample_value("heph_api_slow_bodies_total")

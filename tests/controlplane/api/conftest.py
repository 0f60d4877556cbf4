"""The HTTP face over a control plane in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from controlplane.api.app import create_app
from tests.controlplane.api.fakes import INTERNAL, OPERATOR, World

BASE_URL = "http://127.0.0.1:4001"


@pytest.fixture
def world() -> World:
    """Parts in memory."""
    return World()


@pytest.fixture
async def anonymous(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client that shows no token."""
    transport = httpx.ASGITransport(create_app(world.parts))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
        yield client


@pytest.fixture
async def operator(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the operator token."""
    transport = httpx.ASGITransport(create_app(world.parts))
    headers = {"authorization": f"Bearer {OPERATOR}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
        yield client


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the internal token."""
    transport = httpx.ASGITransport(create_app(world.parts))
    headers = {"authorization": f"Bearer {INTERNAL}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
        yield client

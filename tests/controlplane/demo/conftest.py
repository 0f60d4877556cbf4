"""A running provider that answers at once, and the official clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from controlplane.clock import ManualClock
from controlplane.demo.provider import Latency, Provider, ProviderConfig, upstreams_on
from tests.controlplane.demo.fakes import RawClient


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def provider(clock: ManualClock) -> AsyncIterator[Provider]:
    """Two upstreams on free ports, without latency."""
    config = ProviderConfig(upstreams=upstreams_on((0, 0)), latency=Latency(scale=0))
    running = Provider(config, clock=clock)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, without retries of its own."""
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0, timeout=10) as made:
        yield made


@pytest.fixture
async def raw(provider: Provider) -> AsyncIterator[RawClient]:
    """A bare connection to the first upstream."""
    made = await RawClient.connect(provider.port)
    yield made
    await made.close()

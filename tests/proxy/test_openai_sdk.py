"""The official OpenAI SDK, unchanged, through the proxy to the simulated provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from tests.proxy.fakes import KEY, World

MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture
async def served(world: World) -> AsyncIterator[World]:
    """A worker in front of a simulated provider."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    provider = Provider(config)
    await provider.start()
    world.apply(urls=(f"http://127.0.0.1:{provider.ports['primary']}/v1",), model="gpt-4o-mini")
    yield world
    await provider.stop()


async def test_async_completion_and_stream(served: World) -> None:
    """The answer and the joined stream of the same question are the same text."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        whole = await client.chat.completions.create(model="gpt", messages=MESSAGES, max_tokens=20)  # type: ignore[arg-type]
        stream = await client.chat.completions.create(
            model="gpt", messages=MESSAGES, max_tokens=20, stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens
    assert [whole.usage.total_tokens] * 2 == [record.tokens.total for record in served.records()]


async def test_sync_completion_and_stream(served: World) -> None:
    """The blocking client works as well."""

    def work() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
            whole = client.chat.completions.create(model="gpt", messages=MESSAGES, max_tokens=9)  # type: ignore[call-overload]
            stream = client.chat.completions.create(model="gpt", messages=MESSAGES, max_tokens=9, stream=True)  # type: ignore[call-overload]
            return whole.choices[0].message.content, "".join(item.choices[0].delta.content or "" for item in stream)

    whole, streamed = await asyncio.to_thread(work)
    assert whole == streamed


async def test_models_and_errors_are_the_sdks_own(served: World) -> None:
    """Models list, and our refusals become the SDK's typed errors."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        assert ["gpt"] == [model.id async for model in client.models.list()]
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model="none", messages=MESSAGES)  # type: ignore[arg-type]
        assert "no_route" == refused.value.code
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()

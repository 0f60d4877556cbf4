"""The official Anthropic SDK, unchanged, through the proxy to the simulated provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from controlplane.contract.snapshot import CachePolicy, TenantPolicy
from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from tests.proxy.fakes import KEY, World

MESSAGES: list[MessageParam] = [{"role": "user", "content": "Tell me about the sea."}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
async def served(world: World) -> AsyncIterator[World]:
    """A worker in front of a simulated provider that speaks Anthropic's language."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    provider = Provider(config)
    await provider.start()
    world.apply(
        urls=(f"http://127.0.0.1:{provider.ports['primary']}",),
        upstream={"dialect": "anthropic"},
        model="claude-sonnet-4-5",
    )
    yield world
    await provider.stop()


async def test_async_message_and_stream(served: World) -> None:
    """The answer and the joined stream of the same question are the same text, and cost the same."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY) as client:
        whole = await client.messages.create(model="gpt", messages=MESSAGES, max_tokens=20)
        async with client.messages.stream(model="gpt", messages=MESSAGES, max_tokens=20) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert isinstance(whole.content[0], anthropic.types.TextBlock)
    assert whole.content[0].text == text
    assert whole.stop_reason == final.stop_reason
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        final.usage.input_tokens,
        final.usage.output_tokens,
    )
    first, second = served.records()
    assert (first.tokens, first.cost_nanousd) == (second.tokens, second.cost_nanousd)
    assert whole.usage.input_tokens + whole.usage.output_tokens == first.tokens.total
    assert whole._request_id  # the SDK's own name for the header that support asks for


async def test_sync_message_and_stream(served: World) -> None:
    """The blocking client works as well, raw events included."""

    def work() -> tuple[str, list[str]]:
        with anthropic.Anthropic(base_url=served.url, api_key=KEY) as client:
            whole = client.messages.create(model="gpt", messages=MESSAGES, max_tokens=9)
            assert isinstance(whole.content[0], anthropic.types.TextBlock)
            events = client.messages.create(model="gpt", messages=MESSAGES, max_tokens=9, stream=True)
            return whole.content[0].text, [event.type for event in events]

    text, kinds = await asyncio.to_thread(work)
    assert text
    assert ("message_start", "message_stop") == (kinds[0], kinds[-1])
    assert {"content_block_start", "content_block_delta", "content_block_stop", "message_delta"} <= set(kinds)


async def test_tools_streamed_and_whole(served: World) -> None:
    """A forced tool is called with the same input either way."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY) as client:
        whole = await client.messages.create(
            model="gpt", messages=MESSAGES, max_tokens=200, tools=[WEATHER],
            tool_choice={"type": "tool", "name": "get_weather"},
        )  # fmt: skip
        async with client.messages.stream(
            model="gpt", messages=MESSAGES, max_tokens=200, tools=[WEATHER],
            tool_choice={"type": "tool", "name": "get_weather"},
        ) as stream:  # fmt: skip
            final = await stream.get_final_message()
    assert "tool_use" == whole.stop_reason == final.stop_reason
    called, streamed = whole.content[-1], final.content[-1]
    assert isinstance(called, anthropic.types.ToolUseBlock)
    assert isinstance(streamed, anthropic.types.ToolUseBlock)
    assert (called.name, called.input) == (streamed.name, streamed.input)


async def test_beta_and_counting(served: World) -> None:
    """The SDK's beta methods put a query into the path; counting costs nothing."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY) as client:
        counted = await client.messages.count_tokens(model="gpt", messages=MESSAGES)
        beta = await client.beta.messages.create(
            model="gpt", messages=[{"role": "user", "content": "Tell me about the sea."}], max_tokens=9
        )
    assert counted.input_tokens == beta.usage.input_tokens
    counting, _ = served.records()
    assert ("count_tokens", 0) == (counting.operation, counting.cost_nanousd)


async def test_models_and_errors_are_the_sdks_own(served: World) -> None:
    """Models list, and our refusals become the SDK's typed errors."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        assert ["gpt"] == [model.id async for model in client.models.list()]
        assert "gpt" == (await client.models.retrieve("gpt")).id
        with pytest.raises(anthropic.NotFoundError) as refused:
            await client.messages.create(model="none", messages=MESSAGES, max_tokens=9)
        assert "not_found_error" == refused.value.type
        assert refused.value.request_id
    async with anthropic.AsyncAnthropic(base_url=served.url, auth_token="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.models.list()


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 1000])
async def test_the_sdk_walks_the_pages_of_models(served: World, limit: int) -> None:
    """Every model comes once and in order, forwards from page to page, and backwards by `before_id`."""
    upstream = await served.upstream()
    names = ["alpha", "beta", "gamma", "omega"]
    served.apply(
        urls=(f"http://127.0.0.1:{upstream.port}",) * 5, others={name: (n + 1,) for n, name in enumerate(names)}
    )
    wanted = ["alpha", "beta", "gamma", "gpt", "omega"]
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        pages = [page async for page in (await client.models.list(limit=limit)).iter_pages()]
        before = await client.models.list(limit=limit, before_id="gpt")
    assert wanted == [model.id for page in pages for model in page.data]
    assert -(-len(wanted) // limit) == len(pages)
    assert (wanted[:3][-limit:], limit < 3) == ([model.id for model in before.data], before.has_more)


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "1001"}, {"limit": "many"}])
async def test_a_page_of_a_wrong_size_is_refused(served: World, query: dict[str, str]) -> None:
    """What is no limit is the client's mistake, told in its protocol; a model that is gone only marks a place."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.models.list(extra_query=query)
        assert "invalid_request_error" == refused.value.type
        assert ["gpt"] == [model.id async for model in client.models.list(after_id="a-model-of-yesterday")]


async def test_a_path_that_is_not_served_says_which_are(served: World) -> None:
    """The SDK's skills are its own exception, and the message tells of passthrough."""
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError, match="/passthrough/"):
            await client.beta.skills.retrieve("skill_1")
        with pytest.raises(anthropic.NotFoundError, match="/passthrough/"):
            await client.beta.skills.list()


async def test_a_bearer_token_is_a_key_too(served: World) -> None:
    """Claude Code sends ANTHROPIC_AUTH_TOKEN so."""
    async with anthropic.AsyncAnthropic(base_url=served.url, auth_token=KEY) as client:
        assert (await client.messages.create(model="gpt", messages=MESSAGES, max_tokens=9)).content


async def test_a_limit_is_the_sdks_own_error(served: World) -> None:
    """Whoever caught `RateLimitError` before still does."""
    served.apply(
        urls=tuple(
            item.upstream.base_url
            for item in served.worker.app.runtime.routes["gpt"].groups[0]  # type: ignore[union-attr]
        ),
        upstream={"dialect": "anthropic"},
        model="claude-sonnet-4-5",
        tenant=TenantPolicy(id="acme", requests_per_minute=0, cache=CachePolicy(enabled=False)),
    )
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(model="gpt", messages=MESSAGES, max_tokens=9)

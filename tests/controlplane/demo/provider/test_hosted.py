"""The simulated provider's own tools, as the vendors' SDKs read them: used when they are asked for, the same streamed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from proxy.dialects.hosted_tools import used_in

ASKS = "Please search the web, search the files, run code and draw a heron."
TOOLS: Any = [
    {"type": "web_search_preview"},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "image_generation"},
]
CLAUDES: Any = [
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    {"type": "code_execution_20250825", "name": "code_execution"},
]


@pytest.fixture
async def base() -> AsyncIterator[str]:
    """The address of a simulated provider that answers at once."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    made = Provider(config)
    await made.start()
    yield f"http://127.0.0.1:{made.ports['primary']}"
    await made.stop()


async def test_tools_of_a_response(base: str) -> None:
    """Four calls before the message, whole and streamed alike; a request that does not ask for them gets none."""
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="sk-test", max_retries=0) as client:
        whole = await client.responses.create(model="gpt-4o-mini", input=ASKS, tools=TOOLS)
        async with client.responses.stream(model="gpt-4o-mini", input=ASKS, tools=TOOLS) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_response()
        bounded = await client.responses.create(model="gpt-4o-mini", input=ASKS, tools=TOOLS, max_tool_calls=2)
        silent = await client.responses.create(model="gpt-4o-mini", input="Tell me about herons.", tools=TOOLS)
        raw = await client.responses.with_raw_response.create(model="gpt-4o-mini", input=ASKS, tools=TOOLS)
    names = ["web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"]
    assert [*names, "message"] == [item.type for item in whole.output] == [item.type for item in streamed.output]
    assert {f"response.{name}.completed" for name in names} <= set(kinds)
    assert [*names[:2], "message"] == [item.type for item in bounded.output]
    assert ["message"] == [item.type for item in silent.output]
    assert {"search": 1, "file_search": 1, "container": 1, "picture": 1} == dict(used_in(raw.content))


async def test_tools_of_a_message(base: str) -> None:
    """A search with its result and code with its own, in a container; the usage counts the search."""
    asked: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 400, "tools": CLAUDES}
    asked["messages"] = [{"role": "user", "content": ASKS}]
    async with anthropic.AsyncAnthropic(base_url=base, api_key="sk-ant-test", max_retries=0) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        raw = await client.messages.with_raw_response.create(**asked)
    kinds = ["server_tool_use", "web_search_tool_result", "server_tool_use", "bash_code_execution_tool_result", "text"]
    for found in (whole, streamed):
        assert kinds == [block.type for block in found.content]
        assert found.usage.server_tool_use is not None
        assert 1 == found.usage.server_tool_use.web_search_requests
    assert whole.container is not None
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    assert {"search": 1, "container": 1} == dict(used_in(raw.http_response.content))

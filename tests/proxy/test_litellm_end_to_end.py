"""OpenAI's and Anthropic's SDKs, served by the simulated endpoints of four providers of the long tail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from tests.proxy.fakes import KEY, World

# Of litellm and the models it is made of, which would otherwise fail inside it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SEA: Any = [{"role": "user", "content": "Tell me about the sea."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOL: Any = {"type": "function", "function": {"name": "book", "description": "books", "parameters": SCHEMA}}
OLLAMA = "ollama_chat/llama3.1"
GEMINI = "gemini/gemini-2.5-flash"
AZURE = "azure/gpt-4o-mini"
BEDROCK = "bedrock/converse/anthropic.claude-haiku-4-5-20251001-v1:0"


@pytest.fixture
async def base() -> AsyncIterator[str]:
    """The address of a simulated provider that answers at once."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    made = Provider(config)
    await made.start()
    yield f"http://127.0.0.1:{made.ports['primary']}"
    await made.stop()


def serve(world: World, base: str, model: str) -> None:
    """Serves the alias through litellm."""
    options = {}
    if model == AZURE:
        options = {"api_version": "2024-10-21"}
    if model == BEDROCK:
        options = {
            "aws_bedrock_runtime_endpoint": base,
            "aws_region_name": "eu-west-1",
            "aws_access_key_id": "AKIATEST",
            "aws_secret_access_key": "env:UP_KEY",
        }
    url = "" if model == BEDROCK else f"{base}/v1beta" if model == GEMINI else base
    knobs: dict[str, object] = {"dialect": "litellm", "options": options}
    world.apply(urls=(url,), model=model, upstream=knobs, route={"attempts_max": 1})


@pytest.mark.parametrize("model", [OLLAMA, GEMINI, AZURE, BEDROCK])
async def test_whole_and_streamed(world: World, base: str, model: str) -> None:
    """The same text, the same usage, the same tokens on record."""
    serve(world, base, model)
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        whole = await client.chat.completions.create(model="gpt", messages=SEA, max_tokens=30)
        stream = await client.chat.completions.create(
            model="gpt", messages=SEA, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens > 0
    assert [whole.usage.total_tokens] * 2 == [record.tokens.total for record in world.records()]
    assert ["stop", "length"].count(whole.choices[0].finish_reason) == 1


@pytest.mark.parametrize("model", [GEMINI, AZURE, BEDROCK])
async def test_a_tool(world: World, base: str, model: str) -> None:
    """The model calls what it must, with arguments of the schema."""
    serve(world, base, model)
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        found = await client.chat.completions.create(model="gpt", messages=SEA, tools=[TOOL], tool_choice="required")
    said = found.choices[0].message
    assert said.tool_calls is not None
    function = said.tool_calls[0].function  # type: ignore[union-attr]
    assert ("book", "tool_calls") == (function.name, found.choices[0].finish_reason)
    assert set(SCHEMA["required"]) <= json.loads(function.arguments).keys()


async def test_a_client_of_anthropics_at_gemini(world: World, base: str) -> None:
    """Messages to chat by us, chat to Gemini by litellm: whole and streamed agree."""
    serve(world, base, GEMINI)
    async with anthropic.AsyncAnthropic(base_url=world.url, api_key=KEY, max_retries=0) as client:
        whole = await client.messages.create(model="gpt", messages=SEA, max_tokens=30)
        async with client.messages.stream(model="gpt", messages=SEA, max_tokens=30) as stream:
            streamed = await stream.get_final_message()
    assert whole.content[0].text == streamed.content[0].text  # type: ignore[union-attr]
    assert (whole.usage.output_tokens, whole.stop_reason) == (streamed.usage.output_tokens, streamed.stop_reason)


async def test_responses_at_ollama(world: World, base: str) -> None:
    """Responses to chat by us, chat to Ollama by litellm: whole and streamed agree."""
    serve(world, base, OLLAMA)
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        whole = await client.responses.create(model="gpt", input=SEA, max_output_tokens=4000)
        async with client.responses.stream(model="gpt", input=SEA, max_output_tokens=4000) as stream:
            streamed = await stream.get_final_response()
    assert whole.output_text == streamed.output_text != ""
    assert whole.usage == streamed.usage


async def test_embeddings(world: World, base: str) -> None:
    """One vector for each input, in their order."""
    serve(world, base, "gemini/gemini-embedding-001")
    world.apply(urls=(f"{base}/v1beta",), model="gemini/gemini-embedding-001", upstream={"dialect": "litellm"})
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
        found = await client.embeddings.create(model="gpt", input=["one", "two"])
        alone = await client.embeddings.create(model="gpt", input="two")
    assert 2 == len(found.data)
    assert found.data[1].embedding == alone.data[0].embedding
    assert found.data[0].embedding != found.data[1].embedding

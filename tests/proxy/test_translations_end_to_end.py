"""The vendors' SDKs, each served in the other's language by the simulated provider: whole and streamed are the same, and so is the bill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from tests.proxy.fakes import KEY, World

SEA: Any = [{"role": "user", "content": "Tell me about the sea."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """A simulated provider that answers at once."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    made = Provider(config)
    await made.start()
    yield made
    await made.stop()


class TestChatServedByAnthropic:
    """OpenAI's SDK."""

    @pytest.fixture
    def client(self, world: World, provider: Provider) -> openai.AsyncOpenAI:
        """It, in front of an upstream that speaks Messages alone."""
        base = f"http://127.0.0.1:{provider.ports['primary']}"
        world.apply(urls=(base,), model="claude-haiku-4-5", upstream={"dialect": "anthropic"})
        return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0)

    async def test_whole_and_streamed(self, client: openai.AsyncOpenAI, world: World) -> None:
        """The same text, the same usage, the same tokens on record."""
        async with client:
            whole = await client.chat.completions.create(model="gpt", messages=SEA, max_tokens=30)
            stream = await client.chat.completions.create(
                model="gpt", messages=SEA, max_tokens=30, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert whole.choices[0].message.content == text
        assert whole.usage == chunks[-1].usage
        assert whole.usage is not None
        assert [whole.usage.total_tokens] * 2 == [record.tokens.total for record in world.records()]

    async def test_a_tool_and_its_result(self, client: openai.AsyncOpenAI) -> None:
        """The model calls what it must, and takes the result back."""
        tool: Any = {"type": "function", "function": {"name": "book", "parameters": SCHEMA}}
        async with client:
            first = await client.chat.completions.create(
                model="gpt", messages=SEA, tools=[tool], tool_choice="required"
            )
            said = first.choices[0].message
            assert said.tool_calls is not None
            turns: Any = [
                *SEA,
                said.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "done"},
            ]
            second = await client.chat.completions.create(model="gpt", messages=turns, tools=[tool])
        assert "tool_calls" == first.choices[0].finish_reason
        assert set(SCHEMA["required"]) <= json.loads(said.tool_calls[0].function.arguments).keys()  # type: ignore[union-attr]
        assert second.choices

    async def test_structured_output(self, client: openai.AsyncOpenAI) -> None:
        """The answer follows the schema."""
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
        async with client:
            found = await client.chat.completions.create(model="gpt", messages=SEA, response_format=wanted)
        assert set(SCHEMA["required"]) == json.loads(found.choices[0].message.content or "").keys()


class TestResponsesServedByAnthropic:
    """OpenAI's SDK, as agents use it now: responses, through two translations."""

    @pytest.fixture
    def client(self, world: World, provider: Provider) -> openai.AsyncOpenAI:
        """It, in front of an upstream that speaks Messages alone."""
        base = f"http://127.0.0.1:{provider.ports['primary']}"
        world.apply(urls=(base,), model="claude-haiku-4-5", upstream={"dialect": "anthropic"})
        return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0)

    async def test_whole_and_streamed(self, client: openai.AsyncOpenAI, world: World) -> None:
        """The same text, the same usage, the same tokens on record."""
        async with client:
            whole = await client.responses.create(model="gpt", input="Tell me about the sea.", max_output_tokens=4000)
            async with client.responses.stream(
                model="gpt", input="Tell me about the sea.", max_output_tokens=4000
            ) as stream:
                streamed = await stream.get_final_response()
        assert whole.output_text == streamed.output_text != ""
        assert whole.usage == streamed.usage
        assert whole.usage is not None
        assert [whole.usage.total_tokens] * 2 == [record.tokens.total for record in world.records()]
        assert {"responses"} == {record.operation for record in world.records()}

    async def test_a_tool_and_its_result(self, client: openai.AsyncOpenAI) -> None:
        """The whole turn goes back, as agents without stored state do it."""
        tool: Any = {"type": "function", "name": "book", "parameters": SCHEMA, "strict": True}
        turns: Any = [{"role": "user", "content": "Tell me about the sea."}]
        async with client:
            first = await client.responses.create(model="gpt", input=turns, tools=[tool], tool_choice="required")
            (call,) = (item for item in first.output if item.type == "function_call")
            turns += [item.model_dump(exclude_none=True) for item in first.output]
            turns += [{"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
            second = await client.responses.create(model="gpt", input=turns, tools=[tool])
        assert set(SCHEMA["required"]) <= json.loads(call.arguments).keys()
        assert second.output

    async def test_nothing_is_kept_there(self, client: openai.AsyncOpenAI) -> None:
        """A response cannot be continued by its identity: the client is told so, by the field."""
        async with client:
            first = await client.responses.create(model="gpt", input="hi")
            assert first.model_extra is not None
            with pytest.raises(openai.APIStatusError) as caught:
                await client.responses.create(model="gpt", input="and?", previous_response_id=first.id)
        assert caught.value.status_code in (400, 404)
        assert "previous" in caught.value.message.lower()


class TestMessagesServedByOpenAi:
    """Anthropic's SDK."""

    @pytest.fixture
    def client(self, world: World, provider: Provider) -> anthropic.AsyncAnthropic:
        """It, in front of an upstream that speaks chat completions alone."""
        world.apply(urls=(f"http://127.0.0.1:{provider.ports['primary']}/v1",), model="gpt-4o-mini")
        return anthropic.AsyncAnthropic(base_url=world.url, api_key=KEY, max_retries=0)

    async def test_whole_and_streamed(self, client: anthropic.AsyncAnthropic, world: World) -> None:
        """The same text, the same usage, the same tokens on record."""
        async with client:
            whole = await client.messages.create(model="gpt", messages=SEA, max_tokens=30)
            async with client.messages.stream(model="gpt", messages=SEA, max_tokens=30) as stream:
                streamed = await stream.get_final_message()
        assert whole.content[0].text == streamed.content[0].text  # type: ignore[union-attr]
        assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.stop_reason) == (
            streamed.usage.input_tokens,
            streamed.usage.output_tokens,
            streamed.stop_reason,
        )
        total = whole.usage.input_tokens + whole.usage.output_tokens
        assert [total] * 2 == [record.tokens.total for record in world.records()]

    async def test_a_tool_and_its_result_by_the_blocking_client(
        self, client: anthropic.AsyncAnthropic, world: World
    ) -> None:
        """The model calls what it must, and takes the result back."""
        await client.close()
        tool: Any = {"name": "book", "input_schema": SCHEMA}

        def work() -> tuple[str | None, Any, Any]:
            with anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0) as blocking:
                known: Any = {"model": "gpt", "max_tokens": 100, "tools": [tool]}
                first = blocking.messages.create(messages=SEA, tool_choice={"type": "any"}, **known)
                call: Any = first.content[-1]
                result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
                turns: Any = [
                    *SEA,
                    {"role": "assistant", "content": [block.model_dump() for block in first.content]},
                    {"role": "user", "content": [result]},
                ]
                return first.stop_reason, call, blocking.messages.create(messages=turns, **known)

        stop_reason, call, second = await asyncio.to_thread(work)
        assert "tool_use" == stop_reason
        assert set(SCHEMA["required"]) <= call.input.keys()
        assert second.content

    async def test_structured_output(self, client: anthropic.AsyncAnthropic) -> None:
        """The answer follows the schema."""
        wanted: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        async with client:
            found = await client.messages.create(model="gpt", messages=SEA, max_tokens=200, output_config=wanted)
        assert set(SCHEMA["required"]) == json.loads(found.content[0].text).keys()  # type: ignore[union-attr]

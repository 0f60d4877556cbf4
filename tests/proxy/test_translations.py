"""The vendors' own SDKs, unchanged, each served by the other vendor's language, over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from msgspec import structs

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, CacheState, Outcome
from controlplane.contract.snapshot import CachePolicy, TenantPolicy
from tests.proxy.anthropic_fakes import (
    MESSAGE_STOP,
    OVERLOADED,
    PING,
    message,
    sent_event,
    start,
    stop,
    streamed,
    text_block,
    whole_message,
)
from tests.proxy.fakes import (
    DONE,
    KEY,
    STREAM_END,
    STREAM_HEAD,
    Script,
    ScriptedUpstream,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    sends_then_hangs,
    usage_event,
    whole_stream,
)

HI: Any = [{"role": "user", "content": "hi"}]
IMAGE = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


async def behind(world: World, dialect: str, *scripts: Script, **applied: Any) -> ScriptedUpstream:
    """An upstream of this dialect behind the proxy."""
    upstream = await world.upstream(*scripts)
    path = "" if dialect == "anthropic" else "/v1"
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}{path}",), upstream={"dialect": dialect}, **applied)
    return upstream


def chat(world: World) -> openai.AsyncOpenAI:
    """OpenAI's client."""
    return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0)


def claude(world: World) -> anthropic.AsyncAnthropic:
    """Anthropic's client."""
    return anthropic.AsyncAnthropic(base_url=world.url, api_key=KEY, max_retries=0)


def overload(kind: str, status: int) -> Script:
    """An upstream of Anthropic's that refuses."""
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "not now"}}).encode()
    return replies(answer(body, status, "retry-after: 7", "request-id: req_9"))


class TestChatServedByAnthropic:
    """OpenAI's SDK in front of an upstream that speaks Messages."""

    async def test_an_answer(self, world: World) -> None:
        """The request arrives where and as Anthropic wants it; answer, usage and record agree."""
        usage = {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 4}
        upstream = await behind(world, "anthropic", replies(answer(message("Hello", usage))))
        async with chat(world) as client:
            found = await client.chat.completions.create(model="gpt", messages=HI, max_completion_tokens=20)
        assert ("Hello", "stop") == (found.choices[0].message.content, found.choices[0].finish_reason)
        assert found.usage is not None
        assert (13, 3, 16) == (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens)
        assert found.usage.prompt_tokens_details is not None
        assert 4 == found.usage.prompt_tokens_details.cached_tokens
        (seen,) = upstream.received
        assert "POST /v1/messages HTTP/1.1" == seen.line
        assert ("sk-upstream-secret", "2023-06-01") == (seen.headers["x-api-key"], seen.headers["anthropic-version"])
        assert "authorization" not in seen.headers
        assert 20 == seen.document["max_tokens"]
        (record,) = world.records()
        assert ("chat", Tokens(input=9, cache_read=4, output=3)) == (record.operation, record.tokens)
        assert ("stop", 9 * 1000 + 4 * 500 + 3 * 2000) == (record.finish_reason, record.cost_nanousd)

    async def test_the_ceiling_of_the_deployment_stands_in(self, world: World) -> None:
        """Anthropic demands one; where the client names none it is what was reserved for."""
        upstream = await behind(world, "anthropic", replies(answer(message())))
        async with chat(world) as client:
            await client.chat.completions.create(model="gpt", messages=HI)
        assert 16_384 == upstream.received[0].document["max_tokens"]

    async def test_nobody_asks_for_more_than_the_model_can_give(self, world: World) -> None:
        """A client's ceiling, and the tenant's where it names none, are bounded by the model's longest answer."""
        upstream = await behind(world, "anthropic", replies(answer(message())))
        world.apply(
            tenant=TenantPolicy("acme", max_output_tokens=9_000, cache=CachePolicy(enabled=False)),
            urls=(f"http://127.0.0.1:{upstream.port}",),
            upstream={"dialect": "anthropic"},
            deployment={"output_tokens_max": 4_096},
        )
        async with chat(world) as client:
            for asked in (9_000, openai.omit, 50):
                await client.chat.completions.create(model="gpt", messages=HI, max_completion_tokens=asked)
        assert [4_096, 4_096, 50] == [seen.document["max_tokens"] for seen in upstream.received]

    async def test_a_stream_with_tools_and_thinking(self, world: World) -> None:
        """The SDK's own accumulation, and the cost before the end."""
        tool = {**TOOL_USE, "input": {}}
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        events = [
            start(),
            PING,
            sent_event("content_block_start", index=0, content_block=thinking),
            sent_event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
            sent_event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"}),
            sent_event("content_block_stop", index=0),
            text_block("Let me ", "see", index=1),
            sent_event("content_block_start", index=2, content_block=tool),
            sent_event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
            sent_event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ": 1}"}),
            sent_event("content_block_stop", index=2),
            stop(reason="tool_use"),
            MESSAGE_STOP,
        ]
        await behind(world, "anthropic", replies(streamed(*events)))
        async with (
            chat(world) as client,
            client.chat.completions.stream(
                model="gpt", messages=HI, tools=[TOOL], stream_options={"include_usage": True}
            ) as stream,
        ):
            found = await stream.get_final_completion()
        choice = found.choices[0]
        assert ("Let me see", "tool_calls") == (choice.message.content, choice.finish_reason)
        assert choice.message.tool_calls is not None
        called = choice.message.tool_calls[0]
        assert ("toolu_1", "add", '{"a": 1}') == (called.id, called.function.name, called.function.arguments)
        assert found.usage is not None
        assert 12 == found.usage.total_tokens
        assert "hm" == choice.message.model_extra["reasoning_content"]  # type: ignore[index]
        (record,) = world.records()
        assert (True, "tool_calls", Outcome.OK) == (record.stream, record.finish_reason, record.outcome)
        assert record.first_token_us > 0

    async def test_the_end_of_a_stream_on_the_wire(self, world: World) -> None:
        """Usage that nobody asked for is not shown; the cost comes as a comment before `[DONE]`."""
        await behind(world, "anthropic", replies(whole_message("Hel", "lo")))
        response = await world.chat(stream=True)
        assert b"usage" not in response.content
        assert response.content.endswith(b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\n" + DONE)

    async def test_the_blocking_client_with_an_image_and_a_schema(self, world: World) -> None:
        """Bytes of an image, structured output, and the vendor's parser on the answer."""
        upstream = await behind(world, "anthropic", replies(answer(message('{"a": 1}'))))
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

        def work() -> str | None:
            with openai.OpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0) as client:
                content: Any = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "what?"}]
                found = client.chat.completions.create(
                    model="gpt",
                    messages=[{"role": "user", "content": content}],
                    response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
                )
                return found.choices[0].message.content

        assert '{"a": 1}' == await asyncio.to_thread(work)
        seen: Any = upstream.received[0].document
        source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
        assert {"type": "image", "source": source} == seen["messages"][0]["content"][0]
        assert {**schema, "additionalProperties": False} == seen["output_config"]["format"]["schema"]

    async def test_tool_results_go_back(self, world: World) -> None:
        """A second turn, with the call and its result."""
        upstream = await behind(world, "anthropic", replies(answer(message("2"))))
        turns: Any = [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ]
        async with chat(world) as client:
            await client.chat.completions.create(model="gpt", messages=turns, tools=[TOOL])
        seen: Any = upstream.received[0].document
        assert {"type": "tool_result", "tool_use_id": "call_1", "content": "2"} == seen["messages"][2]["content"][0]

    @pytest.mark.parametrize(
        ("kind", "status", "error"),
        [
            ("invalid_request_error", 400, openai.BadRequestError),
            ("rate_limit_error", 429, openai.RateLimitError),
            ("overloaded_error", 529, openai.InternalServerError),
        ],
    )
    async def test_errors_are_the_sdks_own(
        self, world: World, kind: str, status: int, error: type[openai.APIStatusError]
    ) -> None:
        """Each becomes the SDK's typed error, with the upstream's words."""
        await behind(world, "anthropic", overload(kind, status), route={"attempts_max": 1})
        async with chat(world) as client:
            with pytest.raises(error) as caught:
                await client.chat.completions.create(model="gpt", messages=HI)
        assert "not now" in caught.value.message

    async def test_an_upstream_with_too_much_to_do_may_be_asked_again(self, world: World) -> None:
        """Its 529 is a 503 for a client of OpenAI's, with what it says about when to come again."""
        await behind(world, "anthropic", overload("overloaded_error", 529), route={"attempts_max": 1})
        response = await world.chat()
        assert (503, "overloaded") == (response.status_code, response.json()["error"]["code"])
        assert ("7", None) == (response.headers["retry-after"], response.headers.get("x-should-retry"))
        (record,) = world.records()
        assert (Outcome.EXHAUSTED, 503) == (record.outcome, record.status)

    async def test_an_error_inside_a_stream(self, world: World) -> None:
        """After content the SDK raises what the upstream said."""
        await behind(world, "anthropic", replies(streamed(start(), text_block("Hel"), OVERLOADED)))
        async with chat(world) as client:
            with pytest.raises(openai.APIError, match="Overloaded"):
                async for _ in await client.chat.completions.create(model="gpt", messages=HI, stream=True):
                    pass
        await world.until_idle()
        assert Outcome.BROKEN_STREAM == world.records()[0].outcome

    async def test_a_request_that_cannot_be_said_is_refused_by_its_field(self, world: World) -> None:
        """No upstream is asked, and nothing is billed."""
        upstream = await behind(world, "anthropic", replies(answer(message())))
        response = await world.chat(n=2)
        assert (400, "n") == (response.status_code, response.json()["error"]["param"])
        assert [] == upstream.received
        (record,) = world.records()
        assert 0 == record.cost_nanousd

    async def test_a_deployment_that_can_say_it_takes_over(self, world: World) -> None:
        """What the first one's language cannot express goes to the next, which speaks the client's; the first is not asked."""
        first = await behind(world, "anthropic", replies(answer(message())))
        second = await world.upstream(replies(answer(completion("from the second"))))
        urls = (f"http://127.0.0.1:{first.port}", f"http://127.0.0.1:{second.port}/v1")
        world.apply(urls=urls, upstream={"dialect": "anthropic"})
        runtime = world.worker.app.runtime
        assert runtime is not None
        upstreams = (runtime.snapshot.upstreams[0], structs.replace(runtime.snapshot.upstreams[1], dialect="openai"))
        world.worker.apply(structs.replace(runtime.snapshot, version=runtime.version + 1, upstreams=upstreams))
        response = await world.chat(n=2)
        assert "from the second" == response.json()["choices"][0]["message"]["content"]
        assert ([], 1) == (first.received, len(second.received))
        assert "Hello" == (await world.chat()).json()["choices"][0]["message"]["content"]

    async def test_an_answer_is_kept_for_the_next(self, world: World) -> None:
        """The cache holds the translated answer and judges it by the client's words."""
        await behind(world, "anthropic", replies(answer(message())), tenant=TenantPolicy(id="acme"))
        first = await world.chat()
        second = await world.chat()
        assert first.content == second.content
        assert [CacheState.MISS, CacheState.HIT] == [record.cache for record in world.records()]

    async def test_a_client_that_leaves_cancels_the_upstream(self, world: World) -> None:
        """Streams that nobody reads are not paid to their end."""
        upstream = await behind(world, "anthropic", sends_then_hangs(STREAM_HEAD + chunk(start() + text_block("Hel"))))
        async with chat(world) as client:
            stream = await client.chat.completions.create(model="gpt", messages=HI, stream=True)
            async for _ in stream:
                break
            await stream.close()
        await asyncio.wait_for(upstream.client_left.wait(), 30)
        await world.until_idle()
        (record,) = world.records()
        assert (Outcome.CLIENT_CLOSED, AttemptError.CANCELLED) == (record.outcome, record.attempts[0].error)


class TestMessagesServedByOpenAi:
    """Anthropic's SDK in front of an upstream that speaks chat completions."""

    async def test_an_answer(self, world: World) -> None:
        """The request arrives where and as OpenAI wants it; answer, usage and record agree."""
        usage: dict[str, object] = {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        upstream = await behind(world, "openai", replies(answer(completion("Hello", usage))))
        async with claude(world) as client:
            found = await client.messages.create(model="gpt", max_tokens=20, messages=HI, system="be short")
        assert ("text", "Hello", "end_turn") == (found.content[0].type, found.content[0].text, found.stop_reason)  # type: ignore[union-attr]
        assert (5, 4, 3) == (found.usage.input_tokens, found.usage.cache_read_input_tokens, found.usage.output_tokens)
        (seen,) = upstream.received
        assert "POST /v1/chat/completions HTTP/1.1" == seen.line
        assert "Bearer sk-upstream-secret" == seen.headers["authorization"]
        assert not [name for name in seen.headers if name.startswith(("anthropic-", "x-api-key"))]
        assert [{"role": "system", "content": "be short"}, *HI] == seen.document["messages"]
        (record,) = world.records()
        assert ("messages", Tokens(input=5, cache_read=4, output=3)) == (record.operation, record.tokens)
        assert "end_turn" == record.finish_reason

    async def test_the_ceiling_that_claude_code_names_is_bounded_by_the_model(self, world: World) -> None:
        """Its 32,000 tokens are more than some models give, which OpenAI refuses: they are asked for all that they can."""
        upstream = await behind(world, "openai", replies(answer(completion())))
        world.apply(urls=(f"http://127.0.0.1:{upstream.port}/v1",), deployment={"output_tokens_max": 16_384})
        async with claude(world) as client:
            for asked in (32_000, 16_000):
                await client.messages.create(model="gpt", messages=HI, max_tokens=asked, timeout=30)
        assert [16_384, 16_000] == [seen.document["max_completion_tokens"] for seen in upstream.received]

    async def test_a_stream_with_tools(self, world: World) -> None:
        """The SDK's own accumulation, every event in its order."""
        begin = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
        events = [
            event(),
            event("Let me "),
            event("see"),
            event("", delta={"tool_calls": [begin]}),
            event("", delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}),
            event("", delta={"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
            event("", delta={}, finish_reason="tool_calls"),
            usage_event(),
            DONE,
        ]
        upstream = await behind(world, "openai", replies(STREAM_HEAD + chunk(b"".join(events)) + STREAM_END))
        tool: Any = {"name": "add", "input_schema": {"type": "object", "properties": {}}}
        async with (
            claude(world) as client,
            client.messages.stream(model="gpt", max_tokens=20, messages=HI, tools=[tool]) as stream,
        ):
            found = await stream.get_final_message()
        assert ["text", "tool_use"] == [block.type for block in found.content]
        assert ("call_1", {"a": 1}) == (found.content[1].id, found.content[1].input)  # type: ignore[union-attr]
        assert ("tool_use", 9, 3) == (found.stop_reason, found.usage.input_tokens, found.usage.output_tokens)
        assert {"include_usage": True} == upstream.received[0].document["stream_options"]
        (record,) = world.records()
        assert (True, "tool_use", Outcome.OK) == (record.stream, record.finish_reason, record.outcome)

    async def test_the_end_of_a_stream_on_the_wire(self, world: World) -> None:
        """The cost comes as a comment before `message_stop`."""
        await behind(world, "openai", replies(whole_stream("Hel", "lo")))
        async with claude(world) as client:
            response = await client.messages.with_raw_response.create(
                model="gpt", max_tokens=20, messages=HI, stream=True
            )
            body = await response.http_response.aread()
        assert body.endswith(b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\n" + MESSAGE_STOP)

    async def test_the_blocking_client_with_an_image_in_a_result(self, world: World) -> None:
        """What a tool showed reaches the model."""
        upstream = await behind(world, "openai", replies(answer(completion("a cat"))))
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
        turns: Any = [
            *HI,
            {"role": "assistant", "content": [TOOL_USE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}]},
        ]

        def work() -> str:
            with anthropic.Anthropic(base_url=world.url, api_key=KEY, max_retries=0) as client:
                found = client.messages.create(model="gpt", max_tokens=20, messages=turns)
                with client.messages.stream(model="gpt", max_tokens=20, messages=HI) as stream:
                    text = stream.get_final_text()
                return found.content[0].text + text  # type: ignore[union-attr]

        upstream.scripts.append(replies(whole_stream(" and a dog")))
        assert "a cat and a dog" == await asyncio.to_thread(work)
        seen: Any = upstream.received[0].document
        assert ["user", "assistant", "tool", "user"] == [turn["role"] for turn in seen["messages"]]
        assert {"url": IMAGE} == seen["messages"][3]["content"][0]["image_url"]

    @pytest.mark.parametrize(
        ("status", "code", "error"),
        [
            (400, "bad", anthropic.BadRequestError),
            (429, "rate_limit_exceeded", anthropic.RateLimitError),
            (503, "overloaded", anthropic.InternalServerError),
        ],
    )
    async def test_errors_are_the_sdks_own(
        self, world: World, status: int, code: str, error: type[anthropic.APIStatusError]
    ) -> None:
        """Each becomes the SDK's typed error, with the upstream's words."""
        await behind(world, "openai", fails(status, code), route={"attempts_max": 1})
        async with claude(world) as client:
            with pytest.raises(error) as caught:
                await client.messages.create(model="gpt", max_tokens=20, messages=HI)
        assert "upstream says no" in str(caught.value.body)

    async def test_an_error_inside_a_stream(self, world: World) -> None:
        """After content the SDK raises what the upstream said."""
        broken = event("Hel") + b'data: {"error":{"message":"gone","type":"server_error"}}\n\n'
        await behind(world, "openai", replies(STREAM_HEAD + chunk(event() + broken) + STREAM_END))
        async with claude(world) as client:
            with pytest.raises(anthropic.APIStatusError, match="gone"):
                async for _ in await client.messages.create(model="gpt", max_tokens=9, messages=HI, stream=True):
                    pass

    async def test_a_tool_of_anthropics_own_is_refused_by_its_field(self, world: World) -> None:
        """In the shape that the client reads."""
        upstream = await behind(world, "openai", replies(answer(completion())))
        tool: Any = {"type": "web_search_20250305", "name": "web_search"}
        async with claude(world) as client:
            with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.type"):
                await client.messages.create(model="gpt", max_tokens=20, messages=HI, tools=[tool])
        assert [] == upstream.received

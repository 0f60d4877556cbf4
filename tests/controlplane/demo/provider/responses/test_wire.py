"""The Responses API as the official client sees it: events, state, background, conversations, tools, structured output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from controlplane.clock import ManualClock
from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.fakes import RawClient, post
from tests.controlplane.demo.provider.vendor_types import named_events, strictly

ASK = "How do I reset my password?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather at a place.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}


def asking(**fields: Any) -> dict[str, Any]:
    """The body of a response to one question."""
    return {"model": "gpt-4o-mini", "input": ASK} | fields


async def test_response_counts_as_a_chat_completion_does(client: openai.AsyncOpenAI) -> None:
    """A response has a chat completion's text and tokens, and a usage that sums up."""
    made = await client.responses.create(**asking())
    messages: Any = [{"role": "user", "content": ASK}]
    chat = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    assert made.usage is not None
    assert chat.usage is not None
    assert chat.choices[0].message.content == made.output_text
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (
        made.usage.input_tokens,
        made.usage.output_tokens,
    )
    assert made.usage.input_tokens + made.usage.output_tokens == made.usage.total_tokens
    assert ("completed", "gpt-4o-mini-2024-07-18") == (made.status, made.model)


SHAPES: list[dict[str, Any]] = [
    {},
    {"instructions": "Be brief.", "metadata": {"a": "b"}, "service_tier": "flex"},
    {"max_output_tokens": 16},
    {"model": "o4-mini", "reasoning": {"effort": "low", "summary": "auto"}},
    {"tools": [WEATHER], "input": "Please get the weather in Paris"},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}},
    {"text": {"format": {"type": "json_schema", "name": "place", "schema": WEATHER["parameters"], "strict": True}}},
]


@pytest.mark.parametrize("fields", SHAPES)
async def test_stream_ends_with_what_the_answer_says(client: openai.AsyncOpenAI, fields: dict[str, Any]) -> None:
    """The last event carries the same response as a call without a stream, ids apart; the deltas make its text."""
    whole = await client.responses.create(**asking(**fields))
    events = [event async for event in await client.responses.create(**asking(**fields), stream=True)]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert without_ids(whole.model_dump()) == without_ids(last.response.model_dump())
    assert whole.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert list(range(len(events))) == [event.sequence_number for event in events]


def without_ids(document: Any) -> Any:
    """A document without what differs from call to call."""
    if isinstance(document, dict):
        return {key: without_ids(value) for key, value in document.items() if key != "id"}
    return [without_ids(part) for part in document] if isinstance(document, list) else document


@pytest.mark.parametrize("fields", SHAPES)
async def test_every_event_is_one_of_the_vendor(raw: RawClient, fields: dict[str, Any]) -> None:
    """Each event and each response has the fields of the SDK's type and no others but `store`."""
    await raw.send(post(asking(**fields, stream=True), path="/v1/responses"))
    events = named_events((await raw.answer())[2])
    for name, document in events:
        assert name == document["type"]
        document.get("response", {}).pop("store", None)
        strictly(ResponseStreamEvent, document)
    kinds = [name for name, _ in events]
    assert ["response.created", "response.in_progress", "response.output_item.added"] == kinds[:3]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done")
    await raw.send(post(asking(**fields), path="/v1/responses"))
    document = json.loads((await raw.answer())[2])
    document.pop("store")
    strictly(Response, document)


async def test_sdk_accumulates_the_stream(client: openai.AsyncOpenAI) -> None:
    """The SDK's own stream helper makes the final response, parsed into the class that was asked for."""

    class Ticket(pydantic.BaseModel):
        title: str
        urgent: bool

    async with client.responses.stream(**asking(), text_format=Ticket) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Ticket)
    assert isinstance((await client.responses.parse(**asking(), text_format=Ticket)).output_parsed, Ticket)


async def test_tools_are_called_and_their_outputs_answered(client: openai.AsyncOpenAI) -> None:
    """A call of a function is an item with valid arguments; its output gets a text; an output without a call is refused."""
    asked = await client.responses.create(**asking(tools=[WEATHER], input="Please get the weather in Paris"))
    call = asked.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["unit"] in ("c", "f")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    answer = await client.responses.create(**asking(tools=[WEATHER], input=[output], previous_response_id=asked.id))
    assert answer.output[0].type == "message"
    with pytest.raises(openai.BadRequestError, match="No tool call found"):
        await client.responses.create(**asking(input=[output]))
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        await client.responses.create(**asking(previous_response_id=asked.id))


async def test_earlier_turns_count_as_input(client: openai.AsyncOpenAI) -> None:
    """A response that follows another one pays for that one's input and output too, as if all were sent again."""
    first = await client.responses.create(**asking())
    second = await client.responses.create(**asking(input="And my email?", previous_response_id=first.id))
    everything: Any = [
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And my email?"},
    ]
    spelled = await client.responses.create(**asking(input=everything))
    counted = await client.responses.input_tokens.count(model="gpt-4o-mini", input=everything)
    assert second.usage is not None
    assert spelled.usage is not None
    assert spelled.usage.input_tokens == second.usage.input_tokens == counted.input_tokens
    assert spelled.output_text == second.output_text


async def test_responses_are_stored_listed_and_deleted(client: openai.AsyncOpenAI) -> None:
    """A response can be asked for again with its input, until it is deleted or when it was not to be stored."""
    made = await client.responses.create(**asking())
    again = await client.responses.retrieve(made.id)
    assert made.model_dump() == again.model_dump()
    items = [item async for item in client.responses.input_items.list(made.id)]
    assert [("message", "user")] == [(item.type, getattr(item, "role", None)) for item in items]
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        await client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="Previous response"):
        await client.responses.create(**asking(previous_response_id=made.id))
    unkept = await client.responses.create(**asking(store=False))
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unkept.id)


async def test_upstreams_do_not_know_each_others_responses(provider: Provider, client: openai.AsyncOpenAI) -> None:
    """What one upstream remembers is unknown to the other one."""
    made = await client.responses.create(**asking())
    other = client.with_options(base_url=f"http://127.0.0.1:{provider.upstreams[1].port}/v1")
    with pytest.raises(openai.NotFoundError):
        await other.responses.retrieve(made.id)


async def test_streamed_response_can_be_replayed(client: openai.AsyncOpenAI) -> None:
    """The events of a stored stream come again, from the one after the number that was named."""
    events = [event async for event in await client.responses.create(**asking(), stream=True)]
    created = events[0]
    assert created.type == "response.created"
    replay = await client.responses.retrieve(created.response.id, stream=True, starting_after=3)
    assert [event.model_dump() for event in events[4:]] == [event.model_dump() async for event in replay]


@pytest.fixture
async def slow(clock: ManualClock) -> AsyncIterator[openai.AsyncOpenAI]:
    """A provider that takes its time, by the test's clock."""
    config = ProviderConfig(upstreams=(UpstreamConfig(port=0),), latency=Latency(first_token_s=60))
    provider = Provider(config, clock=clock)
    await provider.start()
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0, timeout=10) as made:
        yield made
    await provider.stop()


async def test_background_response_goes_on_by_itself(slow: openai.AsyncOpenAI, clock: ManualClock) -> None:
    """A background response is answered at once, is in progress, and is there in the end."""
    made = await slow.responses.create(**asking(background=True))
    assert ("queued", [], None) == (made.status, made.output, made.usage)
    assert (await slow.responses.retrieve(made.id)).status == "in_progress"
    clock.move(3600)
    done = await slow.responses.retrieve(made.id)
    assert done.status == "completed"
    assert done.output_text
    assert (await slow.responses.cancel(made.id)).status == "completed"


async def test_background_response_can_be_cancelled(slow: openai.AsyncOpenAI, clock: ManualClock) -> None:
    """A cancelled response stays cancelled; one that is not in the background cannot be cancelled."""
    made = await slow.responses.create(**asking(background=True))
    assert (await slow.responses.cancel(made.id)).status == "cancelled"
    clock.move(3600)
    assert (await slow.responses.retrieve(made.id)).status == "cancelled"


async def test_synchronous_response_cannot_be_cancelled(client: openai.AsyncOpenAI) -> None:
    """Only a background response can be cancelled."""
    made = await client.responses.create(**asking())
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        await client.responses.cancel(made.id)


async def test_conversations_remember_their_items(client: openai.AsyncOpenAI) -> None:
    """A conversation holds what it was made with, then input and output of each response in it; items can be added and removed."""
    talk = await client.conversations.create(
        items=[{"role": "user", "content": "I am Ada.", "type": "message"}], metadata={"a": "b"}
    )
    first = await client.responses.create(**asking(conversation=talk.id))
    alone = await client.responses.create(**asking())
    assert first.usage is not None
    assert alone.usage is not None
    assert first.usage.input_tokens > alone.usage.input_tokens
    assert first.conversation is not None
    assert first.conversation.id == talk.id
    items = [item async for item in client.conversations.items.list(talk.id, order="asc", limit=1)]
    assert ["user", "user", "assistant"] == [getattr(item, "role", None) for item in items]
    added = await client.conversations.items.create(
        talk.id, items=[{"role": "user", "content": "More.", "type": "message"}]
    )
    one = added.data[0]
    assert one.type == "message"
    got = await client.conversations.items.retrieve(one.id, conversation_id=talk.id)
    assert got.id == one.id  # type: ignore[union-attr]
    await client.conversations.items.delete(one.id, conversation_id=talk.id)
    assert len([item async for item in client.conversations.items.list(talk.id)]) == 3
    assert (await client.conversations.update(talk.id, metadata={"c": "d"})).metadata == {"c": "d"}
    assert (await client.conversations.delete(talk.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(talk.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(**asking(conversation=talk.id))


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "claude-haiku-4-5"}, 404, None, "model_not_found"),
        ({"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
        ({"input": None}, 400, "input", "missing_required_parameter"),
        ({"input": [{"role": "nobody", "content": "a"}]}, 400, "input[0]", "invalid_value"),
        ({"input": "word " * 200_000}, 400, "input", "context_length_exceeded"),
        ({"max_output_tokens": 1}, 400, "max_output_tokens", "integer_below_min_value"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, 400, "tool_choice", None),
        ({"previous_response_id": "resp_0"}, 400, "previous_response_id", "previous_response_not_found"),
    ],
)
async def test_mistakes_are_told(
    raw: RawClient, fields: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    """Each mistake names its place and its kind."""
    await raw.send(post(asking(**fields), path="/v1/responses"))
    got, _, body = await raw.answer()
    error = json.loads(body)["error"]
    assert (status, param, code) == (got, error["param"], error["code"])


async def test_error_in_the_middle_of_a_stream(provider: Provider, raw: RawClient) -> None:
    """After some events comes an error, then the response as failed; both are the vendor's events."""
    provider.faults.add(Fault(FaultKind.STREAM_ERROR, after_chunks=6))
    await raw.send(post(asking(stream=True), path="/v1/responses"))
    events = named_events((await raw.answer())[2])
    assert ["error", "response.failed"] == [name for name, _ in events[6:]]
    for number, (_, document) in enumerate(events):
        document.get("response", {}).pop("store", None)
        assert strictly(ResponseStreamEvent, document).sequence_number == number
    failed = events[-1][1]["response"]
    assert ("failed", "server_error") == (failed["status"], failed["error"]["code"])


async def test_filtered_answer_is_incomplete(provider: Provider, client: openai.AsyncOpenAI) -> None:
    """A filtered response is incomplete for its filter, streamed or not."""
    provider.faults.add(Fault(FaultKind.CONTENT_FILTERED))
    made = [await client.responses.create(**asking())]
    events = [event async for event in await client.responses.create(**asking(), stream=True)]
    assert events[-1].type == "response.incomplete"
    made.append(events[-1].response)
    for one in made:
        assert one.incomplete_details is not None
        assert ("incomplete", "content_filter") == (one.status, one.incomplete_details.reason)


@pytest.mark.parametrize("stream", [False, True])
async def test_wrong_usage(provider: Provider, raw: RawClient, stream: bool) -> None:
    """The usage that is told is ten times the truth, which is billed."""
    provider.faults.add(Fault(FaultKind.WRONG_USAGE))
    await raw.send(post(asking(stream=stream), path="/v1/responses"))
    body = (await raw.answer())[2]
    usage = (named_events(body)[-1][1]["response"] if stream else json.loads(body))["usage"]
    counts = provider.upstreams[0].stats.by_model["gpt-4o-mini-2024-07-18"]
    assert (10 * counts.prompt_tokens, 10 * counts.completion_tokens) == (
        usage["input_tokens"],
        usage["output_tokens"],
    )


async def test_sync_client_streams(provider: Provider) -> None:
    """The synchronous client streams as the asynchronous one does."""

    def call() -> list[str]:
        with openai.OpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0) as sync:
            return [event.type for event in sync.responses.create(**asking(), stream=True)]

    assert (await asyncio.to_thread(call))[-1] == "response.completed"

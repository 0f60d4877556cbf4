"""The Messages API as the official client sees it: answers, streams, tools, thinking, structured output, caching, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pydantic
import pytest
import tiktoken
from anthropic.types import Message, RawMessageStreamEvent

from controlplane.clock import ManualClock
from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.fakes import RawClient, post
from tests.controlplane.demo.provider.vendor_types import named_events, strictly

MODEL = "claude-haiku-4-5"
ASK: Any = [{"role": "user", "content": "How do I reset my password?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
HEADERS = {"x-api-key": "sk-ant-test", "anthropic-version": "2023-06-01"}


def asking(**fields: Any) -> dict[str, Any]:
    """The body of a message with one question."""
    return {"model": MODEL, "max_tokens": 400, "messages": ASK} | fields


async def raw_answer(raw: RawClient, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    """The answer to a body, byte by byte."""
    await raw.send(post(asking(**fields), path="/v1/messages", key=None, headers=HEADERS))
    return await raw.answer()


async def test_answer_and_its_tokens_are_exact(claude: anthropic.AsyncAnthropic) -> None:
    """A message says how it stopped, has its text's exact token count, and costs the input that count_tokens says."""
    answer = await claude.messages.create(**asking(max_tokens=1000))
    block = answer.content[0]
    assert block.type == "text"
    assert len(tiktoken.get_encoding("o200k_base").encode_ordinary(block.text)) == answer.usage.output_tokens
    assert (await claude.messages.count_tokens(model=MODEL, messages=ASK)).input_tokens == answer.usage.input_tokens
    assert ("end_turn", None, "claude-haiku-4-5-20251001") == (
        answer.stop_reason,
        answer.stop_sequence,
        answer.model,
    )
    assert answer.id.startswith("msg_01")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 3},
        {"max_tokens": 0},
        {"stop_sequences": [" is", "password"]},
        {"tools": [WEATHER], "messages": [{"role": "user", "content": "Please get the weather in Paris"}]},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "get_weather"}},
        {"max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"max_tokens": 3000, "thinking": {"type": "adaptive"}},
        {"output_config": {"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}},
        {"system": "Answer shortly."},
    ],
)
async def test_stream_says_what_the_answer_says(claude: anthropic.AsyncAnthropic, fields: dict[str, Any]) -> None:
    """The SDK puts a stream together to the same message, ids apart, whatever was asked for."""
    whole = await claude.messages.create(**asking(**fields))
    async with claude.messages.stream(**asking(**fields)) as stream:
        streamed = await stream.get_final_message()
    left, right = (made.model_dump(exclude={"id"}) for made in (whole, streamed))
    for made in (left, right):
        for block in made["content"]:
            block.pop("parsed_output", None)
    assert left == right


async def test_every_event_is_one_of_the_vendor(raw: RawClient) -> None:
    """Each event has its name, and parses strictly into the SDK's type with no field that the type does not know."""
    fields: Any = {"stream": True, "max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    tools: Any = {"tools": [WEATHER], "messages": [{"role": "user", "content": "Please get_weather in Paris"}]}
    for more in ({}, tools):
        _, headers, body = await raw_answer(raw, **fields, **more)
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        events = named_events(body)
        for name, document in events:
            assert name == document["type"]
            if name != "ping":
                strictly(RawMessageStreamEvent, document)
        kinds = [name for name, _ in events]
        assert ["message_start", "content_block_start", "ping", "content_block_delta"] == kinds[:4]
        assert ["content_block_stop", "message_delta", "message_stop"] == kinds[-3:]


async def test_answers_parse_into_the_vendors_type(raw: RawClient) -> None:
    """A message has the fields of the SDK's type and no others."""
    body = (await raw_answer(raw, tools=[WEATHER], tool_choice={"type": "any"}))[2]
    strictly(Message, json.loads(body))


async def test_tools_are_called_and_their_results_answered(claude: anthropic.AsyncAnthropic) -> None:
    """A prompt that names a tool gets its call, and the result of the call gets a text."""
    messages: Any = [{"role": "user", "content": "Please get the weather in Paris"}]
    asked = await claude.messages.create(**asking(messages=messages, tools=[WEATHER]))
    intro, call = asked.content
    assert (asked.stop_reason, intro.type, call.type) == ("tool_use", "text", "tool_use")
    assert call.type == "tool_use"
    assert call.id.startswith("toolu_01")
    assert call.input["unit"] in ("c", "f")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 degrees"}]}
    messages += [asked.to_param(), {"role": "user", "content": [result]}]
    answer = await claude.messages.create(**asking(messages=messages, tools=[WEATHER]))
    assert ("end_turn", ["text"]) == (answer.stop_reason, [block.type for block in answer.content])


async def test_threads_are_refused_as_the_vendor_refuses_them(claude: anthropic.AsyncAnthropic) -> None:
    """Its clients know the code, and send the whole conversation without a thread."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        await claude.beta.messages.create(**asking(thread={"type": "create"}))
    body: Any = refused.value.body
    assert {"error_code": "thread_unsupported_request"} == body["error"]["details"]


async def test_structured_output_follows_its_schema(claude: anthropic.AsyncAnthropic) -> None:
    """`parse` of the SDK gets an object of the class that was asked for."""

    class Ticket(pydantic.BaseModel):
        title: str
        urgent: bool

    made = await claude.messages.parse(**asking(), output_format=Ticket)
    assert isinstance(made.parsed_output, Ticket)


async def test_thinking_is_counted_and_signed(claude: anthropic.AsyncAnthropic) -> None:
    """Thinking comes first, carries a signature, and is a part of the output tokens; omitted thinking costs the same."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = await claude.messages.create(**asking(max_tokens=3000, thinking=thinking))
    hidden = await claude.messages.create(**asking(max_tokens=3000, thinking=thinking | {"display": "omitted"}))
    first, shown = answer.content[0], hidden.content[0]
    assert first.type == "thinking"
    assert shown.type == "thinking"
    assert (first.signature, "") == (shown.signature, shown.thinking)
    assert answer.usage.output_tokens == hidden.usage.output_tokens
    details = answer.usage.output_tokens_details
    assert details is not None
    assert 0 < details.thinking_tokens < answer.usage.output_tokens


async def test_pictures_cost_by_their_size(claude: anthropic.AsyncAnthropic) -> None:
    """A picture of known size costs its pixels by 750, one of unknown size the most."""
    png = "iVBORw0KGgoAAAANSUhEUgAAAlgAAAEsCAYAAAAfPc2WAAAAAElFTkSuQmCC"  # 600 times 300
    costs = []
    for source in (
        {"type": "base64", "media_type": "image/png", "data": png},
        {"type": "url", "url": "https://example.com/a.png"},
    ):
        content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
        count = await claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": content}])
        costs.append(count.input_tokens)
    assert costs[1] - costs[0] == 1_568 - 240


# --- the prompt cache ----------------------------------------------------------------------------------------------------

RULES = " ".join(f"Rule {number}: be as brief as you can be." for number in range(400))


def cached(text: str, ttl: str = "5m") -> dict[str, Any]:
    """A block of text with a breakpoint behind it."""
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}


async def spent(claude: anthropic.AsyncAnthropic, **fields: Any) -> tuple[int, int, int, int]:
    """Input tokens: fresh, read, written for 5 minutes, written for an hour."""
    usage = (await claude.messages.create(**asking(**fields))).usage
    assert usage.cache_creation is not None
    assert usage.cache_creation_input_tokens == (
        usage.cache_creation.ephemeral_5m_input_tokens + usage.cache_creation.ephemeral_1h_input_tokens
    )
    return (
        usage.input_tokens,
        usage.cache_read_input_tokens or 0,
        usage.cache_creation.ephemeral_5m_input_tokens,
        usage.cache_creation.ephemeral_1h_input_tokens,
    )


async def test_prefix_is_written_once_and_read_until_it_expires(
    claude: anthropic.AsyncAnthropic, clock: ManualClock
) -> None:
    """A breakpoint writes its prefix; the same prefix is read as long as it is used within its time."""
    first = await spent(claude, system=[cached(RULES)])
    second = await spent(claude, system=[cached(RULES)], messages=[{"role": "user", "content": "Something else?"}])
    clock.move(299)
    third = await spent(claude, system=[cached(RULES)])
    clock.move(301)
    fourth = await spent(claude, system=[cached(RULES)])
    written = first[2]
    assert written > 4096
    assert [(0, written), (written, 0), (written, 0), (0, written)] == [
        spending[1:3] for spending in (first, second, third, fourth)
    ]
    assert first[0] == third[0] < 50


async def test_longer_conversation_reads_what_the_shorter_one_wrote(claude: anthropic.AsyncAnthropic) -> None:
    """Breakpoints that move on with the conversation read the earlier prefix and write only what is new."""
    turn: Any = {"role": "user", "content": [cached("Tell me about rye.", "1h")]}
    first = await spent(claude, system=[cached(RULES, "1h")], messages=[turn])
    more: Any = [turn, {"role": "assistant", "content": "Rye."}, {"role": "user", "content": [cached("And wheat?")]}]
    second = await spent(claude, system=[cached(RULES, "1h")], messages=more)
    assert (0, 0, 0) == first[:3]
    assert first[3] == second[1]
    assert 0 < second[2] < 30
    assert second[3] == 0


async def test_short_prefixes_are_not_cached(claude: anthropic.AsyncAnthropic) -> None:
    """A prefix below the model's minimum is neither written nor read."""
    for _ in range(2):
        assert (0, 0, 0) == (await spent(claude, system=[cached("Be brief.")]))[1:]


async def test_other_keys_do_not_share_a_prefix(claude: anthropic.AsyncAnthropic) -> None:
    """The prompt cache belongs to a key."""
    await spent(claude, system=[cached(RULES)])
    assert (await spent(claude.with_options(api_key="sk-ant-other"), system=[cached(RULES)]))[1] == 0


# --- errors and headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "gpt-4o"}, 404, "model: gpt-4o"),
        ({"messages": []}, 400, "messages: at least one message is required"),
        ({"max_tokens": -1}, 400, "max_tokens: Input should be greater than or equal to 0"),
        ({"max_tokens": 1_000_000}, 400, "max_tokens: 1000000 > 64000, which is the maximum allowed number of output"),
        ({"max_tokens": "many"}, 400, "max_tokens: Input should be a valid integer"),
        ({"temperature": 1.5}, 400, "temperature: Input should be less than or equal to 1"),
        ({"messages": [{"role": "user"}]}, 400, "content: Field required"),
        ({"messages": [{"role": "user", "content": "word " * 200_000}]}, 400, "prompt is too long: "),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "`max_tokens` must be greater than"),
        ({"tool_choice": {"type": "any"}}, 400, "tool_choice may only be specified while providing tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, 400, "Tool 'x' not found"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            400,
            "messages.0.content.0: unexpected `tool_use_id` found in `tool_result` blocks: a",
        ),
        ({"system": [cached("a")] * 5}, 400, "A maximum of 4 blocks with cache_control may be provided. Found 5."),
    ],
)
async def test_mistakes_are_told_in_anthropics_words(
    raw: RawClient, fields: dict[str, Any], status: int, words: str
) -> None:
    """Each mistake has its status, its type, its words, and the id of its request in body and headers."""
    got, headers, body = await raw_answer(raw, **fields)
    document = json.loads(body)
    assert status == got
    assert words in document["error"]["message"]
    assert {"type", "error", "request_id"} == set(document)
    kind = {404: "not_found_error"}.get(status, "invalid_request_error")
    assert ("error", kind, headers["request-id"]) == (
        document["type"],
        document["error"]["type"],
        document["request_id"],
    )


async def test_unknown_fields_and_betas_are_accepted(claude: anthropic.AsyncAnthropic) -> None:
    """A field that is not known here is no mistake; neither is a beta header."""
    answer = await claude.messages.create(
        **asking(), extra_body={"context_management": {"edits": []}}, extra_headers={"anthropic-beta": "new-2030-01-01"}
    )
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": "sk-ant-test"}, 400, "invalid_request_error"),
    ],
)
async def test_key_and_version_are_required(raw: RawClient, headers: dict[str, str], status: int, kind: str) -> None:
    """A request needs a key and the version header."""
    await raw.send(post(asking(), path="/v1/messages", key=None, headers=headers))
    got, _, body = await raw.answer()
    assert (status, kind) == (got, json.loads(body)["error"]["type"])


async def test_limits_are_told_and_enforced() -> None:
    """Rate-limit headers have Anthropic's names and moments; beyond the limit there is a 429 with a time to wait."""
    config = ProviderConfig(
        upstreams=(UpstreamConfig(port=0),), latency=Latency(scale=0), requests_per_minute=1, limits_enforced=True
    )
    provider = Provider(config, clock=ManualClock())
    await provider.start()
    raw = await RawClient.connect(provider.port)
    try:
        _, headers, _ = await raw_answer(raw)
        for name in ("requests", "tokens", "input-tokens", "output-tokens"):
            assert int(headers[f"anthropic-ratelimit-{name}-limit"]) > 0
            assert headers[f"anthropic-ratelimit-{name}-reset"].endswith("Z")
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert len(headers["anthropic-organization-id"]) == 36
        status, headers, body = await raw_answer(raw)
        assert (429, "rate_limit_error", "60") == (
            status,
            json.loads(body)["error"]["type"],
            headers["retry-after"],
        )
    finally:
        await raw.close()
        await provider.stop()


async def test_models_are_listed_in_pages(claude: anthropic.AsyncAnthropic) -> None:
    """The SDK walks the pages, gets every model once, and finds each by its name."""
    names = [model.id async for model in claude.models.list(limit=2)]
    assert len(set(names)) == len(names) > 4
    assert names[0] == (await claude.models.retrieve(names[0])).id
    with pytest.raises(anthropic.NotFoundError):
        await claude.models.retrieve("gpt-4o")


async def test_too_large_a_body_is_told_in_anthropics_words(provider: Provider) -> None:
    """A body beyond the limit is refused before it is read, in the shape of the path it was sent to."""
    raw = await RawClient.connect(provider.port)
    await raw.send(post(b" " * (16 * 1024 * 1024 + 1), path="/v1/messages", headers=HEADERS, key=None))
    status, _, body = await raw.answer()
    await raw.close()
    assert (413, "request_too_large") == (status, json.loads(body)["error"]["type"])


# --- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (Fault(FaultKind.OUTAGE_500), 500, "api_error"),
        (Fault(FaultKind.OUTAGE_503), 503, "api_error"),
        (Fault(FaultKind.OVERLOADED), 529, "overloaded_error"),
        (Fault(FaultKind.RATE_LIMITED, retry_after_s=2.5), 429, "rate_limit_error"),
        (Fault(FaultKind.REVOKED_KEY), 401, "authentication_error"),
        (Fault(FaultKind.QUOTA_EXHAUSTED), 400, "invalid_request_error"),
        (Fault(FaultKind.CONTEXT_EXCEEDED), 400, "invalid_request_error"),
        (Fault(FaultKind.CONTENT_POLICY), 400, "invalid_request_error"),
        (Fault(FaultKind.STATUS, status=403), 403, "permission_error"),
    ],
)
async def test_faults_that_answer_an_error(
    provider: Provider, raw: RawClient, fault: Fault, status: int, kind: str
) -> None:
    """Each fault answers Anthropic's error body."""
    provider.faults.add(fault)
    got, headers, body = await raw_answer(raw)
    document = json.loads(body)
    assert (status, kind) == (got, document["error"]["type"])
    assert document["request_id"] == headers["request-id"]
    if fault.kind is FaultKind.RATE_LIMITED:
        assert headers["retry-after"] == "3"
    if fault.kind is FaultKind.CONTEXT_EXCEEDED:
        assert document["error"]["message"].startswith("prompt is too long: ")


async def test_error_in_the_middle_of_a_stream(provider: Provider, claude: anthropic.AsyncAnthropic) -> None:
    """After some events comes `event: error`, which the SDK raises; the truth about it is billed as broken."""
    provider.faults.add(Fault(FaultKind.STREAM_ERROR, after_chunks=6))
    with pytest.raises(anthropic.APIStatusError, match="Internal server error"):
        async for _ in await claude.messages.create(**asking(stream=True)):
            pass
    counts = provider.upstreams[0].stats.by_model["claude-haiku-4-5-20251001"]
    assert (1, 1) == (counts.calls, counts.broken)


async def test_filtered_answer_ends_with_a_refusal(provider: Provider, claude: anthropic.AsyncAnthropic) -> None:
    """A filtered answer is a 200 that stopped for the reason `refusal`, streamed or not."""
    provider.faults.add(Fault(FaultKind.CONTENT_FILTERED))
    assert (await claude.messages.create(**asking())).stop_reason == "refusal"
    async with claude.messages.stream(**asking()) as stream:
        assert (await stream.get_final_message()).stop_reason == "refusal"


async def test_truncated_and_malformed_streams(provider: Provider, raw: RawClient) -> None:
    """A stream can end without its message_stop, and one event can be no JSON."""
    provider.faults.add(Fault(FaultKind.MALFORMED_JSON, after_chunks=4))
    events = (await raw_answer(raw, stream=True))[2].decode().strip().split("\n\n")
    assert [4] == [index for index, event in enumerate(events) if not event.endswith("}")]
    provider.faults.clear()
    provider.faults.add(Fault(FaultKind.TRUNCATED_STREAM, after_chunks=10_000))
    await raw.send(post(asking(stream=True), path="/v1/messages", key=None, headers=HEADERS))
    await raw.head()
    rest = await raw.reader.read()
    assert b"message_delta" in rest
    assert b"message_stop" not in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_wrong_usage(provider: Provider, raw: RawClient, stream: bool) -> None:
    """The usage that is told is ten times the truth, which is billed."""
    provider.faults.add(Fault(FaultKind.WRONG_USAGE))
    body = (await raw_answer(raw, stream=stream))[2].decode()
    told = (
        [json.loads(part.split("data: ")[1]) for part in body.strip().split("\n\n")] if stream else [json.loads(body)]
    )
    usage = next(document["usage"] for document in reversed(told) if "usage" in document)
    counts = provider.upstreams[0].stats.by_model["claude-haiku-4-5-20251001"]
    assert (10 * counts.prompt_tokens, 10 * counts.completion_tokens) == (
        usage["input_tokens"],
        usage["output_tokens"],
    )


async def test_reset_leaves_no_answer(provider: Provider, claude: anthropic.AsyncAnthropic) -> None:
    """A reset ends the connection before an answer."""
    provider.faults.add(Fault(FaultKind.RESET))
    with pytest.raises(anthropic.APIConnectionError):
        await claude.messages.create(**asking())


async def test_sync_client_streams(provider: Provider) -> None:
    """The synchronous client streams, answers and uses tools as the asynchronous one does."""

    def call() -> str:
        base_url = provider.base_url.removesuffix("/v1")
        with (
            anthropic.Anthropic(base_url=base_url, api_key="sk-ant-test", max_retries=0) as sync,
            sync.messages.stream(**asking()) as stream,
        ):
            return "".join(stream.text_stream)

    assert await asyncio.to_thread(call)

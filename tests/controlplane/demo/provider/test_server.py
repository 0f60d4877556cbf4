"""The provider as the official client sees it: answers, streams, tools, structured output, embeddings, errors, and the process."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
import tiktoken

from controlplane.clock import ManualClock
from controlplane.demo.faults import Fault, FaultError, FaultKind, FaultMatch
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig, upstreams_on
from tests.controlplane.demo.fakes import RawClient, post, question

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ASK: Any = [{"role": "user", "content": "How do I reset my password?"}]


def exact_count(text: str) -> int:
    """Tokens of a text by the real tokenizer."""
    return len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))


async def test_answer_and_its_tokens_are_exact(client: openai.AsyncOpenAI) -> None:
    """A chat completion has the text's exact token count and OpenAI's published prompt count."""
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    text = answer.choices[0].message.content or ""
    assert answer.usage is not None
    assert exact_count(text) == answer.usage.completion_tokens
    assert 3 + 3 + exact_count("user") + exact_count(ASK[0]["content"]) == answer.usage.prompt_tokens
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert answer.system_fingerprint is not None
    assert answer.id.startswith("chatcmpl-")


async def test_stream_says_what_the_answer_says(client: openai.AsyncOpenAI) -> None:
    """A stream carries the role first, then the same text, then a finish reason, then the same usage."""
    whole = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    stream = await client.chat.completions.create(
        model="gpt-4o-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert whole.choices[0].message.content == text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert whole.usage == chunks[-1].usage
    assert {None} == {chunk.usage for chunk in chunks[:-1]}
    assert len({chunk.id for chunk in chunks}) == 1


def test_sync_client_works_against_the_process(tmp_path: Path) -> None:
    """The provider as a process of its own serves the synchronous client, and ends at once on SIGTERM."""
    script = tmp_path / "faults.yaml"
    script.write_text("faults:\n  - {kind: outage_503, match: {model: gpt-4*}}\n")

    async def serve_and_call() -> int:
        command = [
            sys.executable,
            "-m",
            "controlplane.demo.provider",
            "--port",
            "0",
            "--latency-scale",
            "0",
            "--faults",
            str(script),
        ]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        base_url = (await process.stdout.readline()).decode().split()[-1]
        await asyncio.to_thread(call, base_url)
        process.send_signal(signal.SIGTERM)
        await process.stdout.read()
        return await process.wait()

    def call(base_url: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key="sk-test", max_retries=0) as sync:
            answer = sync.chat.completions.create(model="gpt-3.5-turbo", messages=ASK)
            assert answer.choices[0].message.content
            pieces = list(sync.chat.completions.create(model="gpt-3.5-turbo", messages=ASK, stream=True))
            assert answer.choices[0].message.content == "".join(p.choices[0].delta.content or "" for p in pieces)
            with pytest.raises(openai.InternalServerError, match="overloaded"):
                sync.chat.completions.create(model="gpt-4o", messages=ASK)

    assert asyncio.run(serve_and_call()) == 0


async def test_tool_call_is_valid_for_its_schema_and_streams_to_the_same(client: openai.AsyncOpenAI) -> None:
    """A prompt that names a tool gets a call with valid arguments, the same when it is streamed as deltas."""
    messages: Any = [{"role": "user", "content": "Please get the weather in Paris"}]
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert arguments["unit"] in ("c", "f")
    assert 1 <= arguments["days"] <= 7
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[WEATHER], stream=True)
    deltas = [d for chunk in [c async for c in stream] for d in chunk.choices[0].delta.tool_calls or ()]
    assert (call.id, "get_weather") == (deltas[0].id, deltas[0].function.name if deltas[0].function else "")
    streamed = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert call.function.arguments == streamed
    assert len(deltas) > 3


@pytest.mark.parametrize(
    ("choice", "finish_reason", "calls"),
    [
        ("auto", "stop", 0),
        ("none", "stop", 0),
        ("required", "tool_calls", 1),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop", 1),
    ],
)
async def test_tool_choice(client: openai.AsyncOpenAI, choice: Any, finish_reason: str, calls: int) -> None:
    """A question that asks for no tool gets a call only when the tool choice forces one."""
    answer = await client.chat.completions.create(
        model="gpt-4o-mini", messages=ASK, tools=[WEATHER], tool_choice=choice
    )
    assert finish_reason == answer.choices[0].finish_reason
    assert calls == len(answer.choices[0].message.tool_calls or ())


async def test_answer_after_a_tool_result_is_text(client: openai.AsyncOpenAI) -> None:
    """Once the tool has answered, the model speaks instead of calling it again."""
    messages: Any = [{"role": "user", "content": "get the weather in Paris"}]
    first = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[WEATHER])
    made = (first.choices[0].message.tool_calls or [])[0]
    messages += [first.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": made.id, "content": "sunny"}]
    second = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content


class Step(pydantic.BaseModel):
    """A part of a plan."""

    name: str
    kind: Literal["check", "change"]
    minutes: int


class Plan(pydantic.BaseModel):
    """A structured answer."""

    title: str
    steps: list[Step]
    owner: str | None
    urgent: bool


async def test_structured_output_parses(client: openai.AsyncOpenAI) -> None:
    """The official client's `parse` gets an object of the asked type."""
    answer = await client.chat.completions.parse(model="gpt-4o-mini", messages=ASK, response_format=Plan)
    assert isinstance(answer.choices[0].message.parsed, Plan)


async def test_json_object(client: openai.AsyncOpenAI) -> None:
    """`json_object` gets a JSON object."""
    messages: Any = [{"role": "user", "content": "Answer in JSON: what is DNS?"}]
    answer = await client.chat.completions.create(
        model="gpt-4o-mini", messages=messages, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


async def test_several_choices_differ_and_stream_apart(client: openai.AsyncOpenAI) -> None:
    """n choices are n texts, and their streamed deltas can be told apart by their index."""
    whole = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=3, stream=True)
    streamed = ["", "", ""]
    async for chunk in stream:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == streamed
    assert whole.usage is not None
    assert sum(exact_count(text or "") for text in texts) == whole.usage.completion_tokens


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_output_ceiling(client: openai.AsyncOpenAI, field: str) -> None:
    """A ceiling cuts the answer at exactly so many tokens and says so."""
    ceiling: Any = {field: 5}
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, **ceiling)
    assert answer.usage is not None
    assert (5, "length") == (answer.usage.completion_tokens, answer.choices[0].finish_reason)


async def test_stop_sequence_is_left_out(client: openai.AsyncOpenAI) -> None:
    """The answer ends before the first stop sequence."""
    whole = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    cut = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, stop=["."])
    assert (whole.choices[0].message.content or "").split(".")[0] == cut.choices[0].message.content


async def test_reasoning_model_reports_hidden_tokens(client: openai.AsyncOpenAI) -> None:
    """Reasoning tokens are part of the completion tokens, and a low ceiling leaves no visible text."""
    answer = await client.chat.completions.create(model="o4-mini", messages=ASK)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    reasoning = answer.usage.completion_tokens_details.reasoning_tokens or 0
    assert reasoning > 0
    visible = exact_count(answer.choices[0].message.content or "")
    assert reasoning + visible == answer.usage.completion_tokens
    cut = await client.chat.completions.create(model="o4-mini", messages=ASK, max_completion_tokens=10)
    assert ("", "length") == (cut.choices[0].message.content, cut.choices[0].finish_reason)
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
        await client.chat.completions.create(model="o4-mini", messages=ASK, max_tokens=10)


async def test_repeated_long_prompt_is_read_from_the_prompt_cache(client: openai.AsyncOpenAI) -> None:
    """A prefix of 1024 tokens or more is cached in steps of 128 from its second use on, also under a new ending."""
    context = " ".join(f"fact number {number}" for number in range(600))
    seen = []
    for ending in ("first question", "first question", "first question", "second question"):
        messages: Any = [{"role": "system", "content": context}, {"role": "user", "content": ending}]
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        seen.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert seen[0] == 0
    assert seen[1] > 1024
    assert seen[1] % 128 == 0
    assert [seen[1]] * 2 == seen[2:]


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    """Log probabilities come for each token, with as many alternatives as asked."""
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=ASK, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.choices[0].message.content == "".join(odds.token for odds in logprobs.content)
    assert {2} == {len(odds.top_logprobs) for odds in logprobs.content}


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    """Embeddings are unit vectors, the same for the same text in either encoding, near for texts that share words."""
    made = await client.embeddings.create(
        model="text-embedding-3-small", input=["reset my password", "please reset my password", "bake bread"]
    )
    first, near, far = (item.embedding for item in made.data)
    assert len(first) == 1536
    assert math.isclose(1.0, math.fsum(x * x for x in first), rel_tol=1e-5)
    assert dot(first, near) > dot(first, far) + 0.4
    floats = await client.embeddings.create(
        model="text-embedding-3-small", input="reset my password", encoding_format="float"
    )
    assert first == pytest.approx(floats.data[0].embedding, rel=1e-6)
    encoded = tiktoken.get_encoding("cl100k_base").encode_ordinary("reset my password")
    assert len(encoded) == floats.usage.prompt_tokens
    from_tokens = await client.embeddings.create(model="text-embedding-3-small", input=encoded)
    assert first == pytest.approx(from_tokens.data[0].embedding, rel=1e-6)


def dot(left: list[float], right: list[float]) -> float:
    """The inner product."""
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


async def test_shorter_embedding_is_the_start_of_the_longer(client: openai.AsyncOpenAI) -> None:
    """`dimensions` gives the beginning of the whole vector, scaled to length one."""
    whole = (await client.embeddings.create(model="text-embedding-3-large", input="a b c")).data[0].embedding
    short = (
        (await client.embeddings.create(model="text-embedding-3-large", input="a b c", dimensions=8)).data[0].embedding
    )
    length = math.sqrt(dot(whole[:8], whole[:8]))
    assert [x / length for x in whole[:8]] == pytest.approx(short, rel=1e-4)


async def test_base64_embedding_is_little_endian_float32(raw: RawClient) -> None:
    """`base64` carries four bytes for each dimension."""
    await raw.send(
        post({"model": "text-embedding-3-small", "input": "a", "encoding_format": "base64"}, path="/v1/embeddings")
    )
    _, _, body = await raw.answer()
    assert 4 * 1536 == len(base64.b64decode(json.loads(body)["data"][0]["embedding"]))


async def test_models(client: openai.AsyncOpenAI) -> None:
    """Models are listed and can be asked for one by one."""
    names = [model.id async for model in client.models.list()]
    assert {"gpt-4o-mini", "gpt-4o-mini-2024-07-18", "text-embedding-3-small"} <= set(names)
    assert (await client.models.retrieve("gpt-4o-mini")).owned_by == "system"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.models.retrieve("nothing")


async def test_errors_are_the_ones_the_client_knows(provider: Provider) -> None:
    """Unknown models, keys and fields raise the client's own exceptions with OpenAI's codes."""
    config = ProviderConfig(upstreams=(UpstreamConfig(port=0),), api_keys=("sk-good",), latency=Latency(scale=0))
    strict = Provider(config)
    await strict.start()
    try:
        async with openai.AsyncOpenAI(base_url=strict.base_url, api_key="sk-good", max_retries=0) as good:
            with pytest.raises(openai.NotFoundError) as missing:
                await good.chat.completions.create(model="gpt-9", messages=ASK)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as unknown:
                await good.chat.completions.create(model="gpt-4o", messages=ASK, extra_body={"surprise": 1})
            assert ("unknown_parameter", "surprise") == (unknown.value.code, unknown.value.param)
        async with openai.AsyncOpenAI(base_url=strict.base_url, api_key="sk-wrong-key-1234", max_retries=0) as bad:
            with pytest.raises(openai.AuthenticationError, match=r"sk-wrong\*+1234") as refused:
                await bad.chat.completions.create(model="gpt-4o", messages=ASK)
            assert refused.value.code == "invalid_api_key"
    finally:
        await strict.stop()


async def test_enforced_rate_limit(clock: ManualClock) -> None:
    """With enforced limits the request too many gets a 429 that says when to come back, and is granted then."""
    config = ProviderConfig(
        upstreams=(UpstreamConfig(port=0),), latency=Latency(scale=0), requests_per_minute=2, limits_enforced=True
    )
    limited = Provider(config, clock=clock)
    await limited.start()
    try:
        async with openai.AsyncOpenAI(base_url=limited.base_url, api_key="sk-a", max_retries=0) as client:
            first = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=ASK)
            assert ("2", "1", "30s") == tuple(
                first.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")
            )
            await client.chat.completions.create(model="gpt-4o", messages=ASK)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model="gpt-4o", messages=ASK)
            assert refused.value.code == "rate_limit_exceeded"
            assert refused.value.response.headers["retry-after"] == "30"
            await clock.advance(30)
            await client.chat.completions.create(model="gpt-4o", messages=ASK)
    finally:
        await limited.stop()


async def test_same_seed_same_answers(client: openai.AsyncOpenAI) -> None:
    """Two providers with one seed give the same answers, another seed gives others."""
    texts = []
    for seed in (0, 0, 1):
        other = Provider(ProviderConfig(upstreams=(UpstreamConfig(port=0),), latency=Latency(scale=0), seed=seed))
        await other.start()
        async with openai.AsyncOpenAI(base_url=other.base_url, api_key="sk-a", max_retries=0) as reader:
            answer = await reader.chat.completions.create(model="gpt-4o", messages=ASK)
        texts.append((answer.choices[0].message.content, answer.id))
        await other.stop()
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[2][0]


async def test_stats_count_what_was_served(provider: Provider, client: openai.AsyncOpenAI) -> None:
    """The counts on the administration port are the sums of the usages that clients were told."""
    usages = []
    for number in range(3):
        messages: Any = [{"role": "user", "content": f"question {number}"}]
        usages.append((await client.chat.completions.create(model="gpt-4o", messages=messages)).usage)
    async with httpx.AsyncClient() as http:
        counts = (await http.get(f"{provider.admin_url}/_stats")).json()["primary"]["by_model"]["gpt-4o-2024-08-06"]
    assert (3, 3, 0) == (counts["calls"], counts["completed"], counts["cancelled"])
    assert sum(usage.prompt_tokens for usage in usages if usage) == counts["prompt_tokens"]
    assert sum(usage.completion_tokens for usage in usages if usage) == counts["completion_tokens"]


async def test_refused_outage_on_a_time_line(clock: ManualClock) -> None:
    """A scripted outage closes the real socket at its time, leaves the other upstream alone, and ends by itself."""
    fault = Fault(FaultKind.OUTAGE_REFUSED, upstream="primary", at_s=10, for_s=5)
    config = ProviderConfig(upstreams=upstreams_on((0, 0)), latency=Latency(scale=0), faults=(fault,))
    scripted = Provider(config, clock=clock)
    await scripted.start()
    try:
        before = await RawClient.connect(scripted.port)
        await clock.advance(10)
        assert await before.reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await RawClient.connect(scripted.port)
        other = await RawClient.connect(scripted.ports["secondary"])
        await other.close()
        await clock.advance(5)
        after = await RawClient.connect(scripted.port)
        await after.send(post(question()))
        assert (await after.answer())[0] == 200
        await after.close()
        await before.close()
    finally:
        await scripted.stop()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.OUTAGE_500, upstream="tertiary"),
        Fault(FaultKind.OUTAGE_REFUSED, match=FaultMatch(share=0.5)),
    ],
)
async def test_senseless_scripted_fault_stops_the_start(fault: Fault) -> None:
    """A provider refuses to start with a fault that can never happen, and leaves no port open."""
    broken = Provider(ProviderConfig(upstreams=(UpstreamConfig(port=0),), faults=(fault,)))
    with pytest.raises(FaultError):
        await broken.start()
    with pytest.raises(ConnectionRefusedError):
        await RawClient.connect(broken.port)

"""The long tail through litellm: four providers whose answers are scripted on real sockets, asked through a whole worker."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import struct
from typing import Any

import anthropic
import openai
import pytest

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, Outcome
from tests.proxy.fakes import KEY, Script, ScriptedUpstream, World, answer, replies, sends_then_hangs

# Of litellm and the models it is made of, which would otherwise fail inside it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
OLLAMA = "ollama_chat/llama3"
GEMINI = "gemini/gemini-2.0-flash"
BEDROCK = "bedrock/converse/anthropic.claude-3-5-sonnet-20240620-v1:0"
COHERE = "cohere_chat/command-r"
AWS = {
    "aws_region_name": "eu-west-1",
    "aws_access_key_id": "AKIATEST",
    "aws_secret_access_key": "env:UP_KEY",
}


def http(body: bytes, kind: str) -> bytes:
    """A whole HTTP response whose connection ends with it, as litellm's clients need no more."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def ollama(text: str = "Hello", **more: Any) -> bytes:
    """An answer of Ollama's."""
    document = {
        "model": "llama3",
        "message": {"role": "assistant", "content": text},
        "done": True,
        "done_reason": "stop",
    }
    return answer(json.dumps(document | {"prompt_eval_count": 9, "eval_count": 3} | more).encode())


def ollama_stream(*texts: str) -> bytes:
    """The same as lines of JSON."""
    lines = [{"model": "llama3", "message": {"role": "assistant", "content": text}, "done": False} for text in texts]
    last = {
        "model": "llama3",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 9,
        "eval_count": 3,
    }
    return http(b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, last]), "application/x-ndjson")


def gemini(*parts: dict[str, Any]) -> dict[str, Any]:
    """An answer of Gemini's; four of its nine prompt tokens came from a cache."""
    content = {"parts": list(parts) or [{"text": "Hello"}], "role": "model"}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": 9,
            "candidatesTokenCount": 3,
            "totalTokenCount": 12,
            "cachedContentTokenCount": 4,
        },
    }


def converse(stop_reason: str = "end_turn") -> dict[str, Any]:
    """An answer of Bedrock's Converse."""
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
        "stopReason": stop_reason,
        "usage": {
            "inputTokens": 9,
            "outputTokens": 3,
            "totalTokens": 23,
            "cacheReadInputTokens": 4,
            "cacheWriteInputTokens": 7,
        },
        "metrics": {"latencyMs": 1},
    }


def frame(kind: str, payload: dict[str, Any]) -> bytes:
    """One message of AWS's event stream: lengths, headers, payload and two checksums."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name + struct.pack("!BH", 7, len(value)) + value
        for name, value in (
            (b":event-type", kind.encode()),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    prelude += struct.pack("!I", binascii.crc32(prelude))
    whole = prelude + headers + body
    return whole + struct.pack("!I", binascii.crc32(whole))


def converse_stream() -> bytes:
    """A stream of Bedrock's Converse."""
    frames = [
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hel"}}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "lo"}}),
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": converse()["usage"], "metrics": {"latencyMs": 1}}),
    ]
    return http(b"".join(frames), "application/vnd.amazon.eventstream")


class Tail:
    """A provider of the long tail behind the proxy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.upstream: ScriptedUpstream

    async def serve(self, model: str, *scripts: Script, options: dict[str, str] | None = None, **knobs: Any) -> None:
        """Starts one with these scripts."""
        self.upstream = await self.world.upstream(*scripts)
        base = f"http://127.0.0.1:{self.upstream.port}"
        upstream = {"dialect": "litellm", "options": options or {}} | knobs
        if model == BEDROCK:
            upstream["options"] = AWS | {"aws_bedrock_runtime_endpoint": base}
            upstream["credential"] = None
            base = ""
        self.world.apply(urls=(base,), model=model, upstream=upstream, route={"attempts_max": 1})

    def chat(self) -> openai.AsyncOpenAI:
        """OpenAI's client."""
        return openai.AsyncOpenAI(base_url=f"{self.world.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
async def tail(world: World) -> Tail:
    """A world and its provider."""
    return Tail(world)


@pytest.mark.parametrize(
    ("model", "reply", "tokens"),
    [
        (OLLAMA, ollama(), Tokens(input=9, output=3)),
        (GEMINI, answer(json.dumps(gemini()).encode()), Tokens(input=5, cache_read=4, output=3)),
        (BEDROCK, answer(json.dumps(converse()).encode()), Tokens(input=9, cache_read=4, cache_write=7, output=3)),
    ],
)
async def test_an_answer(tail: Tail, model: str, reply: bytes, tokens: Tokens) -> None:
    """Whatever the provider's language, the client reads OpenAI's, and the tokens are disjoint."""
    await tail.serve(model, replies(reply))
    async with tail.chat() as client:
        found = await client.chat.completions.create(model="gpt", messages=HI, max_tokens=20)
    assert ("Hello", "stop") == (found.choices[0].message.content, found.choices[0].finish_reason)
    assert found.usage is not None
    assert tokens.total == found.usage.total_tokens
    (record,) = tail.world.records()
    assert (tokens, Outcome.OK, "stop") == (record.tokens, record.outcome, record.finish_reason)
    assert (200, AttemptError.NONE) == (record.attempts[0].status, record.attempts[0].error)


@pytest.mark.parametrize(
    ("model", "reply", "tokens"),
    [
        (OLLAMA, ollama_stream("Hel", "lo"), Tokens(input=9, output=3)),
        (
            GEMINI,
            http(b"data: " + json.dumps(gemini()).encode() + b"\r\n\r\n", "text/event-stream"),
            Tokens(input=5, cache_read=4, output=3),
        ),
        (BEDROCK, converse_stream(), Tokens(input=9, cache_read=4, cache_write=7, output=3)),
    ],
)
async def test_a_stream(tail: Tail, model: str, reply: bytes, tokens: Tokens) -> None:
    """It costs what the whole answer costs, and ends as OpenAI's do."""
    await tail.serve(model, replies(reply))
    async with tail.chat() as client:
        stream = await client.chat.completions.create(model="gpt", messages=HI, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "Hello" == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert all(chunk.usage is None for chunk in chunks)
    (record,) = tail.world.records()
    assert (tokens, Outcome.OK, True) == (record.tokens, record.outcome, record.stream)
    assert record.first_token_us > 0
    assert record.finish_reason == "stop"


async def test_a_stream_on_the_wire(tail: Tail) -> None:
    """Usage where it was asked for, the cost before the end."""
    await tail.serve(OLLAMA, replies(ollama_stream("Hel", "lo")))
    response = await tail.world.chat(stream=True, stream_options={"include_usage": True})
    assert b'"usage":{"completion_tokens":3,"prompt_tokens":9' in response.content
    assert response.content.endswith(b": x-heph-cost-usd=0.000015000 x-heph-cost-state=final\n\ndata: [DONE]\n\n")


async def test_tools(tail: Tail) -> None:
    """A call comes back as OpenAI's SDK reads it."""
    call = {"functionCall": {"name": "add", "args": {"a": 1}}}
    await tail.serve(GEMINI, replies(answer(json.dumps(gemini(call)).encode())))
    async with tail.chat() as client:
        found = await client.chat.completions.create(model="gpt", messages=HI, tools=[TOOL], tool_choice="auto")
    assert found.choices[0].message.tool_calls is not None
    function = found.choices[0].message.tool_calls[0].function  # type: ignore[union-attr]
    assert ("add", {"a": 1}) == (function.name, json.loads(function.arguments))
    assert "tool_calls" == found.choices[0].finish_reason
    sent: Any = tail.upstream.received[0].document
    assert "add" == sent["tools"][0]["function_declarations"][0]["name"]


async def test_a_client_of_anthropics(tail: Tail) -> None:
    """Two translations: Messages to chat by ours, chat to Ollama by litellm."""
    await tail.serve(OLLAMA, replies(ollama("Hello")), replies(ollama_stream("Hel", "lo")))
    async with anthropic.AsyncAnthropic(base_url=tail.world.url, api_key=KEY, max_retries=0) as client:
        found = await client.messages.create(model="gpt", max_tokens=20, messages=HI, system="be short")
        async with client.messages.stream(model="gpt", max_tokens=20, messages=HI) as stream:
            streamed = await stream.get_final_message()
    assert ("Hello", "Hello") == (found.content[0].text, streamed.content[0].text)  # type: ignore[union-attr]
    assert (9, 3) == (streamed.usage.input_tokens, streamed.usage.output_tokens)
    assert [Tokens(input=9, output=3)] * 2 == [record.tokens for record in tail.world.records()]


async def test_nobody_asks_for_more_than_the_model_can_give(tail: Tail) -> None:
    """The ceiling that a client of Anthropic's names is bounded by the model's longest answer, here too."""
    await tail.serve(OLLAMA, replies(ollama("Hello")))
    base = f"http://127.0.0.1:{tail.upstream.port}"
    tail.world.apply(
        urls=(base,), model=OLLAMA, upstream={"dialect": "litellm"}, deployment={"output_tokens_max": 4_096}
    )
    async with anthropic.AsyncAnthropic(base_url=tail.world.url, api_key=KEY, max_retries=0) as client:
        for asked in (32_000, 50):
            await client.messages.create(model="gpt", max_tokens=asked, messages=HI, timeout=30)
    options: Any = [seen.document["options"] for seen in tail.upstream.received]
    assert [4_096, 50] == [each["num_predict"] for each in options]


async def test_embeddings_in_the_encoding_that_was_asked_for(tail: Tail) -> None:
    """The SDK asks for base64 by itself; the provider knows only numbers."""
    body = {"embeddings": [{"values": [0.5, -1.0]}], "metadata": {}}
    await tail.serve("gemini/text-embedding-004", replies(answer(json.dumps(body).encode())))
    async with tail.chat() as client:
        found = await client.embeddings.create(model="gpt", input="hi")
    assert [0.5, -1.0] == found.data[0].embedding
    raw = await tail.world.client.post(
        "/v1/embeddings", json={"model": "gpt", "input": "hi", "encoding_format": "base64"}
    )
    assert struct.pack("<2f", 0.5, -1.0) == base64.b64decode(raw.json()["data"][0]["embedding"])


def refusal(status: int) -> Script:
    """A provider that refuses, and says too much."""
    body = json.dumps({"message": "no, sk-upstream-secret at http://10.0.0.1/x"}).encode()
    return replies(answer(body, status, "retry-after: 7", "connection: close"))


@pytest.mark.parametrize(
    ("status", "expected", "error"),
    [
        (400, openai.BadRequestError, AttemptError.REJECTED),
        (401, openai.APIStatusError, AttemptError.AUTH),
        (429, openai.RateLimitError, AttemptError.STATUS_429),
        (500, openai.InternalServerError, AttemptError.STATUS_5XX),
        (503, openai.InternalServerError, AttemptError.STATUS_5XX),
    ],
)
async def test_errors_are_the_sdks_own_and_tell_no_secret(
    tail: Tail, status: int, expected: type[openai.APIStatusError], error: AttemptError
) -> None:
    """Each becomes an error of a class that failover knows; no key, no address in what the client reads."""
    await tail.serve(COHERE, refusal(status))
    async with tail.chat() as client:
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(model="gpt", messages=HI)
    said = str(caught.value.body)
    assert "sk-upstream-secret" not in said
    assert "10.0.0.1" not in said
    assert "litellm" not in said
    assert "Exception" not in said
    (record,) = tail.world.records()
    assert (error, status) == (record.attempts[0].error, record.attempts[0].status)
    assert 1 == len(tail.upstream.received)
    assert 0 == record.cost_nanousd


async def test_an_upstream_that_is_not_there(tail: Tail) -> None:
    """A connection that fails is a try that cost nothing."""
    await tail.serve(OLLAMA, replies(ollama()))
    await tail.upstream.stop()
    response = await tail.world.chat()
    assert 502 == response.status_code
    assert str(tail.upstream.port) not in response.text
    assert AttemptError.CONNECT == tail.world.records()[0].attempts[0].error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"api_base": "http://127.0.0.1:1"}, "api_base"),
        ({"api_key": "sk"}, "api_key"),
        ({"mock_response": "free"}, "mock_response"),
        ({"extra_headers": {"a": "b"}}, "extra_headers"),
        ({"callbacks": ["x"]}, "callbacks"),
        ({"fallbacks": ["y"]}, "fallbacks"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://h/i.png"}}]}
                ]
            },
            "messages.0.content.0.image_url.url",
        ),
    ],
)
async def test_what_would_steer_litellm_is_refused(tail: Tail, fields: dict[str, Any], param: str) -> None:
    """A client can neither send our key elsewhere nor have us fetch an address."""
    await tail.serve(OLLAMA, replies(ollama()))
    response = await tail.world.chat(**fields)
    assert (400, param) == (response.status_code, response.json()["error"]["param"])
    assert [] == tail.upstream.received


async def test_a_client_that_leaves_cancels_the_upstream(tail: Tail) -> None:
    """Streams that nobody reads are not paid to their end."""
    line = {"model": "llama3", "message": {"role": "assistant", "content": "Hel"}, "done": False}
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n"
    await tail.serve(OLLAMA, sends_then_hangs(head + json.dumps(line).encode() + b"\n"))
    async with tail.chat() as client:
        stream = await client.chat.completions.create(model="gpt", messages=HI, stream=True)
        async for _ in stream:
            break
        await stream.close()
    await asyncio.wait_for(tail.upstream.client_left.wait(), 30)
    await tail.world.until_idle()
    (record,) = tail.world.records()
    assert (Outcome.CLIENT_CLOSED, AttemptError.CANCELLED) == (record.outcome, record.attempts[0].error)


async def test_an_upstream_that_never_answers(tail: Tail) -> None:
    """Our own deadline holds, whatever the library does."""
    await tail.serve(OLLAMA, replies(ollama()), sends_then_hangs(b""))
    await tail.world.chat()  # so that the library is there
    response = await tail.world.chat(headers={"x-heph-timeout-ms": "200"})
    assert 504 == response.status_code
    await asyncio.wait_for(tail.upstream.client_left.wait(), 30)


async def test_a_stream_without_content_gives_its_place_back_once(tail: Tail) -> None:
    """However many streams never begin, no more calls than `connections_max` are under way afterwards."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n"
    await tail.serve(OLLAMA, replies(ollama()), sends_then_hangs(head), connections_max=1)
    await tail.world.chat()  # so that the library is there
    for _ in range(2):
        assert 504 == (await tail.world.chat(stream=True, headers={"x-heph-timeout-ms": "200"})).status_code
    asked = [tail.world.chat(headers={"x-heph-timeout-ms": "500"}) for _ in range(2)]
    assert [502, 504] == sorted(response.status_code for response in await asyncio.gather(*asked))


async def test_a_stream_that_stands_still(tail: Tail) -> None:
    """After content it ends as a broken stream with an error that the client sees."""
    line = {"model": "llama3", "message": {"role": "assistant", "content": "Hel"}, "done": False}
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n"
    script = sends_then_hangs(head + json.dumps(line).encode() + b"\n")
    await tail.serve(OLLAMA, script, idle_timeout_s=0.2)
    response = await tail.world.chat(stream=True)
    assert b"Hel" in response.content
    assert b'"error"' in response.content
    await tail.world.until_idle()
    assert AttemptError.IDLE_TIMEOUT == tail.world.records()[0].attempts[0].error


async def test_an_option_that_cannot_be_resolved(tail: Tail) -> None:
    """It is named in the log; the client learns only that the upstream is not configured."""
    await tail.serve(OLLAMA, replies(ollama()), options={"extra_secret": "env:NOT_THERE"})
    response = await tail.world.chat()
    assert 503 == response.status_code
    assert "NOT_THERE" not in response.text
    assert [] == tail.upstream.received


@pytest.mark.parametrize("model", [OLLAMA, GEMINI, BEDROCK, "azure/gpt-4o", "mistral/mistral-small"])
async def test_litellm_never_tries_again_by_itself(tail: Tail, model: str) -> None:
    """Retries are ours: a budget bounds them, and each is on record."""
    options = {"api_version": "2024-10-21"} if model.startswith("azure/") else {}
    await tail.serve(model, refusal(500), options=options)
    assert (await tail.world.chat()).status_code in (500, 502)
    assert 1 == len(tail.upstream.received)

"""Every protocol's streams over real sockets: the network's cuts change neither what the client gets nor what is recorded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import msgspec
import pytest

from controlplane.contract.pricing import Price
from controlplane.contract.records import CallRecord
from tests.proxy import anthropic_fakes as anthropic
from tests.proxy.fakes import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    Script,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    replies,
    usage_event,
)

PRICE = Price(
    input=1_000_000_000,
    output=2_000_000_000,
    cache_read=500_000_000,
    cache_write=1_250_000_000,
    cache_write_1h=2_000_000_000,
    version="p1",
)
TEXTS = ("Hel", "lo", "é\n\n", '"message_stop"', "data: [DONE]", '"usage":null', "")
CHAT_USAGE: dict[str, object] = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
RESPONSE_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 29,
}


def _chat(rng: random.Random) -> bytes:
    texts = [event(rng.choice(TEXTS)) for _ in range(rng.randint(1, 9))]
    comments = [b": keep-alive\n\n"] * rng.randint(0, 2)
    return b"".join(
        [event(), *comments, *texts, event("", delta={}, finish_reason="stop"), usage_event(CHAT_USAGE), DONE]
    )


def _messages(rng: random.Random) -> bytes:
    blocks = [anthropic.text_block(*rng.choices(TEXTS, k=rng.randint(1, 4)), index=n) for n in range(rng.randint(1, 3))]
    pings = [anthropic.PING] * rng.randint(0, 2)
    first = {**anthropic.USAGE, "output_tokens": 1}
    return b"".join([anthropic.start(first), *pings, *blocks, *pings, anthropic.stop(), anthropic.MESSAGE_STOP])


def _responses(rng: random.Random) -> bytes:
    number = iter(range(100))
    made = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}

    def sent(kind: str, **fields: object) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": next(number), **fields}, ensure_ascii=False)
        return f"event: {kind}\ndata: {data}\n\n".encode()

    deltas = [
        sent("response.output_text.delta", item_id="m", output_index=0, content_index=0, delta=rng.choice(TEXTS[:3]))
        for _ in range(rng.randint(1, 9))
    ]
    done = made | {"status": "completed", "usage": RESPONSE_USAGE}
    return b"".join([sent("response.created", response=made), *deltas, sent("response.completed", response=done)])


PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
STREAMS: dict[str, Callable[[random.Random], bytes]] = {"chat": _chat, "messages": _messages, "responses": _responses}
WHOLE = {
    "chat": completion(usage=CHAT_USAGE),
    "messages": anthropic.message(usage=anthropic.USAGE),
    "responses": json.dumps(
        {"id": "resp_1", "object": "response", "status": "completed", "usage": RESPONSE_USAGE}
    ).encode(),
}
BODIES: dict[str, dict[str, object]] = {
    "chat": {"messages": [], "stream_options": {"include_usage": True}},
    "messages": {"messages": [], "max_tokens": 9},
    "responses": {"input": "hi"},
}


def _cut(stream: bytes, rng: random.Random) -> Script:
    """A script that sends the stream in random pieces: now a byte, now many events."""
    most = rng.choice([3, 40, 400])

    async def script(wire: Wire, _: Received) -> None:
        await wire.send(STREAM_HEAD)
        at = 0
        while at < len(stream):
            size = rng.randint(1, most)
            await wire.send(chunk(stream[at : at + size]))
            at += size
        await wire.send(STREAM_END)

    return script


def _facts(record: CallRecord) -> dict[str, object]:
    """A record without its times and its id."""
    (attempt,) = record.attempts
    facts: dict[str, object] = msgspec.to_builtins(record)
    for name in ("attempts", "call_id", "started_us", "latency_us", "overhead_us", "first_token_us"):
        facts.pop(name, None)
    return facts | {"attempt": (attempt.tokens, attempt.cost_nanousd, attempt.status, attempt.error)}


async def _ask(world: World, operation: str, *scripts: Script, stream: bool) -> list[tuple[bytes, CallRecord]]:
    """Answers and records, one for each script."""
    upstream = await world.upstream(*scripts)
    ours = operation == "messages"
    world.apply(
        urls=(f"http://127.0.0.1:{upstream.port}" + ("" if ours else "/v1"),),
        upstream={"dialect": "anthropic" if ours else "openai"},
        price=PRICE,
    )
    fields = {name: value for name, value in BODIES[operation].items() if stream or name != "stream_options"}
    got, before = [], len(world.records())
    for _ in scripts:
        response = await world.client.post(PATHS[operation], json={"model": "gpt", "stream": stream} | fields)
        got.append(response.content)
    return list(zip(got, world.records()[before:], strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("operation", sorted(STREAMS))
async def test_cuts_change_nothing(world: World, operation: str, seed: int) -> None:
    """The same events give the same bytes and the same record, however they come."""
    rng = random.Random(seed)
    stream = STREAMS[operation](rng)
    in_one = replies(STREAM_HEAD + chunk(stream) + STREAM_END)
    (expected, whole), *others = await _ask(world, operation, in_one, _cut(stream, rng), _cut(stream, rng), stream=True)
    for got, record in others:
        assert expected == got
        assert _facts(whole) == _facts(record)
    comment = expected.index(b": x-heph-cost-usd")
    assert (
        stream == expected[:comment] + expected[comment:].partition(b"\n\n")[2]
    )  # but for the comment, as it was sent


@pytest.mark.parametrize("operation", sorted(STREAMS))
async def test_a_call_costs_the_same_streamed_or_not(world: World, operation: str) -> None:
    """The same usage gives the same tokens, kind by kind, and the same cost."""
    ((_, whole),) = await _ask(world, operation, replies(answer(WHOLE[operation])), stream=False)
    stream = STREAM_HEAD + chunk(STREAMS[operation](random.Random(0))) + STREAM_END
    streamed = (await _ask(world, operation, replies(stream), stream=True))[-1][1]
    assert whole.tokens == streamed.tokens
    assert whole.cost_nanousd == streamed.cost_nanousd > 0
    assert whole.finish_reason == streamed.finish_reason

"""OpenAI's endpoints beside chat, over real sockets: what the upstream gets, what the client gets, what the record says."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from controlplane.contract.pricing import Price, Tokens
from controlplane.contract.records import CacheState, CostState, Outcome
from controlplane.contract.snapshot import Budget, TenantPolicy, Window
from tests.proxy.fakes import (
    PRICE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    Wire,
    World,
    answer,
    chunk,
    fails,
    replies,
    sends_then_aborts,
)

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 15,
}
TOKENS = Tokens(input=5, cache_read=4, output=1, reasoning=5)
MEDIA_PRICE = Price(input=1_000_000, output=2_000_000, audio_input=3_000_000, image_output=4_000_000, version="m")


def response(id_: str = "resp_1", **more: object) -> dict[str, object]:
    """The document of a finished response."""
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": []}
    return {
        "id": id_,
        "object": "response",
        "status": "completed",
        "model": "m",
        "output": [message],
        "usage": USAGE,
    } | more


def event(kind: str, number: int = 0, **more: object) -> bytes:
    """One event as OpenAI writes it."""
    data = json.dumps({"type": kind, "sequence_number": number} | more, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


BEGINNING = event("response.created", response=response(status="in_progress", output=[], usage=None))
DELTAS = b"".join(event("response.output_text.delta", n, delta=f"word{n}") for n in range(3))
END = event("response.completed", 9, response=response())


async def test_a_response_goes_through_and_is_metered(world: World) -> None:
    """The upstream gets its own name of the model and every other value; the answer is the upstream's; the kinds are disjoint."""
    upstream = await world.upstream(replies(answer(json.dumps(response()).encode())))
    world.apply()
    asked = {"model": "gpt", "input": "hi", "store": False, "user": "ann", "unknown": {"deep": [1.5]}}
    got = await world.client.post("/v1/responses", json=asked)
    assert (200, response()) == (got.status_code, got.json())
    assert "POST /v1/responses HTTP/1.1" == upstream.received[0].line
    assert asked | {"model": "upstream-model"} == upstream.received[0].document
    (record,) = world.records()
    assert ("responses", "completed", "ann", TOKENS) == (
        record.operation,
        record.finish_reason,
        record.user,
        record.tokens,
    )
    assert CostState.FINAL is record.cost_state
    assert 5 * 1000 + 4 * 500 + 6 * 2000 == record.cost_nanousd


async def test_a_streamed_response_goes_through_unchanged(world: World) -> None:
    """The events are the upstream's bytes, with the closing comment before the last; the record is that of a complete answer."""
    await world.upstream(replies(STREAM_HEAD + chunk(BEGINNING + DELTAS + END) + STREAM_END))
    world.apply()
    got = await world.client.post("/v1/responses", json={"model": "gpt", "input": "hi", "stream": True})
    before, comment, after = got.content.partition(b": x-heph-cost-usd=0.000019000 x-heph-cost-state=final\n\n")
    assert (BEGINNING + DELTAS, END) == (before, after)
    assert comment
    (record,) = world.records()
    assert (TOKENS, "completed", Outcome.OK) == (record.tokens, record.finish_reason, record.outcome)


async def test_a_response_that_fails_before_content_is_tried_elsewhere(world: World) -> None:
    """`response.failed` as the first news moves the call on; behind content it ends the stream as it came."""
    broken = response(status="failed", usage=None, error={"code": "server_error", "message": "no luck"})
    failed = event("response.failed", 1, response=broken)
    await world.upstream(replies(STREAM_HEAD + chunk(BEGINNING + failed) + STREAM_END))
    await world.upstream(replies(STREAM_HEAD + chunk(BEGINNING + DELTAS + failed) + STREAM_END))
    world.apply()
    got = await world.client.post("/v1/responses", json={"model": "gpt", "input": "hi", "stream": True})
    assert got.content.startswith(BEGINNING + DELTAS)
    assert got.content.endswith(failed)
    (record,) = world.records()
    assert (["status_5xx", "status_5xx"], Outcome.BROKEN_STREAM) == (
        [attempt.error for attempt in record.attempts],
        record.outcome,
    )


@pytest.mark.parametrize(
    ("more", "cache"),
    [
        ({"store": False}, CacheState.HIT),
        ({}, CacheState.BYPASS),
        ({"store": None}, CacheState.BYPASS),
        ({"store": False, "background": True}, CacheState.BYPASS),
    ],
)
async def test_only_a_response_that_nobody_keeps_is_stored(
    world: World, more: dict[str, object], cache: CacheState
) -> None:
    """An answer with an id of its own is never given to two callers; one that the upstream forgets may be."""
    await world.upstream(replies(answer(json.dumps(response()).encode())))
    world.apply(tenant=TenantPolicy(id="acme"))
    for _ in range(2):
        await world.client.post("/v1/responses", json={"model": "gpt", "input": "hi"} | more)
    assert cache is world.records()[1].cache


async def test_a_stored_stream_is_replayed_to_its_own_last_event(world: World) -> None:
    """A stream that nobody keeps comes from the cache as the same events, with the same end."""
    upstream = await world.upstream(replies(STREAM_HEAD + chunk(BEGINNING + DELTAS + END) + STREAM_END))
    world.apply(tenant=TenantPolicy(id="acme"))
    body = {"model": "gpt", "input": "hi", "stream": True, "store": False}
    first, second = [await world.client.post("/v1/responses", json=body) for _ in range(2)]
    assert ("miss", "hit", 1) == (first.headers["x-heph-cache"], second.headers["x-heph-cache"], len(upstream.received))
    for got in (first, second):
        events = [part + b"\n\n" for part in got.content.split(b"\n\n")[:-1] if not part.startswith(b":")]
        assert BEGINNING + DELTAS + END == b"".join(events)
    assert 0 == world.records()[1].cost_nanousd


async def test_a_completion_and_its_stream(world: World) -> None:
    """The old endpoint works like chat, usage of the stream included."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    texts = [{"id": "c", "choices": [{"text": word, "index": 0, "finish_reason": None}]} for word in ("a", "b")]
    final = {"id": "c", "choices": [], "usage": usage}
    events = b"".join(b"data: " + json.dumps(item).encode() + b"\n\n" for item in (*texts, final))
    whole = {"id": "c", "choices": [{"text": "ab", "index": 0, "finish_reason": "stop"}], "usage": usage}
    upstream = await world.upstream(
        replies(answer(json.dumps(whole).encode())),
        replies(STREAM_HEAD + chunk(events + b"data: [DONE]\n\n") + STREAM_END),
    )
    world.apply(tenant=TenantPolicy(id="acme", max_output_tokens=500))
    got = await world.client.post("/v1/completions", json={"model": "gpt", "prompt": "hi"})
    assert whole == got.json()
    assert 16 == upstream.received[0].document["max_tokens"]
    got = await world.client.post("/v1/completions", json={"model": "gpt", "prompt": "hi", "stream": True})
    assert 2 == got.text.count('"text"')
    assert "usage" not in got.text
    assert [Tokens(input=9, output=3)] * 2 == [record.tokens for record in world.records()]


async def test_a_moderation_without_usage_is_an_estimate(world: World) -> None:
    """An answer that says nothing of tokens is never free: its cost is marked as an estimate."""
    upstream = await world.upstream(replies(answer(b'{"id":"modr-1","results":[]}')))
    world.apply(route={"alias": "omni-moderation-latest"})
    got = await world.client.post("/v1/moderations", json={"input": "hi"})
    assert 200 == got.status_code
    assert "upstream-model" == upstream.received[0].document["model"]
    (record,) = world.records()
    assert ("moderations", CostState.ESTIMATED) == (record.operation, record.cost_state)


async def test_speech_comes_as_it_is_and_is_unpriced(world: World) -> None:
    """Sound is no text of ours to count: the bytes go through, and without usage the cost is not known, even with a price."""
    sound = bytes(range(256)) * 9
    head = f"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: {len(sound)}\r\n\r\n".encode()
    await world.upstream(replies(head + sound))
    world.apply()
    got = await world.client.post("/v1/audio/speech", json={"model": "gpt", "input": "hi", "voice": "alloy"})
    assert (sound, "audio/mpeg") == (got.content, got.headers["content-type"])
    (record,) = world.records()
    assert (CostState.UNPRICED, Tokens()) == (record.cost_state, record.tokens)


async def test_speech_is_heard_before_it_is_whole(world: World) -> None:
    """Sound goes on as it comes, and nothing of ours stands in it."""
    go_on = asyncio.Event()

    async def script(wire: Wire, _: Received) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n"
        await wire.send(head + chunk(b"first\n\ndata: x\n\n"))
        await go_on.wait()
        await wire.send(chunk(b"second") + STREAM_END)

    await world.upstream(script)
    world.apply()
    body = {"model": "gpt", "input": "hi", "voice": "alloy"}
    async with world.client.stream("POST", "/v1/audio/speech", json=body) as got:
        heard = got.aiter_raw()
        assert b"first\n\ndata: x\n\n" == await anext(heard)
        go_on.set()
        assert b"second" == b"".join([part async for part in heard])
    assert (Outcome.OK, CostState.UNPRICED, True) == (
        (record := world.records()[0]).outcome,
        record.cost_state,
        record.first_token_us > 0,
    )


async def test_speech_that_breaks_off_is_not_taken_for_whole(world: World) -> None:
    """There is no place for an error in sound: the connection is closed in the middle, and the record says why."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 99\r\n\r\n"
    await world.upstream(sends_then_aborts(head + b"sound"))
    world.apply()
    with pytest.raises(httpx.RemoteProtocolError):
        await world.client.post("/v1/audio/speech", json={"model": "gpt", "input": "hi", "voice": "alloy"})
    await world.until_idle()
    assert Outcome.BROKEN_STREAM is world.records()[0].outcome


async def test_a_transcription_counts_what_its_model_reports(world: World) -> None:
    """The file reaches the upstream byte for byte with the model's other name; sound and text are priced apart."""
    usage = {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
        "output_tokens": 7,
        "total_tokens": 21,
    }
    upstream = await world.upstream(replies(answer(json.dumps({"text": "hello", "usage": usage}).encode())))
    world.apply(price=MEDIA_PRICE)
    sound = bytes(range(256)) * 4 + b"\r\n--\r\n"
    got = await world.client.post(
        "/v1/audio/transcriptions",
        data={"model": "gpt", "language": "en"},
        files={"file": ("a b.wav", sound, "audio/wav")},
    )
    assert "hello" == got.json()["text"]
    sent = upstream.received[0]
    boundary = sent.headers["content-type"].partition("boundary=")[2].encode()
    fields = [part.partition(b"\r\n\r\n") for part in sent.body.split(b"--" + boundary)[1:-1]]
    values = {head.partition(b'name="')[2].partition(b'"')[0]: value[:-2] for head, _, value in fields}
    assert {b"model": b"upstream-model", b"language": b"en", b"file": sound} == values
    assert any(b'filename="a b.wav"' in head and b"audio/wav" in head for head, _, _ in fields)
    (record,) = world.records()
    assert Tokens(input=4, audio_input=10, output=7) == record.tokens
    assert 4 * 1 + 10 * 3 + 7 * 2 == record.cost_nanousd


async def test_a_transcription_by_the_second_is_unpriced(world: World) -> None:
    """Seconds are no tokens: the cost is not known."""
    usage = {"type": "duration", "seconds": 7}
    await world.upstream(replies(answer(json.dumps({"text": "hello", "usage": usage}).encode())))
    world.apply()
    files = {"file": ("a.wav", b"RIFF", "audio/wav")}
    await world.client.post("/v1/audio/translations", data={"model": "gpt"}, files=files)
    assert CostState.UNPRICED is world.records()[0].cost_state


BY_UNIT = Price(input=0, output=0, second=100_000, character=15_000, picture=40_000_000, version="u")


async def test_what_counts_no_tokens_costs_what_the_price_says_of_its_unit(world: World) -> None:
    """A second heard, a character spoken, a picture drawn: exact, final, and never zero."""
    heard = answer(json.dumps({"text": "x", "usage": {"type": "duration", "seconds": 7.5}}).encode())
    sound = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 3\r\n\r\nabc"
    await world.upstream(
        replies(heard), replies(sound), replies(answer(b'{"data":[]}')), replies(answer(b'{"text":"x"}'))
    )
    world.apply(price=BY_UNIT)
    files = {"file": ("a.wav", b"RIFF", "audio/wav")}
    await world.client.post("/v1/audio/transcriptions", data={"model": "gpt"}, files=files)
    await world.client.post("/v1/audio/speech", json={"model": "gpt", "input": "h\u00e9llo", "voice": "alloy"})
    await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a", "n": 3})
    await world.client.post("/v1/audio/transcriptions", data={"model": "gpt"}, files=files)  # does not say how long
    found = [(record.cost_nanousd, record.cost_state, record.price_version) for record in world.records()]
    assert [
        (750_000, CostState.FINAL, "u"),
        (75_000, CostState.FINAL, "u"),
        (120_000_000, CostState.FINAL, "u"),
        (0, CostState.UNPRICED, "u"),
    ] == found


async def test_a_picture_of_high_quality_is_one_event_and_a_long_recording_one_body(world: World) -> None:
    """As large as the vendors make and take them, with the settings as they come: three megabytes of picture, 25 of sound."""
    drawn = event("image_generation.completed", b64_json="A" * 3_000_000, usage={"input_tokens": 1, "output_tokens": 2})
    heard = answer(b'{"text":"long"}')
    upstream = await world.upstream(replies(STREAM_HEAD + chunk(drawn) + STREAM_END), replies(heard))
    world.apply()
    got = await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a", "stream": True})
    assert drawn in got.content
    files = {"file": ("a.wav", bytes(25_000_000), "audio/wav")}
    got = await world.client.post("/v1/audio/transcriptions", data={"model": "gpt"}, files=files)
    assert (200, 2) == (got.status_code, len(upstream.received))
    assert [Outcome.OK, Outcome.OK] == [record.outcome for record in world.records()]


async def test_units_are_reserved_before_they_are_used(world: World) -> None:
    """A budget that three pictures would pass lets two be drawn."""
    upstream = await world.upstream(replies(answer(b'{"data":[]}')))
    budget = Budget("pocket", Window.TOTAL, nanousd=100_000_000)
    world.apply(price=BY_UNIT, tenant=TenantPolicy(id="acme", budgets=(budget,)))
    for n, status in ((3, 429), (2, 200), (1, 429)):
        got = await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a", "n": n})
        assert status == got.status_code
    assert 1 == len(upstream.received)


async def test_images_count_text_and_pictures_apart(world: World) -> None:
    """Output tokens of a model that draws are image tokens, those of its input what they are said to be."""
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens": 200,
        "total_tokens": 250,
    }
    upstream = await world.upstream(replies(answer(json.dumps({"data": [], "usage": usage}).encode())))
    world.apply()
    await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a cat", "n": 2})
    files = {"image": ("a.png", b"\x89PNG\r\n", "image/png")}
    await world.client.post("/v1/images/edits", data={"model": "gpt", "prompt": "a dog"}, files=files)
    await world.client.post("/v1/images/variations", data={"model": "gpt"}, files=files)
    assert [f"POST /v1/images/{name} HTTP/1.1" for name in ("generations", "edits", "variations")] == [
        request.line for request in upstream.received
    ]
    tokens = Tokens(input=10, image_input=40, image_output=200)
    assert [tokens] * 3 == [record.tokens for record in world.records()]
    assert {CostState.UNPRICED} == {record.cost_state for record in world.records()}  # PRICE knows no images


async def test_a_stream_of_images_ends_with_its_usage(world: World) -> None:
    """Partial pictures go on at once, the last event behind the settlement; its usage is booked."""
    usage = {"input_tokens": 5, "output_tokens": 20, "total_tokens": 25}
    partial = event("image_generation.partial_image", b64_json="AAAA")
    last = event("image_generation.completed", b64_json="BBBB", usage=usage)
    await world.upstream(replies(STREAM_HEAD + chunk(partial + last) + STREAM_END))
    world.apply(price=MEDIA_PRICE)
    got = await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a", "stream": True})
    assert got.content.startswith(partial + b": x-heph-cost-usd")
    assert got.content.endswith(b"\n\n" + last)
    (record,) = world.records()
    assert (Tokens(input=5, image_output=20), Outcome.OK) == (record.tokens, record.outcome)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            "multipart/form-data; boundary=b",
            b'--c\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt\r\n--c--\r\n',
        ),
        (
            "multipart/form-data; boundary=c",
            b'--c\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt\r\n--c\r\n',
        ),
        ("application/json", b'{"model":"gpt"}'),
        ("multipart/form-data; boundary=c; boundary=d", b"--c--\r\n"),
    ],
)
async def test_a_form_that_two_readers_could_read_differently_is_refused(world: World, kind: str, body: bytes) -> None:
    """The upstream reads a form by the boundary of the header; another one in the body would hide another model."""
    upstream = await world.upstream(replies(answer(b"{}")))
    world.apply()
    got = await world.client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
    assert (400, "malformed") == (got.status_code, got.json()["error"]["code"])
    assert [] == upstream.received
    assert "audio_transcriptions" == world.records()[0].operation


async def test_an_upstreams_refusal_passes_through(world: World) -> None:
    """An error of the upstream reaches the client of these endpoints as it came."""
    await world.upstream(fails(400, "invalid_image"))
    world.apply()
    got = await world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a"})
    assert (400, "invalid_image") == (got.status_code, got.json()["error"]["code"])
    assert PRICE is not None


async def test_the_query_of_a_response_reaches_the_upstream(world: World) -> None:
    """By it OpenAI's SDK says that it wants what is still being tried; answers with and without it are not taken for each other."""
    upstream = await world.upstream(replies(answer(json.dumps(response(store=False)).encode())))
    world.apply(tenant=TenantPolicy(id="acme"))
    body = {"model": "gpt", "input": "hi", "store": False}
    paths = ("/v1/responses?beta=true", "/v1/responses", "/v1/responses?beta=true")
    how = [(await world.client.post(path, json=body)).headers["x-heph-cache"] for path in paths]
    assert ["miss", "miss", "hit"] == how
    assert ["POST /v1/responses?beta=true HTTP/1.1", "POST /v1/responses HTTP/1.1"] == [
        item.line for item in upstream.received
    ]

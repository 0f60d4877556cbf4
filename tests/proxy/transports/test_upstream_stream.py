"""Streams whose events come one by one: passed on in the socket's own callback, and the same in every respect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.contract.records import AttemptError, CacheState, Outcome
from controlplane.contract.snapshot import CachePolicy, PayloadPolicy, TenantPolicy
from tests.proxy.anthropic_fakes import MESSAGE_STOP, PING, start, stop, text_block
from tests.proxy.fakes import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    Wire,
    World,
    chunk,
    event,
    sends_then_aborts,
    sends_then_hangs,
    until,
    usage_event,
)

WORDS = tuple(event(f"word {number} ") for number in range(6))
EVENTS = (event(), *WORDS, event("", delta={}, finish_reason="stop"), usage_event(), DONE)
CACHED = TenantPolicy(id="acme", cache=CachePolicy(enabled=True))
PLAIN = TenantPolicy(id="acme", cache=CachePolicy(enabled=False))
KEPT = TenantPolicy(id="acme", cache=CachePolicy(enabled=False), payloads=PayloadPolicy(store=True))


class Lockstep:
    """An upstream that sends an event when it is told to."""

    def __init__(self, *events: bytes) -> None:
        self.events = events
        self.go: asyncio.Queue[None] = asyncio.Queue()
        self.calls = 0

    async def __call__(self, wire: Wire, _: Received) -> None:
        """The script."""
        self.calls += 1
        await wire.send(STREAM_HEAD + b"".join(map(chunk, self.events[:2])))
        for item in self.events[2:]:
            await self.go.get()
            await wire.send(chunk(item))
        await wire.send(STREAM_END)


def body() -> dict[str, object]:
    """A request for a stream."""
    return {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "stream": True}


async def told(chunks: AsyncIterator[bytes], steps: Lockstep) -> bytes:
    """All that a client gets, the upstream's next event asked for only when the one before has arrived."""
    got = b""
    asked = 2
    async for piece in chunks:
        got += piece
        while asked < len(steps.events) and got.count(b"\n\n") >= min(asked, 8):  # the last two are not for the client
            steps.go.put_nowait(None)
            asked += 1
    return got


async def streamed(world: World, steps: Lockstep) -> bytes:
    """One call, in lockstep."""
    async with world.client.stream("POST", "/v1/chat/completions", json=body()) as response:
        return await told(response.aiter_raw(), steps)


def shown() -> bytes:
    """What a client that did not ask for usage sees of the events."""
    return b"".join(EVENTS[:8]).replace(b',"usage":null', b"").replace(b', "usage": null', b"")


@pytest.mark.parametrize("tenant", [PLAIN, CACHED, KEPT])
async def test_events_that_come_one_by_one_arrive_one_by_one(world: World, tenant: TenantPolicy) -> None:
    """Whatever is recorded of them in passing, the client has each before the next is sent, and the record knows all."""
    steps = Lockstep(*EVENTS)
    await world.upstream(steps)
    world.apply(tenant=tenant)
    got = await streamed(world, steps)
    await world.until_idle()
    (record,) = world.records()
    assert got.startswith(shown())
    assert got.endswith(b"cost-state=final\n\n" + DONE)
    assert (Outcome.OK, "stop", len(shown())) == (record.outcome, record.finish_reason, record.response_bytes)
    assert record.tokens.total > 0
    if tenant is KEPT:
        assert record.payload is not None
        assert record.payload.response.startswith(shown())


async def test_nobody_is_woken_for_an_ordinary_event(world: World) -> None:
    """Between the first content and the end, what waits for the connection waits on."""
    steps = Lockstep(*EVENTS)
    await world.upstream(steps)
    world.apply(tenant=CACHED)
    async with world.client.stream("POST", "/v1/chat/completions", json=body()) as response:
        chunks = response.aiter_raw()
        got = await anext(chunks)
        (pool,) = world.worker.http.pools()
        (connection,) = pool._open
        await until(lambda: connection._on_data is not None and connection._waiter and not connection._waiter.done())
        waiter = connection._waiter
        for number in range(3):
            steps.go.put_nowait(None)
            while b"word %d" % (number + 1) not in got:
                got += await anext(chunks)
            assert waiter is connection._waiter
        for _ in EVENTS:
            steps.go.put_nowait(None)
        async for piece in chunks:
            got += piece
    assert got.startswith(shown())


async def test_a_stream_taken_in_passing_is_stored_and_shared(world: World) -> None:
    """Who joins in the middle gets what was before; who comes later gets it from the cache."""
    steps = Lockstep(*EVENTS)
    await world.upstream(steps)
    world.apply(tenant=CACHED)
    async with world.client.stream("POST", "/v1/chat/completions", json=body()) as response:
        chunks = response.aiter_raw()
        got = await anext(chunks)
        steps.go.put_nowait(None)
        while b"word 1" not in got:
            got += await anext(chunks)
        second = asyncio.create_task(world.client.post("/v1/chat/completions", json=body()))
        await until(lambda: world.worker.coalesce.joined_total)
        for _ in EVENTS:
            steps.go.put_nowait(None)
        async for piece in chunks:
            got += piece
    joined = await second
    later = await world.client.post("/v1/chat/completions", json=body())
    await world.until_idle()
    assert [True] * 3 == [text.startswith(shown()) for text in (got, joined.content, later.content)]
    assert [CacheState.COALESCED, CacheState.HIT, CacheState.MISS] == sorted(record.cache for record in world.records())
    assert 1 == steps.calls


async def test_what_is_no_event_breaks_the_stream_as_ever(world: World) -> None:
    """Rubbish in the middle, met in passing: an error event at the end, and a record that says so."""
    steps = Lockstep(*EVENTS[:4], b'data: {no json, an "error"\n\n', *EVENTS[4:])
    await world.upstream(steps)
    world.apply(tenant=CACHED)
    got = b""
    async with world.client.stream("POST", "/v1/chat/completions", json=body()) as response:
        async for piece in response.aiter_raw():
            got += piece
            steps.go.put_nowait(None)
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.BROKEN_STREAM, AttemptError.MALFORMED) == (record.outcome, record.attempts[0].error)
    assert b"word 2" in got
    assert b'"error"' in got.removeprefix(b"".join(EVENTS[:4]))


async def test_an_upstream_that_falls_silent_is_given_up(world: World) -> None:
    """Each event gives it the time for the next one; then the stream is broken."""
    steps = Lockstep(*EVENTS)
    await world.upstream(steps)
    world.apply(tenant=PLAIN, upstream={"idle_timeout_s": 0.3})
    steps.go.put_nowait(None)
    response = await world.client.post("/v1/chat/completions", json=body())
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.TIMED_OUT, AttemptError.IDLE_TIMEOUT) == (record.outcome, record.attempts[0].error)
    assert b"word 1" in response.content


async def test_pings_reach_the_client_of_a_model_that_thinks_for_long(tmp_path: Path) -> None:
    """Beyond the time that a beginning is held back the client sees it, and the first token is still that of the content."""
    world = await World(tmp_path).start(stream_hold_s_max=0)
    think = asyncio.Event()

    async def thinks(wire: Wire, _: Received) -> None:
        await wire.send(STREAM_HEAD + chunk(start() + PING))
        await think.wait()
        await wire.send(chunk(text_block("Hel", "lo") + stop() + MESSAGE_STOP) + STREAM_END)

    upstream = await world.upstream(thinks)
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}",), upstream={"dialect": "anthropic"}, tenant=PLAIN)
    async with world.client.stream("POST", "/v1/messages", json=body() | {"max_tokens": 9}) as response:
        pieces = response.aiter_raw()
        got = await anext(pieces)
        assert PING in got
        assert [] == world.records()
        think.set()
        got += b"".join([piece async for piece in pieces])
    assert got.startswith(start() + PING + text_block("Hel", "lo") + stop() + b": x-heph-cost-usd")
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.OK, "end_turn") == (record.outcome, record.finish_reason)
    assert record.first_token_us > 0
    assert 'bound="stream_hold_s_max"' in (await world.client.get("/metrics")).text
    await world.stop()


async def test_what_fails_after_a_ping_was_shown_is_an_error_in_the_stream(tmp_path: Path) -> None:
    """The client has a beginning, so no other deployment may begin again."""
    world = await World(tmp_path).start(stream_hold_s_max=0)
    first = await world.upstream(sends_then_aborts(STREAM_HEAD + chunk(start() + PING)))
    second = await world.upstream(sends_then_aborts(b""))
    urls = tuple(f"http://127.0.0.1:{one.port}" for one in (first, second))
    world.apply(urls=urls, upstream={"dialect": "anthropic"}, tenant=PLAIN)
    response = await world.client.post("/v1/messages", json=body() | {"max_tokens": 9})
    assert response.content.startswith(start() + PING)
    assert b"event: error" in response.content
    await world.until_idle()
    assert (Outcome.BROKEN_STREAM, []) == (world.records()[0].outcome, second.received)
    await world.stop()


async def test_pings_do_not_put_off_the_calls_deadline(tmp_path: Path) -> None:
    """Until there is content the client's own limit holds, whatever it was shown meanwhile; the upstream is left."""
    world = await World(tmp_path).start(stream_hold_s_max=0)
    upstream = await world.upstream(sends_then_hangs(STREAM_HEAD + chunk(start() + PING)))
    world.apply(urls=(f"http://127.0.0.1:{upstream.port}",), upstream={"dialect": "anthropic"}, tenant=PLAIN)
    headers = {"x-heph-timeout-ms": "200"}
    async with asyncio.timeout(20.0):
        response = await world.client.post("/v1/messages", json=body() | {"max_tokens": 9}, headers=headers)
        await upstream.client_left.wait()
    assert b"event: error" in response.content
    await world.until_idle()
    (record,) = world.records()
    assert (Outcome.TIMED_OUT, AttemptError.DEADLINE) == (record.outcome, record.attempts[0].error)
    await world.stop()

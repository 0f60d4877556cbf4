"""Our HTTP client against hostile and merely odd upstreams, byte by byte."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import count

import pytest

from controlplane.contract.records import AttemptError, CostState
from controlplane.contract.snapshot import BreakerPolicy
from proxy.outbox import Outbox
from proxy.transports.connection import Connection, ConnectionFailed, Failure
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
    sends_then_aborts,
    until,
    usage_event,
    whole_stream,
)

BODY = completion()
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def closes_on_second(gate: asyncio.Event | None = None) -> Script:
    """A script that answers, once the gate is open if there is one, but for the second request: it ends that one's connection."""
    numbers = count(1)

    async def script(wire: Wire, _: Received) -> None:
        if next(numbers) == 2:
            wire.abort()
            return
        if gate is not None:
            await gate.wait()
        await wire.send(answer(BODY))

    return script


def byte_by_byte(data: bytes) -> Script:
    """A script that writes each byte by itself."""

    async def script(wire: Wire, _: Received) -> None:
        for at in range(len(data)):
            await wire.send(data[at : at + 1])
            await asyncio.sleep(0)

    return script


@pytest.mark.parametrize(
    "script",
    [
        replies(answer(BODY)),
        replies(CHUNKED + chunk(BODY[:10]) + chunk(BODY[10:]) + STREAM_END),
        replies(CHUNKED + chunk(BODY) + b"0\r\nx-trailer: 1\r\n\r\n"),
        replies(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + answer(BODY)),
        byte_by_byte(answer(BODY)),
        byte_by_byte(CHUNKED + chunk(BODY) + STREAM_END),
        sends_then_aborts(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + BODY),  # until close
        sends_then_aborts(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + BODY),
    ],
)
async def test_every_way_to_frame_a_body_gives_the_same_body(world: World, script: Script) -> None:
    """Lengths, chunks, trailers, interim answers, connections that close: the client gets the same bytes."""
    await world.upstream(script)
    world.apply(route={"attempts_max": 1})
    response = await world.chat()
    assert (200, BODY) == (response.status_code, response.content)


async def test_a_stream_byte_by_byte_is_the_same_stream(world: World) -> None:
    """The network's cuts are not visible to the client."""
    await world.upstream(replies(whole_stream("Hel", "lo")), byte_by_byte(whole_stream("Hel", "lo")))
    world.apply()
    assert (await world.chat(stream=True)).content == (await world.chat(stream=True)).content


async def test_an_answer_may_take_its_time_while_it_comes(world: World) -> None:
    """Blank lines say that the upstream lives, as DeepSeek sends them: the idle time-out counts from the last of them."""

    async def lives(wire: Wire, _: Received) -> None:
        await wire.send(CHUNKED)
        began = time.monotonic()
        for blank in range(1, 4):
            await until(partial(lambda at: time.monotonic() >= at, began + 0.4 * blank))
            await wire.send(chunk(b"\n"))
        await wire.send(chunk(BODY) + STREAM_END)

    await world.upstream(lives)
    world.apply(route={"attempts_max": 1}, upstream={"idle_timeout_s": 1.0})
    response = await world.chat()
    assert (200, b"\n\n\n" + BODY) == (response.status_code, response.content)


async def test_connections_are_kept_and_reused(world: World) -> None:
    """Ten calls, streams among them, over one connection."""
    stream = STREAM_HEAD + chunk(event("a") + usage_event() + DONE)

    async def late_end(wire: Wire, _: Received) -> None:
        await wire.send(stream)
        await asyncio.sleep(0)
        await wire.send(STREAM_END)

    upstream = await world.upstream(*[replies(answer(BODY)), late_end] * 5)
    world.apply()
    for number in range(10):
        response = await world.chat(stream=bool(number % 2))
        assert 200 == response.status_code
        await until(lambda: all(pool.idle_count == pool.open_count for pool in world.worker.http.pools()))
    assert (10, 1) == (len(upstream.received), upstream.connections)


async def test_a_connection_that_says_close_is_not_used_again(world: World) -> None:
    """`connection: close` is believed."""
    upstream = await world.upstream(replies(answer(BODY, 200, "connection: close")))
    world.apply()
    assert [200, 200] == [(await world.chat()).status_code for _ in range(2)]
    assert 2 == upstream.connections


async def test_a_kept_connection_that_was_closed_costs_no_failure(world: World) -> None:
    """The race between our reuse and the upstream's close: one safe retry over a fresh connection, and one attempt."""
    upstream = await world.upstream(closes_on_second())
    world.apply(route={"attempts_max": 1})
    assert [200, 200] == [(await world.chat()).status_code for _ in range(2)]
    assert 3 == len(upstream.received)
    assert [1, 1] == [len(record.attempts) for record in world.records()]


async def test_a_connection_that_was_waited_for_may_be_stale_too(world: World) -> None:
    """Handed over by a call that has ended, and closed by the upstream at that moment: no failure either."""
    gate = asyncio.Event()
    upstream = await world.upstream(closes_on_second(gate))
    world.apply(route={"attempts_max": 1}, upstream={"connections_max": 1})
    calls = [asyncio.create_task(world.chat()) for _ in range(2)]
    await until(lambda: waiting(world))
    gate.set()
    assert [200, 200] == [response.status_code for response in await asyncio.gather(*calls)]
    assert 3 == len(upstream.received)


async def test_what_a_call_waited_for_its_connection_does_not_make_that_less_stale(world: World) -> None:
    """The upstream cannot have worked on a request that stood in our own line, however long that took."""
    gate = asyncio.Event()
    await world.upstream(closes_on_second(gate))
    world.apply(route={"attempts_max": 1}, upstream={"connections_max": 1, "connect_timeout_s": 30.0})
    calls = [asyncio.create_task(world.chat()) for _ in range(2)]
    await until(lambda: waiting(world))
    began = time.monotonic()
    await until(lambda: time.monotonic() >= began + world.worker.http.stale_s)
    gate.set()
    assert [200, 200] == [response.status_code for response in await asyncio.gather(*calls)]


async def test_what_an_upstream_may_have_worked_on_is_not_sent_again_unseen(world: World) -> None:
    """A kept connection that closes late was not merely stale: that is a failed try like any other, on the record."""
    upstream = await world.upstream(closes_on_second())
    world.worker.http.stale_s = -1.0
    world.apply(route={"attempts_max": 1})
    assert [200, 502] == [(await world.chat()).status_code for _ in range(2)]
    assert 2 == len(upstream.received)
    assert AttemptError.CONNECT == world.records()[1].attempts[0].error


async def test_an_answer_before_the_end_of_the_request_ends_the_connection(world: World) -> None:
    """The client hears it, and no other call is put behind what is left of that request."""
    served = asyncio.Event()
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if b"content-length: 3" in head:  # some thirty megabytes, of which it reads nothing
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # typeshed has no such method there
            writer.write(answer(b"{}", 413))
            await served.wait()
        else:
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(answer(BODY))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024) as server:
        port = server.sockets[0].getsockname()[1]
        world.apply(route={"attempts_max": 1}, urls=(f"http://127.0.0.1:{port}/v1",))
        large = await world.chat(messages=[{"role": "user", "content": "x" * 30_000_000}])
        small = await world.chat()
        served.set()
    assert (413, 200, 2) == (large.status_code, small.status_code, len(heads))


async def test_a_wait_is_bounded_also_if_the_timer_fired_between_two_of_them() -> None:
    """Time that runs out while nobody waits has run out for the next one who does."""
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        _, connection = await loop.create_connection(
            lambda: Connection(
                loop,
                header_bytes_max=1_000,
                high_water_bytes=1_000,
                shown=lambda names: ((True,) * len(names), names),
                on_closed=lambda _: None,
                outbox=Outbox(),
            ),
            *server.sockets[0].getsockname(),
        )
        connection.start(b"GET / HTTP/1.1\r\n\r\n", b"", body_bytes_max=0)
        connection.expire_at(time.monotonic() - 1.0)
        for _ in range(5):
            await asyncio.sleep(0)
        async with asyncio.timeout(10.0):
            with pytest.raises(ConnectionFailed) as failed:
                await connection.read()
        assert Failure.TIMED_OUT is failed.value.failure


async def test_a_redirect_costs_nothing(world: World) -> None:
    """It is not followed, since our credential is not for others, and nobody has worked on the request."""
    await world.upstream(replies(answer(b"", 307, "location: http://elsewhere.example/")))
    world.apply(route={"attempts_max": 1})
    assert 502 == (await world.chat()).status_code
    assert (0, CostState.FINAL) == (world.records()[0].cost_nanousd, world.records()[0].cost_state)


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (AttemptError.MALFORMED, b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n"),
        (AttemptError.MALFORMED, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
        (AttemptError.MALFORMED, CHUNKED + b"ZZ\r\n"),
        (AttemptError.MALFORMED, b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        (AttemptError.MALFORMED, b"HTTP/1.1 100 Continue\r\nx: " + b"y" * 40_000 + b"\r\n\r\n" + b"HTTP/1.1 100 Continue\r\nx: " + b"y" * 40_000 + b"\r\n\r\n"),
        (AttemptError.MALFORMED, STREAM_HEAD + chunk(b"data: " + b"x" * 2_000)),
        (AttemptError.MALFORMED, answer(b"[" * 100_000)),
        (AttemptError.MALFORMED, b"HTTP/1.1 200 OK\r\ncontent-length: 200001\r\n\r\n" + b" " * 200_001),
        (AttemptError.TRUNCATED, CHUNKED + chunk(BODY)),
    ],
)  # fmt: skip
async def test_hostile_answers_are_failed_attempts(
    tmp_path_factory: pytest.TempPathFactory, error: AttemptError, data: bytes
) -> None:
    """Too large, not HTTP, cut short: the try fails, the connection goes, the worker lives."""
    world = await World(tmp_path_factory.mktemp("hostile")).start(reply_bytes_max=200_000, stream_event_bytes_max=1_000)
    try:
        await world.upstream(sends_then_aborts(data))
        world.apply(route={"attempts_max": 1})
        assert 502 == (await world.chat(stream=data.startswith(STREAM_HEAD))).status_code
        assert error == world.records()[0].attempts[0].error
        assert 0 == sum(pool.open_count for pool in world.worker.http.pools())
    finally:
        await world.stop()


async def test_a_slow_client_holds_the_upstream_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """While the client does not read, the proxy does not either: memory stays bounded and the upstream cannot finish."""
    world = await World(tmp_path_factory.mktemp("slow")).start(stream_buffer_bytes=16_384)
    big = event("x" * 1_000)
    sent = 0

    async def endless(wire: Wire, _: Received) -> None:
        nonlocal sent
        await wire.send(STREAM_HEAD)
        while sent < 60_000_000:
            await wire.send(chunk(big))
            sent += len(big)
        await wire.send(chunk(DONE) + STREAM_END)

    try:
        await world.upstream(endless)
        world.apply()
        request = {"model": "gpt", "messages": [], "stream": True}
        async with world.client.stream("POST", "/v1/chat/completions", json=request) as response:
            assert 200 == response.status_code
            before = -1
            while before != sent:  # until nothing moves any more
                before = sent
                for _ in range(300):
                    await asyncio.sleep(0)
            assert sent < 50_000_000
    finally:
        await world.stop()


def waiting(world: World) -> int:
    """How many calls wait for a connection."""
    return sum(len(pool._waiters) for pool in world.worker.http.pools())


async def test_the_bound_on_connections_is_kept_and_waited_for(world: World) -> None:
    """Ten calls over five connections: five wait, all are answered, and never more than five are open."""
    go = asyncio.Event()

    async def answers_later(wire: Wire, _: Received) -> None:
        await go.wait()
        await wire.send(answer(BODY))

    upstream = await world.upstream(answers_later)
    world.apply(upstream={"connections_max": 5, "connect_timeout_s": 30.0}, route={"attempts_max": 1})
    calls = [asyncio.create_task(world.chat(user=str(number))) for number in range(10)]
    await until(lambda: (5, 5) == (waiting(world), len(upstream.received)))
    go.set()
    assert [200] * 10 == [(await call).status_code for call in calls]
    assert (10, 5) == (len(upstream.received), upstream.connections)


async def test_a_line_for_connections_that_is_full_is_a_failure_to_connect_at_once(world: World) -> None:
    """As many calls wait as there are connections; one more is not made to wait, and it is counted."""
    go = asyncio.Event()

    async def answers_later(wire: Wire, _: Received) -> None:
        await go.wait()
        await wire.send(answer(BODY))

    upstream = await world.upstream(answers_later)
    world.apply(upstream={"connections_max": 1, "connect_timeout_s": 30.0}, route={"attempts_max": 1})
    kept = [asyncio.create_task(world.chat()) for _ in range(2)]
    await until(lambda: (1, 1) == (waiting(world), len(upstream.received)))
    assert 502 == (await world.chat()).status_code
    assert AttemptError.CONNECT == world.records()[0].attempts[0].error
    go.set()
    assert [200, 200] == [(await call).status_code for call in kept]


async def test_a_full_line_of_ours_opens_no_breaker(world: World) -> None:
    """That we have too few connections says nothing about the upstream, nor about its other deployments."""
    go = asyncio.Event()

    async def answers_later(wire: Wire, _: Received) -> None:
        await go.wait()
        await wire.send(answer(BODY))

    upstream = await world.upstream(answers_later)
    world.apply(
        upstream={"connections_max": 1, "connect_timeout_s": 30.0},
        route={"attempts_max": 1},
        breaker=BreakerPolicy(failures_in_row=2.0),
    )
    kept = [asyncio.create_task(world.chat()) for _ in range(2)]
    await until(lambda: (1, 1) == (waiting(world), len(upstream.received)))
    assert [502] * 4 == [(await world.chat()).status_code for _ in range(4)]
    assert ["closed"] == [status.state for status in world.worker.breaker.statuses()]
    go.set()
    assert [200, 200] == [(await call).status_code for call in kept]


async def test_a_pool_that_stays_busy_is_a_failure_to_connect(world: World) -> None:
    """Who waits longer than the connect timeout hears of it, and it is counted."""

    async def hangs(wire: Wire, _: Received) -> None:
        await wire.hang()

    upstream = await world.upstream(hangs)
    world.apply(upstream={"connections_max": 1, "connect_timeout_s": 0.05}, route={"attempts_max": 1})
    first = asyncio.create_task(world.chat())
    await until(lambda: upstream.received)
    assert 502 == (await world.chat()).status_code
    assert AttemptError.CONNECT == world.records()[0].attempts[0].error
    assert 'bound="upstream_connections_max"' in (await world.client.get("/metrics")).text
    first.cancel()

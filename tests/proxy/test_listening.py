"""A worker's server at its end: every connection that it still has is answered, and none of them is used on for ever."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from proxy.listening import accept_also, drain
from proxy.server import WorkerProtocol
from tests.proxy.fakes import STREAM_HEAD, Received, Wire, World, answer, chunk, completion, event, until, whole_stream
from tests.proxy.test_server import dial, one_answer, request


class Gate:
    """An upstream that answers when it is told."""

    def __init__(self, *parts: bytes) -> None:
        self.opened = asyncio.Event()
        self.begun = asyncio.Event()
        self._parts = parts

    async def __call__(self, wire: Wire, _: Received) -> None:
        """Sends the first part at once and the rest when the gate is opened."""
        first, *rest = self._parts
        await wire.send(first)
        self.begun.set()
        await self.opened.wait()
        for part in rest:
            await wire.send(part)


def split(data: bytes) -> tuple[bytes, bytes]:
    """An answer whose last byte is missing, and that byte."""
    return data[:-1], data[-1:]


def stops(world: World) -> bool:
    """Whether the server has begun to stop."""
    return cast("type[WorkerProtocol]", world.server.config.http_protocol_class).stopping


async def busy_with_one(world: World) -> tuple[Gate, asyncio.StreamWriter]:
    """What lets the one call end that keeps the server from stopping, and that call's connection."""
    gate = Gate(*split(answer(completion())))
    await world.upstream(gate)
    world.apply()
    _, busy = await dial(world)
    busy.write(request("long"))
    await gate.begun.wait()
    return gate, busy


async def late_socket(world: World) -> tuple[asyncio.Server, tuple[str, int]]:
    """A socket whose connections the server accepts although it stops, and its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return await accept_also(world.server, sock), sock.getsockname()


async def test_a_connection_that_is_accepted_while_the_server_stops_ends_behind_its_answer(world: World) -> None:
    """It came in the moment in which the server stopped: its call is answered, with `connection: close`, and no other is taken."""
    gate, busy = await busy_with_one(world)
    drain(world.server, linger_s=5.0)
    await until(lambda: stops(world))
    late, address = await late_socket(world)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer x\r\n\r\n")
    status, headers, _ = await one_answer(reader)
    assert (b"HTTP/1.1 401 Unauthorized", "close", b"") == (status, headers["connection"], await reader.read())
    late.close()
    gate.opened.set()
    await world.shut()
    assert [401, 200] == [record.status for record in world.kept_records()]
    busy.close()


async def test_a_connection_that_says_nothing_does_not_keep_a_server_that_stops(world: World) -> None:
    """Accepted in the moment in which the server stopped, and silent: it is closed, and the server ends."""
    gate, busy = await busy_with_one(world)
    world.server.should_exit = True
    await until(lambda: stops(world))
    late, address = await late_socket(world)
    reader, _ = await asyncio.open_connection(*address)
    async with asyncio.timeout(20.0):
        assert b"" == await reader.read()
    late.close()
    gate.opened.set()
    await world.shut()
    busy.close()


async def test_a_stream_that_has_begun_keeps_the_promise_of_its_head(world: World) -> None:
    """Its head said that the connection stays: after the stream one more call is answered on it, and that answer ends it."""
    gate = Gate(STREAM_HEAD + chunk(event() + event("a")), whole_stream("b").removeprefix(STREAM_HEAD))
    await world.upstream(gate)
    world.apply()
    reader, writer = await dial(world)
    writer.write(request("long", stream=True))
    assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
    drain(world.server, linger_s=5.0)
    await until(lambda: stops(world))
    gate.opened.set()
    await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
    writer.write(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer x\r\n\r\n")
    status, headers, _ = await one_answer(reader)
    assert (b"HTTP/1.1 401 Unauthorized", "close", b"") == (status, headers["connection"], await reader.read())
    await world.shut()

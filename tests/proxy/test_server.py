"""The server on the wire: order, framing, interim answers, trailers, and clients that send much and read little."""

from __future__ import annotations

import asyncio
import json

import pytest

from controlplane.contract.records import Outcome
from controlplane.contract.snapshot import TenantPolicy
from tests.proxy.fakes import DONE, KEY, World, answer, completion, replies, until, whole_stream

GOOD = replies(answer(completion()))


def request(text: str, *headers: str, version: str = "1.1", stream: bool = False) -> bytes:
    """A chat completion as bytes; `text` makes it this one and no other."""
    document: dict[str, object] = {"model": "gpt", "messages": [{"role": "user", "content": text}]}
    body = json.dumps(document | ({"stream": True} if stream else {})).encode()
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: proxy", f"Authorization: Bearer {KEY}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def dial(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the worker."""
    host, port = world.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def one_answer(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str], bytes]:
    """The next answer of known length: its status line, headers and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return head[0].encode(), headers, await reader.readexactly(int(headers["content-length"]))


async def test_pipelined_requests_are_answered_in_their_order(world: World) -> None:
    """Twenty at once on one connection, slow and fast ones mixed: as many answers, in the order of the requests."""
    await world.upstream(GOOD)
    world.apply()
    reader, writer = await dial(world)
    missing = b"GET /v1/models/none HTTP/1.1\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    writer.write(b"".join(request(f"question {n}") + missing for n in range(10)))
    statuses = [(await one_answer(reader))[0].split()[1] for _ in range(20)]
    assert [b"200", b"404"] * 10 == statuses
    writer.close()


async def test_answers_wait_for_a_client_that_does_not_read(world: World) -> None:
    """Thousands of requests without reading: all are answered once it reads, and until then no more than it can take are."""
    world.apply(urls=("http://127.0.0.1:9/v1",))
    reader, writer = await dial(world)
    count = 3_000
    writer.write(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer x\r\n\r\n" * count)
    await until(lambda: world.worker.app.calls_total > 50)
    seen = -1
    while seen != world.worker.app.calls_total:
        seen = world.worker.app.calls_total
        for _ in range(50):
            await asyncio.sleep(0)
    for _ in range(count):
        assert (await one_answer(reader))[0].startswith(b"HTTP/1.1 401")
    assert count == world.worker.app.calls_total
    writer.close()


async def test_a_request_may_come_byte_by_byte(world: World) -> None:
    """However the network cuts it, it is the same request."""
    upstream = await world.upstream(GOOD)
    world.apply(model="gpt")
    reader, writer = await dial(world)
    data = request("slowly")
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)
    assert completion() == (await one_answer(reader))[2]
    assert data.endswith(upstream.received[0].body)
    writer.close()


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(world: World) -> None:
    """HTTP/1.0 knows no chunks: the end of the connection is the end of the body."""
    await world.upstream(replies(whole_stream("Hi")))
    world.apply()
    reader, writer = await dial(world)
    writer.write(request("hi", version="1.0", stream=True))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: ")
    assert body.endswith(DONE)
    writer.close()


@pytest.mark.parametrize(
    ("version", "header"), [("1.1", "Connection: close"), ("1.0", "X-A: b"), ("1.0", "Connection: keep-alive")]
)
async def test_the_connection_closes_when_the_client_wants_it_or_is_old(
    world: World, version: str, header: str
) -> None:
    """The answer says so and the end of the bytes follows."""
    await world.upstream(GOOD)
    world.apply()
    reader, writer = await dial(world)
    writer.write(request("hi", header, version=version))
    _, headers, body = await one_answer(reader)
    assert ("close", completion()) == (headers["connection"], body)
    assert b"" == await reader.read()
    writer.close()


async def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(world: World) -> None:
    """`Expect: 100-continue` is answered before the body has come."""
    await world.upstream(GOOD)
    world.apply()
    reader, writer = await dial(world)
    head, _, body = request("hi", "Expect: 100-continue").partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    assert b"HTTP/1.1 100 Continue\r\n\r\n" == await reader.readuntil(b"\r\n\r\n")
    writer.write(body)
    assert completion() == (await one_answer(reader))[2]
    writer.close()


async def test_a_head_request_gets_a_head(world: World) -> None:
    """The length of the body that a GET would get, and no body."""
    world.apply(urls=("http://127.0.0.1:9/v1",))
    reader, writer = await dial(world)
    writer.write(b"HEAD /livez HTTP/1.1\r\nconnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert (b"", True) == (body, b"content-length: 18" in head)
    writer.close()


async def test_trailers_change_nothing(world: World) -> None:
    """A key that comes behind the body is no key."""
    world.apply(urls=("http://127.0.0.1:9/v1",))
    reader, writer = await dial(world)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    writer.write(f"authorization: Bearer {KEY}\r\n\r\n".encode())
    assert (await one_answer(reader))[0].startswith(b"HTTP/1.1 401")
    assert [Outcome.DENIED] == [record.outcome for record in world.records()]
    writer.close()


async def test_a_body_cut_off_by_its_client_is_counted_and_never_becomes_a_call(world: World) -> None:
    """Half a request leaves a count of the bound and no record."""
    world.apply(urls=("http://127.0.0.1:9/v1",))
    _, writer = await dial(world)
    writer.write(request("hi")[:-5])
    await writer.drain()
    writer.close()
    await until(lambda: b'bound="request_incomplete"' in world.worker.metrics.render())
    assert [] == world.records()


async def test_a_connection_too_many_is_closed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Above `connections_max` a client is turned away at once, the others are served."""
    world = await World(tmp_path_factory.mktemp("many")).start(connections_max=2)
    try:
        world.apply(urls=("http://127.0.0.1:9/v1",), tenant=TenantPolicy("acme"))
        kept = [await dial(world), await dial(world)]
        await until(lambda: b"heph" in world.worker.metrics.render())
        kept[0][1].write(b"GET /livez HTTP/1.1\r\n\r\n")
        assert (await one_answer(kept[0][0]))[0].startswith(b"HTTP/1.1 200")
        reader, writer = await dial(world)
        assert b"" == await reader.read()
        assert b'bound="connections_max"' in world.worker.metrics.render()
        for _, open_writer in (*kept, (reader, writer)):
            open_writer.close()
    finally:
        await world.stop()

"""The connection at the level of bytes: turns, bodies, limits, slow readers and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from controlplane.clock import ManualClock
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.fakes import RawClient, post, question

GET_MODELS = b"GET /v1/models HTTP/1.1\r\nhost: p\r\nauthorization: Bearer k\r\n\r\n"


async def started(clock: ManualClock | None = None, **fields: object) -> Provider:
    """A provider with one upstream and these settings."""
    options: dict[str, object] = {"upstreams": (UpstreamConfig(port=0),), "latency": Latency(scale=0)} | fields
    made = Provider(ProviderConfig(**options), clock=clock)  # type: ignore[arg-type]
    await made.start()
    return made


async def test_requests_of_one_connection_are_answered_in_order(raw: RawClient) -> None:
    """Pipelined requests, a stream among them, get their answers in the order in which they came."""
    stream = question(stream=True)
    await raw.send(
        post(question("first thing")) + post(stream) + GET_MODELS + post(b"{") + post(question("last thing"))
    )
    answers = [await raw.answer() for _ in range(5)]
    assert [200, 200, 200, 400, 200] == [status for status, _, _ in answers]
    assert answers[1][2].endswith(b"data: [DONE]\n\n")
    assert json.loads(answers[2][2])["object"] == "list"


async def test_repeated_heads_carry_their_own_bodies(raw: RawClient) -> None:
    """Requests with the very same head are told apart by their bodies, in whatever pieces they come."""
    first, second = post(question("what is a cat?")), post(question("what is a dog?"))
    assert len(first) == len(second)
    wanted = {}
    for name, data in (("cat", first), ("dog", second)):
        other = await RawClient.connect(raw.writer.get_extra_info("peername")[1])
        await other.send(data)
        wanted[name] = json.loads((await other.answer())[2])["choices"]
        await other.close()
    assert wanted["cat"] != wanted["dog"]
    for name, pieces in (
        ("cat", [first]),
        ("dog", [second]),
        ("cat", [first[:40], first[40:]]),
        ("dog", [second]),
        ("cat", [first[:-1], first[-1:]]),
        ("dog", [second]),
    ):
        for piece in pieces:
            await raw.send(piece)
            for _ in range(50):
                await asyncio.sleep(0)
        assert wanted[name] == json.loads((await raw.answer())[2])["choices"]
    await raw.send(first + second[:-7])
    await raw.send(second[-7:] + first + second)
    got = [json.loads((await raw.answer())[2])["choices"] for _ in range(4)]
    assert [wanted[name] for name in ("cat", "dog", "cat", "dog")] == got


async def test_body_that_looks_like_a_head(raw: RawClient) -> None:
    """A body with an empty line in it is not taken for the end of the head."""
    body = json.dumps(question()).encode().replace(b"{", b"{\r\n\r\n", 1)
    for _ in range(3):
        await raw.send(post(body))
        assert (await raw.answer())[0] == 200


async def test_many_pipelined_requests_behind_a_slow_one() -> None:
    """Thousands of requests that wait for a slow answer are all answered afterwards, in bounded memory and stack."""
    slow = await started(latency=Latency(first_token_s=0.05, between_tokens_s=0))
    raw = await RawClient.connect(slow.port)
    await raw.send(post(question()) + GET_MODELS * 3000)
    assert [200] * 3001 == [(await raw.answer())[0] for _ in range(3001)]
    assert slow._gates[0].connections.held_back > 0
    await raw.close()
    await slow.stop()


async def test_chunked_body_in_small_pieces(raw: RawClient) -> None:
    """A chunked request body that arrives byte by byte is put together."""
    body = json.dumps(question()).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: p\r\nauthorization: Bearer k\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    for byte in head + pieces + b"0\r\n\r\n":
        raw.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await raw.answer())[0] == 200


async def test_expect_continue(raw: RawClient) -> None:
    """A client that asks before it sends its body is told to go on."""
    head, body = post(question(), headers={"expect": "100-continue"}).split(b"\r\n\r\n", 1)
    await raw.send(head + b"\r\n\r\n")
    assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await raw.send(body)
    assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
    ],
)
async def test_what_is_not_http_is_refused_and_closed(raw: RawClient, request_bytes: bytes, status: int) -> None:
    """Bytes that are not a request get one error answer, then the end."""
    await raw.send(request_bytes)
    got, headers, body = await raw.answer()
    assert (status, "close") == (got, headers["connection"])
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert await raw.reader.read() == b""


async def test_body_limit() -> None:
    """A body beyond the limit gets a 413 that reaches the client even while it is still sending."""
    small = await started(body_bytes_max=1000)
    raw = await RawClient.connect(small.port)
    raw.writer.write(post(b" " * 5_000_000))
    status, headers, body = await raw.answer()
    assert (413, "close") == (status, headers["connection"])
    assert json.loads(body)["error"]["code"] == "payload_too_large"
    assert small._gates[0].connections.unreadable == 1
    await raw.close()
    exact = await RawClient.connect(small.port)
    filler = json.dumps(question())
    await exact.send(post(filler.encode() + b" " * (1000 - len(filler))))
    assert (await exact.answer())[0] == 200
    await exact.close()
    await small.stop()


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "connection: keep-alive\r\n", True),
        ("1.1", "connection: upgrade\r\nupgrade: h2c\r\n", False),
    ],
)
async def test_keep_alive(raw: RawClient, version: str, header: str, *, stays: bool) -> None:
    """A connection stays open exactly when HTTP says so, and the answer says the same."""
    await raw.send(f"GET /v1/models HTTP/{version}\r\nhost: p\r\nauthorization: Bearer k\r\n{header}\r\n".encode())
    _, headers, _ = await raw.answer()
    assert ("keep-alive" if stays else "close") == headers["connection"]
    if stays:
        await raw.send(GET_MODELS)
        assert (await raw.answer())[0] == 200
    else:
        assert await raw.reader.read() == b""


async def test_stream_for_an_old_client_ends_with_the_connection(raw: RawClient) -> None:
    """HTTP/1.0 knows no chunks: the events come bare and the connection's end is the end."""
    await raw.send(post(question(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    _, headers = await raw.head()
    assert "transfer-encoding" not in headers
    body = await raw.reader.read()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_too_many_connections_are_turned_away_and_counted() -> None:
    """Beyond the limit a connection is closed at once; when one leaves, the next is welcome."""
    narrow = await started(connections_max=1)
    first = await RawClient.connect(narrow.port)
    await first.send(GET_MODELS)
    assert (await first.answer())[0] == 200
    second = await RawClient.connect(narrow.port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await second.reader.readexactly(1)
    assert narrow._gates[0].connections.turned_away == 1
    await first.close()
    for _ in range(100_000):
        if not narrow._gates[0].connections.open:
            break
        await asyncio.sleep(0)
    third = await RawClient.connect(narrow.port)
    await third.send(GET_MODELS)
    assert (await third.answer())[0] == 200
    for raw in (second, third):
        await raw.close()
    await narrow.stop()


async def test_idle_connection_is_closed(clock: ManualClock) -> None:
    """A connection without a request is closed after idle_s, one that is used is not."""
    quiet = await started(clock, idle_s=10.0)
    idle, used = await RawClient.connect(quiet.port), await RawClient.connect(quiet.port)
    for raw in (idle, used):
        await raw.send(GET_MODELS)
        await raw.answer()
    await clock.advance(10)
    await used.send(GET_MODELS)
    await used.answer()
    await clock.advance(10)
    assert await idle.reader.read() == b""
    await used.send(GET_MODELS)
    assert (await used.answer())[0] == 200
    for raw in (idle, used):
        await raw.close()
    await quiet.stop()


async def test_client_that_leaves_a_stream_is_billed_for_what_was_produced() -> None:
    """The timer of a stream ends with its client, and the bill has the prompt and the tokens until then."""
    paced = await started(latency=Latency(first_token_s=0.001, between_tokens_s=0.02, sigma=0))
    raw = await RawClient.connect(paced.port)
    await raw.send(post(question("Tell me a story in 400 words", stream=True)))
    await raw.head()
    for _ in range(3):
        await raw.reader.readuntil(b"\n\n")
    await raw.close()
    counts = paced.upstreams[0].stats.model("gpt-4o-mini-2024-07-18")
    for _ in range(100_000):
        if counts.cancelled:
            break
        await asyncio.sleep(0)
    assert (1, 0, 1) == (counts.calls, counts.completed, counts.cancelled)
    assert 1 <= counts.completion_tokens < 20
    assert counts.prompt_tokens > 0
    assert paced.upstreams[0].stats.in_flight == 0
    await paced.stop()


async def test_slow_reader_holds_its_stream_up_and_loses_nothing() -> None:
    """While a client does not read, the provider stops writing; when it reads again, it gets everything."""
    fast = await started(events_per_write=20)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listening.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(listening, ("127.0.0.1", fast.port))
    reader, writer = await asyncio.open_connection(sock=listening, limit=4096)
    writer.write(post(question("Tell me a story in 9000 words", stream=True)))
    held = await _held_up(fast)
    assert held._exchange._sent < len(held._exchange._answer.events)
    assert held._transport.get_write_buffer_size() < 1024 * 1024
    raw = RawClient(reader, writer)
    await raw.head()
    body = b"".join(await raw.chunks())
    assert body.endswith(b"data: [DONE]\n\n")
    content = [json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in body.split(b"\n\n")[:-2]]
    assert len("".join(content).split(" ")) == 9000
    await raw.close()
    await fast.stop()


async def _held_up(provider: Provider) -> Any:  # a connection, looked at from inside
    """The provider's one connection, as soon as it may not write any more."""
    async with asyncio.timeout(60):
        while True:
            connection = next(iter(provider._gates[0].connections.open), None)
            if connection is not None and not connection._writable:
                return connection
            await asyncio.sleep(0)

"""Framing of answers, and what an exchange refuses to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from proxy.exchange import Exchange

LINES = b"a: b\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\na: b\r\n"


class Wire:
    """A client's connection that keeps what it is sent."""

    write_paused = False
    date_line = b"date: now\r\n"

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.ended = 0
        self.aborted = 0

    def write(self, data: bytes) -> None:
        """Keeps it."""
        self.writes.append(data)

    async def drain(self) -> None:
        """There is always room."""

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Runs it."""
        return asyncio.create_task(work)

    def abort(self) -> None:
        """Counts it."""
        self.aborted += 1

    def exchange_ended(self, exchange: Exchange) -> None:
        """Counts it."""
        assert exchange.ended
        self.ended += 1


def exchange(wire: Wire, *, method: bytes = b"POST", keep_alive: bool = True, chunked: bool = True) -> Exchange:
    """A request without a body."""
    return Exchange(wire, method, "/", {}, b"", keep_alive=keep_alive, chunked=chunked)


@pytest.mark.parametrize(
    ("expected", "method", "keep_alive"),
    [
        (HEAD + b"content-length: 4\r\n\r\nbody", b"POST", True),
        (HEAD + b"content-length: 4\r\nconnection: close\r\n\r\nbody", b"POST", False),
        (HEAD + b"content-length: 4\r\n\r\n", b"HEAD", True),
    ],
)
def test_a_whole_answer_is_one_write(expected: bytes, method: bytes, *, keep_alive: bool) -> None:
    """Status, date, headers, length and body together."""
    wire = Wire()
    exchange(wire, method=method, keep_alive=keep_alive).answer(200, LINES, b"body")
    assert ([expected], 1) == (wire.writes, wire.ended)


@pytest.mark.parametrize(
    ("expected", "chunked", "parts"),
    [
        ([HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n", b"2\r\nyz\r\n0\r\n\r\n"], True, (b"x", b"yz")),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n", b"0\r\n\r\n"], True, (b"x", b"")),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"], True, (b"", b"")),
        ([HEAD + b"\r\nx", b"yz"], False, (b"x", b"yz")),
    ],
)
def test_a_stream_sends_its_head_with_its_first_chunk(
    expected: list[bytes], parts: tuple[bytes, bytes], *, chunked: bool
) -> None:
    """An empty chunk would end the body, so it is not sent."""
    wire = Wire()
    target = exchange(wire, chunked=chunked)
    target.begin(200, LINES)
    assert [] == wire.writes
    target.send(parts[0])
    target.end(parts[1])
    assert (expected, 1) == (wire.writes, wire.ended)


def test_an_answer_starts_once_and_ends_once() -> None:
    """Two answers to one request would be taken for the answer to the next."""
    target = exchange(Wire())
    with pytest.raises(RuntimeError):
        target.send(b"x")
    target.begin(200, LINES)
    with pytest.raises(RuntimeError):
        target.begin(200, LINES)
    with pytest.raises(RuntimeError):
        target.answer(200, LINES, b"")
    target.end(b"")
    with pytest.raises(RuntimeError):
        target.send(b"x")
    with pytest.raises(RuntimeError):
        target.end(b"")


def test_nothing_is_sent_to_a_client_that_left() -> None:
    """Whoever serves it is told once and may go on as if it were there."""
    wire = Wire()
    target = exchange(wire)
    told: list[bool] = []
    target.on_gone = lambda: told.append(True)
    target.begin(200, LINES)
    target.lost()
    target.send(b"x")
    target.end(b"y")
    target.answer(200, LINES, b"z")
    assert ([True], [], 0) == (told, wire.writes, wire.ended)


def test_a_status_without_a_name_is_sent_all_the_same() -> None:
    """Upstreams make some up."""
    wire = Wire()
    exchange(wire).answer(529, b"", b"")
    assert wire.writes[0].startswith(b"HTTP/1.1 529 \r\n")


def test_an_answer_that_cannot_end_well_is_cut_off() -> None:
    """The connection is closed once, nothing more is sent, and the end is not reported as one."""
    wire = Wire()
    cut = exchange(wire)
    cut.begin(200, LINES)
    cut.send(b"some")
    for _ in range(2):
        cut.abort()
    cut.end(b"more")
    assert (1, 1, 0) == (len(wire.writes), wire.aborted, wire.ended)

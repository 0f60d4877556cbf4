"""Writes that leave together: in order, once, and never behind what is too much to hold."""

from __future__ import annotations

import asyncio

from proxy.outbox import HeldWrites, Outbox


class Socket(asyncio.WriteTransport):
    """A transport that keeps what it is given, in a list shared with others."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self._name = name
        self._log = log

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keeps it."""
        self._log.append((self._name, bytes(data)))

    def close(self) -> None:
        """Says so."""
        self._log.append((self._name, b"closed"))


async def test_writes_of_one_turn_leave_together_at_its_end() -> None:
    """Two writes to one socket are one, and sockets are served in the order of their first write."""
    log: list[tuple[str, bytes]] = []
    outbox = Outbox()
    first, second = HeldWrites(Socket("1", log), outbox), HeldWrites(Socket("2", log), outbox)
    first.write(b"a")
    second.write(b"b")
    first.write(b"c")
    assert [] == log
    await asyncio.sleep(0)
    assert [("1", b"ac"), ("2", b"b")] == log
    await asyncio.sleep(0)
    assert 2 == len(log)


async def test_a_lone_write_leaves_at_once_and_in_company_they_wait_again() -> None:
    """After a turn with one write the first of the next leaves at once, all behind it at the end of their turn, and so those of the turn after."""
    log: list[tuple[str, bytes]] = []
    outbox = Outbox()
    first, second = HeldWrites(Socket("1", log), outbox), HeldWrites(Socket("2", log), outbox)
    first.write(b"a")
    await asyncio.sleep(0)
    second.write(b"b")
    assert [("1", b"a"), ("2", b"b")] == log
    first.write(b"c")
    second.write(b"d")
    assert 2 == len(log)
    await asyncio.sleep(0)
    assert [("2", b"d"), ("1", b"c")] == log[2:]
    first.write(b"e")
    assert 4 == len(log)
    await asyncio.sleep(0)
    assert [("1", b"e")] == log[4:]


async def test_much_goes_out_at_once() -> None:
    """What is too much to hold meets the socket's back-pressure now, behind what was held."""
    log: list[tuple[str, bytes]] = []
    held = HeldWrites(Socket("1", log), Outbox())
    held.write(b"a")
    held.write(b"b" * 65_535)
    assert [("1", b"a" + b"b" * 65_535)] == log
    held.write(b"c")
    await asyncio.sleep(0)
    assert [("1", b"c")] == log[1:]


async def test_closing_sends_what_is_held() -> None:
    """The last bytes go out before the end; after it nothing does."""
    log: list[tuple[str, bytes]] = []
    held = HeldWrites(Socket("1", log), Outbox())
    held.write(b"last")
    held.close()
    await asyncio.sleep(0)
    assert [("1", b"last"), ("1", b"closed")] == log


async def test_a_lost_connection_is_sent_nothing() -> None:
    """What was held for somebody who has left is forgotten."""
    log: list[tuple[str, bytes]] = []
    held = HeldWrites(Socket("1", log), Outbox())
    held.write(b"too late")
    held.drop()
    await asyncio.sleep(0)
    assert [] == log


async def test_a_socket_that_was_closed_keeps_nobody_waiting() -> None:
    """What a closed transport refuses is lost; the writes behind it go out."""

    class Closed(Socket):
        """A transport that was closed beneath its owner."""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            """As uvloop answers."""
            raise RuntimeError(f"the handler is closed: {len(data)} bytes refused")

    log: list[tuple[str, bytes]] = []
    outbox = Outbox()
    first, second = HeldWrites(Closed("1", log), outbox), HeldWrites(Socket("2", log), outbox)
    first.write(b"a")
    second.write(b"b")
    await asyncio.sleep(0)
    assert [("2", b"b")] == log
    second.write(b"c")
    await asyncio.sleep(0)
    first.write(b"at once, and lost as well")
    await asyncio.sleep(0)
    assert [("2", b"c")] == log[1:]

"""One request of a client and its answer: what the server hands to the application, and how the answer goes out.

The head of an answer waits for the first bytes of its body, so that both leave in one write. A small answer is one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Protocol

_END = b"0\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_CLOSE = b"connection: close\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Channel(Protocol):
    """The client's connection, as an exchange needs it."""

    write_paused: bool

    @property
    def date_line(self) -> bytes:
        """The `date` header."""
        ...

    def write(self, data: bytes) -> None:
        """Sends bytes, or keeps them until the client takes them."""
        ...

    async def drain(self) -> None:
        """Waits until the client has taken enough of what it was sent."""
        ...

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Runs what serves an exchange; the server waits for it before it stops."""
        ...

    def exchange_ended(self, exchange: Exchange) -> None:
        """The answer is whole."""
        ...

    def abort(self) -> None:
        """Closes the connection with no farewell."""
        ...


class Exchange:
    """A request that has come, with its body, and the only way in which it is answered."""

    __slots__ = (
        "_channel", "_chunked", "_head", "body", "ended", "gone", "headers", "keep_alive", "method", "on_gone", "path", "peer", "started",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        channel: Channel,
        method: bytes,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes | None,
        *,
        keep_alive: bool,
        chunked: bool,
        target: bytes = b"",
        peer: str = "",
    ) -> None:
        """body: None: it is larger than allowed, and the rest of it is thrown away. chunked: the client understands that."""
        self._channel = channel
        self._head = b""  # held back until the first bytes of the body
        self._chunked = chunked  # else the end of the connection is the end of the body
        self.target = target  # of the request, as it came: path and query
        self.peer = peer  # address of the client's connection
        self.method = method
        self.path = path
        self.headers = headers  # lower-case names; the last of equal names
        self.body = body
        self.keep_alive = keep_alive
        self.started = False
        self.ended = False
        self.gone = False  # the client has left
        self.on_gone: Callable[[], None] | None = None  # called if the client leaves before the end

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Sends a whole answer. lines: headers, each ended by CRLF, without those about framing."""
        if self.gone:
            return
        if self.started:
            raise RuntimeError("an answer starts once")
        channel = self._channel
        self.started = True
        close = b"" if self.keep_alive else _CLOSE
        channel.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                _STATUS_LINES.get(status) or _status_line(status),
                channel.date_line,
                lines,
                len(body),
                close,
                body if self.method != b"HEAD" else b"",
            )
        )
        self._finish()

    def begin(self, status: int, lines: bytes) -> None:
        """Begins an answer of unknown length."""
        if self.gone:
            return
        if self.started:
            raise RuntimeError("an answer starts once")
        self.started = True
        self._head = b"%b%b%b%b%b\r\n" % (
            _STATUS_LINES.get(status) or _status_line(status),
            self._channel.date_line,
            lines,
            _CHUNKED if self._chunked else b"",
            b"" if self.keep_alive else _CLOSE,
        )

    def send(self, chunk: bytes) -> None:
        """Sends some of the body. Whoever sends much asks `blocked` before."""
        if self.gone or not chunk:
            return
        if not self.started or self.ended:
            raise RuntimeError("a chunk in the wrong place")
        if self._chunked:
            chunk = b"%b%x\r\n%b\r\n" % (self._head, len(chunk), chunk)
        elif self._head:
            chunk = self._head + chunk
        self._head = b""
        self._channel.write(chunk)

    def end(self, last: bytes) -> None:
        """Sends the rest of the body and its end."""
        if self.gone:
            return
        if not self.started or self.ended:
            raise RuntimeError("an end in the wrong place")
        if self._chunked:
            last = b"%b%x\r\n%b\r\n0\r\n\r\n" % (self._head, len(last), last) if last else self._head + _END
        elif self._head:
            last = self._head + last
        self._head = b""
        self._channel.write(last)
        self._finish()

    def abort(self) -> None:
        """Closes the connection, so that the client sees that its answer is not whole; for answers that cannot say so themselves."""
        if not self.gone:
            self.gone = True
            self.on_gone = None
            self._channel.abort()

    @property
    def blocked(self) -> bool:
        """Whether the client is behind with what it was sent: then `drain` before more."""
        return self._channel.write_paused

    async def drain(self) -> None:
        """Waits until the client has taken enough, or has left."""
        await self._channel.drain()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Runs what serves this exchange, when that has to wait."""
        return self._channel.spawn(work)

    def lost(self) -> None:
        """The client has left before the end."""
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    def _finish(self) -> None:
        self.ended = True
        self.on_gone = None
        self._channel.exchange_ended(self)


def _status_line(status: int) -> bytes:
    """The first line of an answer whose status has no name."""
    return b"HTTP/1.1 %d \r\n" % status

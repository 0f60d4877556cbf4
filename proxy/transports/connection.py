"""One keep-alive HTTP/1.1 connection to an upstream: a protocol on asyncio and httptools, one exchange at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from itertools import compress
from typing import cast

import httptools

from proxy.call import Headers
from proxy.outbox import HeldWrites, Outbox

_WRITE_JOINED_MAX = 64 * 1024  # up to here, head and body go out as one buffer


_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


class Failure(Enum):
    """Why an exchange could not go on."""

    CLOSED = "closed"  # the upstream closed the connection before its answer was whole
    TIMED_OUT = "timed_out"
    MALFORMED = "malformed"  # not HTTP, or larger than allowed


class ConnectionFailed(Exception):
    """An exchange that could not go on; carries the reason and whether any byte of an answer had come."""

    def __init__(self, failure: Failure, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.failure = failure
        self.answered = answered


class Connection(asyncio.Protocol):
    """Sends one request at a time and reads its answer, as a stream or whole.

    Waiting is bounded by `expire_at`, which costs no task and, while connections are reused, hardly ever a timer: the timer that
    is armed looks at the time when it fires and is armed again for what is left.

    shown: of the names of an answer's headers, which are wanted, one by one, and how those are called from here on.
    on_closed: called once when the connection is gone, whoever closed it.
    """

    __slots__ = (  # there are thousands of them
        "_body_bytes_max", "_busy", "_error", "_expires", "_head_bytes", "_header_bytes_max",
        "_high_water_bytes", "_loop", "_on_closed", "_on_complete", "_on_data", "_out", "_outbox", "_parser",
        "_parts", "_parts_bytes", "_paused", "_raw", "_shown", "_tail", "_timer", "_timer_at", "_transport",
        "_waiter", "answered", "closed", "complete", "head_done", "headers", "idle_since", "keep_alive", "names", "on_header",
        "status", "uses",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        header_bytes_max: int,
        high_water_bytes: int,
        shown: Callable[[tuple[bytes, ...]], tuple[tuple[bool, ...], tuple[bytes, ...]]],
        on_closed: Callable[[Connection], None],
        outbox: Outbox,
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._shown = shown
        self._raw: dict[bytes, bytes] = {}
        self.on_header = (
            self._raw.__setitem__
        )  # for the parser: a method in Python would cost more than all of its work
        self._header_bytes_max = header_bytes_max
        self._high_water_bytes = high_water_bytes
        self._on_closed = on_closed
        self._on_complete: Callable[[Connection], None] | None = None
        self._on_data: Callable[[bytes], bool] | None = None
        self._tail: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._out: HeldWrites | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._expires = 0.0
        self._paused = False
        self._busy = False
        self.closed = False
        self.idle_since = 0.0
        self.uses = 0
        self.names: tuple[bytes, ...] = ()
        self._reset(0)

    def _reset(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._head_bytes = 0
        self._raw.clear()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._error: ConnectionFailed | None = None
        self.status = 0
        self.headers: Headers = []  # their `names`, one by one, with the values
        self.head_done = False
        self.complete = False
        self.answered = False
        self.keep_alive = False

    # what the transport above uses

    def start(self, head: bytes, body: bytes, *, body_bytes_max: int) -> None:
        """Sends a request. The answer's body may have at most body_bytes_max bytes; 0: a stream, held by back-pressure."""
        assert not self._busy, "a connection carries one exchange at a time"  # noqa: S101
        assert self._transport is not None and self._out is not None  # noqa: S101, PT018
        self._reset(body_bytes_max)
        self._busy = True
        self.uses += 1
        if len(body) <= _WRITE_JOINED_MAX:
            self._out.write(head + body)
        else:
            self._transport.writelines((head, body))

    def stream_body(self) -> None:
        """From here on the body is read as a stream: bounded by back-pressure, not by its size."""
        self._body_bytes_max = 0
        self._hold_back()

    def tap(self, on_data: Callable[[bytes], bool]) -> None:
        """Data that comes while somebody waits goes to on_data, and wakes who waits only when that answers False."""
        self._on_data = on_data

    def wait(self) -> asyncio.Future[None]:
        """What ends when there is news: await it until the news is what you want. Raises ConnectionFailed when there will be none."""
        if self._error is not None:
            raise self._error
        if self._timer is None and self._expires:  # it fired while nobody waited
            self._arm(self._expires)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    async def read(self) -> bytes:
        """What has come since the last read; b"" at the end of the body. Cancelling loses nothing. Raises ConnectionFailed."""
        while not self._parts:
            if self.complete:
                return b""
            await self.wait()
        return self.take()

    def take(self) -> bytes:
        """What has come since it was last taken; b"" if nothing has."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._parts_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def whole_body(self) -> bytes:
        """The body, once the answer is complete; it has been read as a whole, not as a stream."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @property
    def has_data(self) -> bool:
        """Whether a read would return at once."""
        return bool(self._parts) or self.complete

    def expire_at(self, at: float) -> None:
        """Waiting fails at this time (monotonic seconds); it does not run while nobody waits."""
        self._expires = at
        if self._timer is None:
            self._arm(at)
        elif at < self._timer_at:
            self._timer.cancel()
            self._arm(at)

    def when_complete(self, then: Callable[[Connection], None], *, within_s: float) -> None:
        """Calls `then` as soon as the rest of the answer, which nobody reads any more, has come; gives up if it does not."""
        self._on_complete = then
        self._tail = self._loop.call_later(within_s, self.abort)

    def finish(self) -> bool:
        """Ends the exchange; True if the connection can carry another one: all of both messages has gone over it."""
        self._busy = False
        self._on_complete = self._on_data = None
        self._parts = []
        if self._tail is not None:
            self._tail.cancel()
            self._tail = None
        transport = self._transport
        if transport is None or not (self.complete and self.keep_alive) or self._error is not None:
            return False
        return not transport.get_write_buffer_size()  # else it was answered before the request was whole

    def abort(self) -> None:
        """Closes the connection now; safe to call twice."""
        if self._transport is not None and not self.closed:
            self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._out = HeldWrites(self._transport, self._outbox)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; a body that lasts until then is whole."""
        self.closed = True
        self._parser = None
        self._transport = None
        if self._out is not None:
            self._out.drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tail is not None:
            self._tail.cancel()
            self._tail = None
        if self._busy and not self.complete and self._error is None:
            if exc is None and self.head_done and not _FRAMING & {name.lower() for name in self._raw}:
                self.complete = True
            else:
                self._error = ConnectionFailed(
                    Failure.CLOSED, "the upstream closed the connection", answered=self.answered
                )
        self._wake()
        self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if not self._busy or self._parser is None:
            self.abort()  # an answer to nothing
            return
        self.answered = True
        if not self.head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Failure.MALFORMED, f"the upstream's answer is not valid HTTP: {error}")
        if not self.head_done:
            self._check_head(self._head_bytes)
        if self._on_data is not None and self._tapped(self._on_data):
            return
        if not self._body_bytes_max and not self._paused:
            self._hold_back()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._on_complete is not None and self.complete:
            self._on_complete(self)

    # what the parser calls

    def on_message_begin(self) -> None:
        """A new answer begins; after a complete one it answers nothing."""
        if self.complete:
            self.keep_alive = False

    def on_headers_complete(self) -> None:
        """The head is whole, unless it is that of an interim answer (1xx), which is passed over."""
        assert self._parser is not None  # noqa: S101
        status: int = self._parser.get_status_code()
        if status < 200:
            self._raw.clear()
            return
        self.status = status
        self.head_done = True
        raw = self._raw
        wanted, self.names = self._shown(tuple(raw))
        self.headers = list(zip(self.names, compress(raw.values(), wanted), strict=True))
        if self._head_bytes > self._header_bytes_max:  # with some of the body, perhaps
            self._check_head(sum(len(name) + len(value) for name, value in self._raw.items()))

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        if self.complete:
            return
        self._parts.append(body)
        self._parts_bytes += len(body)
        if (
            self._body_bytes_max and self._parts_bytes > self._body_bytes_max
        ):  # a whole body: nothing has been taken yet
            self._fail(Failure.MALFORMED, f"the upstream's answer is larger than {self._body_bytes_max} bytes")

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self.head_done and not self.complete and self._parser is not None:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    # below

    def _tapped(self, on_data: Callable[[bytes], bool]) -> bool:
        """Whether what has come was taken in passing, and nobody need be woken for it."""
        waiter = self._waiter
        if waiter is None or waiter.done() or not self._parts or self._error is not None:
            return False
        return on_data(self.take()) and not self.complete

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_head(self, size: int) -> None:
        if size > self._header_bytes_max:
            self._fail(Failure.MALFORMED, f"the upstream's head is larger than {self._header_bytes_max} bytes")

    def _hold_back(self) -> None:
        """Stops reading from the socket while a stream's reader is behind."""
        if self._parts_bytes > self._high_water_bytes and not self._body_bytes_max and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _fail(self, failure: Failure, message: str) -> None:
        if self._error is None:
            self._error = ConnectionFailed(failure, message, answered=self.answered)
        self._wake()
        self.abort()

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._expires - time.monotonic() > 0.001:  # the loop's own resolution
            self._arm(self._expires)
        else:
            self._fail(Failure.TIMED_OUT, "the upstream did not answer in time")

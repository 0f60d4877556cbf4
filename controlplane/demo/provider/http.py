"""One HTTP/1.1 connection of the simulated provider: bytes in, requests out, answers back in their order.

Written by hand on asyncio.Protocol and httptools, because the provider must never be the slow part of a benchmark.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Protocol, cast

import httptools
import msgspec
import structlog

from controlplane.demo.provider import problems
from controlplane.demo.provider.problems import Problem

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 413: "Content Too Large", 415: "Unsupported Media Type",
    422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 529: "Overloaded",
}  # fmt: skip


KEPT = (b"anthropic-beta", b"anthropic-version", b"api-key", b"content-type", b"host", b"x-api-key", b"x-goog-api-key")
_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends a reset
_KEPT_LENGTHS = frozenset(map(len, KEPT))


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request with its body complete."""

    method: bytes
    path: bytes  # without the query
    query: bytes
    key: bytes  # the value of the Authorization header
    body: bytes
    keep_alive: bool
    chunks_allowed: bool  # False: HTTP/1.0, the end of the body is the end of the connection
    headers: dict[bytes, bytes] = {}  # those of KEPT that were sent


class Exchange(Protocol):
    """An answer that takes time. The connection tells it what happens to its client."""

    def client_left(self) -> None:
        """The connection is gone: cancel timers, settle the bill."""

    def pause(self) -> None:
        """The client reads too slowly: write no more."""

    def resume(self) -> None:
        """The client has caught up: go on."""


class Handler(Protocol):
    """What answers requests: an upstream, or the administration."""

    def handle(self, connection: Connection, request: Request) -> None:
        """Answers now with `connection.reply`, or later after `connection.begin`. Must not raise."""

    def worded(self, request: Request, problem: Problem) -> Problem:
        """A problem with a request that was not read to its end, in the words of the protocol that it began in."""


class Connections:
    """The open connections of one listening socket, with their bounds."""

    def __init__(self, handler: Handler, *, body_bytes_max: int, connections_max: int, pipelined_max: int) -> None:
        self.handler = handler
        self.body_bytes_max = body_bytes_max
        self.connections_max = connections_max
        self.pipelined_max = pipelined_max
        self.open: set[Connection] = set()
        self.turned_away = 0  # connections closed at once because there were too many
        self.unreadable = 0  # requests that were too large or not HTTP
        self.held_back = 0  # times that reading paused because too many requests of one connection waited

    def make(self) -> Connection:
        """A protocol for a connection that was just accepted."""
        return Connection(self)

    def abort_all(self) -> None:
        """Resets every connection, whatever it is doing."""
        for connection in list(self.open):
            connection.abort()

    def close_idle(self) -> None:
        """Closes the connections that did nothing since the call before this one."""
        for connection in list(self.open):
            connection.close_if_idle()


class Connection(asyncio.Protocol):
    """One client's connection. Requests that arrive while one is being answered wait for their turn."""

    __slots__ = (
        "_arrived", "_body", "_closing", "_connections", "_draining", "_exchange", "_head", "_headers", "_idle", "_key", "_last",
        "_message_bytes", "_parser", "_queue", "_reading", "_refused", "_size", "_transport", "_url", "_writable",
        "current",
    )  # fmt: skip

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._transport = cast("asyncio.Transport", None)  # set by connection_made before anything else is called
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._queue: deque[Request | Problem] = deque()
        self._writable = True
        self._closing = False
        self._draining = False
        self._idle = False
        self._refused = False  # the request being read was refused already
        self._reading = False  # the parser is inside a request
        self._arrived = b""
        self._head = b""  # of the last request, if it came in one piece
        self._message_bytes = 0  # head and body of that request
        self._last = _NO_REQUEST
        self._url = b""
        self._key = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self.current: Request | None = None

    # --- what handlers and exchanges use ---------------------------------------------------------------------------------

    def reply(self, data: bytes) -> None:
        """Writes a whole answer and turns to the next request."""
        self._transport.write(data)
        self.finish()

    def begin(self, exchange: Exchange) -> None:
        """Leaves the answer to an exchange, which must end with `finish`, `close` or `abort`."""
        self._exchange = exchange
        if not self._writable:
            exchange.pause()

    def write(self, data: bytes) -> None:
        """Writes a part of an answer."""
        self._transport.write(data)

    def finish(self) -> None:
        """The answer is written: turn to the next request, or close if there is to be none."""
        request = self.current
        self.current = None
        self._exchange = None
        if request is not None and not request.keep_alive:
            self.close()
        elif self._queue and not self._draining:
            self._drain()

    def close(self) -> None:
        """Closes after what was written has gone out."""
        self._exchange = None
        self._closing = True
        self._queue.clear()
        self._transport.close()

    def abort(self) -> None:
        """Resets the connection."""
        self._closing = True
        self._transport.abort()

    def reset(self) -> None:
        """Ends the connection with a reset instead of an end."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()

    def close_if_idle(self) -> None:
        """Closes if nothing was received or answered since the last time this was called."""
        if self.current is None and self._idle:
            self.close()
        self._idle = True

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepts, unless there are too many connections."""
        self._transport = cast("asyncio.Transport", transport)
        connections = self._connections
        if len(connections.open) >= connections.connections_max:
            connections.turned_away += 1
            self.abort()
            return
        connections.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not matter
        """Tells the exchange that its client has left."""
        self._connections.open.discard(self)
        self._closing = True
        self._queue.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()

    def data_received(self, data: bytes) -> None:
        """Parses; answers come from on_message_complete."""
        if self._closing:
            return
        self._idle = False
        head = self._head
        if (
            head
            and not self._reading
            and self.current is None
            and len(data) == self._message_bytes
            and data.startswith(head)
        ):
            known = self._last
            self._serve(
                Request(
                    known.method,
                    known.path,
                    known.query,
                    known.key,
                    data[len(head) :],
                    known.keep_alive,
                    known.chunks_allowed,
                    known.headers,
                )
            )
            return
        self._arrived = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer that is not taken: the request is answered as it is, and is the last one
        except httptools.HttpParserError:
            self._refuse(Problem(400, "The request is not valid HTTP/1.1."))

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._writable = False
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable = True
        if self._exchange is not None:
            self._exchange.resume()

    # --- httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A new request."""
        self._reading = True
        self._url = self._key = b""
        self._headers = {}
        self._body = []
        self._size = 0
        self._refused = False

    def on_url(self, url: bytes) -> None:
        """The target, perhaps in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps the headers that matter here."""
        length = len(name)
        if length == 13 and name.lower() == b"authorization":
            self._key = value
        elif length in _KEPT_LENGTHS and name.lower() in KEPT:
            self._headers[name.lower()] = value
        elif length == 6 and self.current is None and name.lower() == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body; too many of them are refused."""
        if self._refused:
            return
        self._size += len(body)
        if self._size > self._connections.body_bytes_max:
            self._refused = True
            self._body = []
            self._refuse(problems.too_large(self._connections.body_bytes_max))
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole: answer it, or let it wait for its turn."""
        self._reading = False
        if self._closing or self._refused:
            return
        parser = self._parser
        body = self._body
        path, _, query = self._url.partition(b"?")
        request = Request(
            parser.get_method(),
            path,
            query,
            self._key,
            body[0] if len(body) == 1 else b"".join(body),
            _may_go_on(parser),
            parser.get_http_version() != "1.0",
            self._headers,
        )
        self._remember(request)
        if self.current is None:
            self._serve(request)
            return
        self._queue.append(request)
        if len(self._queue) == self._connections.pipelined_max:
            self._connections.held_back += 1
            self._transport.pause_reading()

    def _remember(self, request: Request) -> None:
        """Keeps the head of a request that came in one piece: clients repeat theirs, and comparing is cheaper than parsing."""
        data = self._arrived
        head_bytes = len(data) - len(request.body)
        if data.find(b"\r\n\r\n") + 4 == head_bytes:
            self._head = data[:head_bytes]
            self._message_bytes = len(data)
            self._last = request
        else:
            self._head = b""

    # --- turns -----------------------------------------------------------------------------------------------------------

    def _serve(self, request: Request) -> None:
        self.current = request
        try:
            self._connections.handler.handle(self, request)
        except Exception:  # noqa: BLE001 - the one place that catches: a bug must not take the other connections down
            structlog.get_logger().exception("provider.bug", path=request.path.decode("latin-1"))
            self._closing = True
            self._transport.write(answer(problems.server_error(), keep_alive=False))
            self.close()

    def _drain(self) -> None:
        """Serves what waits, one after the other, until an answer takes time."""
        self._draining = True
        while self._queue and self.current is None and not self._closing:
            waiting = self._queue.popleft()
            if isinstance(waiting, Problem):
                self._turn_away(waiting)
            else:
                self._serve(waiting)
        self._draining = False
        if not self._closing and len(self._queue) < self._connections.pipelined_max:
            self._transport.resume_reading()

    def _refuse(self, problem: Problem) -> None:
        """Answers what cannot be read, after the answers that are due, and closes."""
        if self.current is not None:
            self._queue.append(problem)
            self._transport.pause_reading()
            return
        self._turn_away(problem)

    def _turn_away(self, problem: Problem) -> None:
        """Says what is wrong and reads on without looking until the client closes, so that a reset does not overtake the answer."""
        self._closing = True
        self._connections.unreadable += 1
        self._queue.clear()
        begun = Request(
            b"",
            self._url.partition(b"?")[0],
            b"",
            b"",
            b"",
            keep_alive=False,
            chunks_allowed=False,
            headers=self._headers,
        )
        problem = self._connections.handler.worded(begun, problem)
        self._transport.write(answer(problem, keep_alive=False))
        self._transport.write_eof()


_NO_REQUEST = Request(b"", b"", b"", b"", b"", keep_alive=False, chunks_allowed=False)


def _may_go_on(parser: httptools.HttpRequestParser) -> bool:
    """Whether another request can follow: not after an offered upgrade, nor after HEAD, whose answers here have a body."""
    return bool(parser.should_keep_alive()) and not parser.should_upgrade() and parser.get_method() != b"HEAD"


def answer(problem: Problem, *, keep_alive: bool, extra: bytes = b"", request_id: str = "") -> bytes:
    """A whole error answer. extra: header lines, each with its line end."""
    return whole(
        problem.status,
        problem.body(request_id),
        keep_alive=keep_alive,
        extra=extra + "".join(f"{name}: {value}\r\n" for name, value in problem.headers).encode(),
    )


def whole(status: int, body: bytes, *, keep_alive: bool = True, extra: bytes = b"") -> bytes:
    """A whole JSON answer."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: %b\r\n%b\r\n%b" % (
        status,
        _REASONS.get(status, "Other").encode(),
        len(body),
        b"keep-alive" if keep_alive else b"close",
        extra,
        body,
    )

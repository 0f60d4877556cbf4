"""The HTTP server of one worker: our own protocol on httptools, in uvicorn's life-cycle (signals, listening, graceful stop).

A request comes to the application when it is whole, as one call of a plain function; a task is made only for what has to wait. Idle
connections cost one timer each, which looks at the time when it fires. Decision 0009 has the figures behind this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import unquote

import httptools
import structlog
import uvicorn
from uvicorn.server import ServerState

from controlplane.contract.ids import new_id
from controlplane.contract.proxy_settings import ProxySettings
from proxy.app import PATHS, ProxyApp
from proxy.dialects import openai
from proxy.exchange import Exchange
from proxy.head import LISTS, by_name, whole_list
from proxy.metrics import ProxyMetrics
from proxy.outbox import HeldWrites, Outbox

_PIPELINED_MAX = 8  # requests behind the one that is served; more wait in the kernel
_LENGTH_DIGITS_MAX = 18
_STRANGERS_BODY_BYTES_MAX = 64 * 1024  # without a key of ours; more would let anybody fill our memory
_NAMES_HEAD_BYTES_MAX = 8 * 1024
_PATHS = {path.encode(): path for path in PATHS}  # the usual ones need no parsing
_END = b"\r\n\r\n"  # of a head
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

log = structlog.get_logger("proxy.server")


class WorkerProtocol(asyncio.Protocol):
    """One client's connection: bounds on heads, bodies, the time a request may take to arrive, and the number of connections.

    A timer for arrival runs only while a request is incomplete at the end of a read, so the usual request, which comes in one piece, costs none.
    """

    __slots__ = (  # there are thousands of them
        "_advancing", "_arrival", "_arrived", "_arriving", "_current", "_date_line", "_dated", "_head",
        "_headers", "_idle", "_idle_since", "_in_head", "_known", "_loop", "_out", "_parser", "_parts",
        "_parts_bytes", "_peer", "_piece", "_raw", "_read_paused", "_server", "_skipped", "_stall",
        "_transport", "_unsent_bytes", "_url", "_waiting", "_writable", "on_header", "write",
        "write_paused",
    )  # fmt: skip

    app: ProxyApp
    settings: ProxySettings
    metrics: ProxyMetrics
    outbox: Outbox
    stopping: bool = False  # of the whole server: each connection ends behind its next answer
    linger_s: float = 0.0  # that an idle connection may still be used once the server stops
    write: Callable[[bytes], None]  # for an exchange: sends bytes; what the client does not take yet is kept

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # uvicorn's own, of the lifespan
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn makes its protocols."""
        del config, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._server = server_state
        self._headers: dict[bytes, bytes] = {}  # of the request that is arriving; lower-case names
        self._raw: dict[bytes, bytes] = {}
        self.on_header = (
            self._raw.__setitem__
        )  # for the parser: a method in Python would cost more than all of its work
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        # An answer may go out on the first of two pipelined requests although that one said `close`.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # there from connection_made on
        self._out: HeldWrites = cast("HeldWrites", None)
        self._peer = ""
        self._arrival: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._current: Exchange | None = None  # the one that is being answered
        self._waiting: deque[Exchange] = deque()  # whole requests behind it
        self._arrived: list[Exchange] = []  # in the data being read
        self._advancing = False
        self._read_paused = False
        self._writable: asyncio.Event | None = None  # made when somebody waits
        self._head = bytearray()  # of a head that has not ended yet, the pieces before the one being read
        self._piece = b""  # the data being read
        self._dated: list[tuple[bytes, bytes]] = []
        self._date_line = b""
        self.write_paused = False
        self.on_message_begin()
        self._arriving = self._in_head = False

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuses a connection too many; gives a new one as long as an idle one to say something."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._out = HeldWrites(self._transport, self.outbox)
        self.write = self._out.write
        connections = cast("set[object]", self._server.connections)
        connections.add(self)
        if len(connections) > self.settings.connections_max:
            self.metrics.bound_hit("connections_max")
            self._out.close()
            return
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._rest()
        if self.stopping:  # it was accepted in the moment in which the server stopped to listen
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and tells the call that was under way."""
        del exc
        cast("set[object]", self._server.connections).discard(self)
        if self._arriving and not self._in_head and not self._skipped:
            self.metrics.bound_hit("request_incomplete")
        self._arriving = False
        self._out.drop()
        self._stop_timer()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._parser = None
        self._waiting.clear()
        self.resume_writing()
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.lost()

    def data_received(self, data: bytes) -> None:
        """Parses, starts what has become whole, and watches the clock and the head's size while a request is incomplete."""
        if self._parser is None:
            return
        self._piece = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # an offer that a server may ignore; the request is served as it is
            pass
        except httptools.HttpParserError:  # counted, not logged: whoever sends it could fill the log
            self._not_http()
            return
        finally:
            self._piece = b""
        arrived = self._arrived
        if arrived:
            self._arrived = []
            for exchange in arrived:
                self._accept(exchange)
        if self._in_head:
            if not arrived:  # else most of the data was not this head's
                self._head += data
            if len(self._head) > self.settings.header_bytes_max:
                self._refuse_head()
        if self._arriving:
            if self._arrival is None and not self._transport.is_closing():
                self._arrival = self._loop.call_later(self.settings.body_timeout_s, self._too_slow)
        elif self._arrival is not None:
            self._stop_timer()
            self._head.clear()

    def eof_received(self) -> None:
        """The client has said all; asyncio closes the connection behind what it was sent."""
        self._out.send()

    def pause_writing(self) -> None:
        """The client is behind with what it was sent; one that takes nothing for as long as an idle connection lives is cut off."""
        self.write_paused = True
        if self._stall is None:
            self._watch_stall()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        if self._current is None and self._waiting:
            self._next()

    # what the parser calls

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        self._arriving = self._in_head = True
        self._url = b""
        self._raw.clear()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._known = False  # by its key; asked only when its body is not small
        self._skipped = False  # it has been answered already; what is left of it is thrown away

    def on_url(self, url: bytes) -> None:
        """Some of the request's target."""
        self._url += url

    def on_headers_complete(self) -> None:
        """The head is whole; one that came in few large pieces may still be too large, and a body may say that it will be."""
        piece = self._piece
        head_bytes = len(self._head) + len(piece)  # with some of the body, perhaps
        self._headers = headers = by_name(self._raw, remember=head_bytes <= _NAMES_HEAD_BYTES_MAX)
        if not LISTS.isdisjoint(headers) and not self._arrived:  # else the piece begins with another request
            for name in LISTS & headers.keys():
                headers[name] = whole_list(name, bytes(self._head) + piece, last=headers[name])
        limit = self.settings.header_bytes_max
        if head_bytes > limit:
            size = len(self._url) + sum(len(name) + len(value) for name, value in headers.items())
            if size > limit:
                self._refuse_head()
                raise ValueError("head too large")  # stops the parser; the answer is on its way
        self._in_head = False
        self._head.clear()
        declared = headers.get(b"content-length", b"")
        if len(declared) > 3 and (
            len(declared) > _LENGTH_DIGITS_MAX or (declared.isdigit() and int(declared) > self.settings.body_bytes_max)
        ):
            self._too_large()
        elif b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and self._current is None:
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        if self._skipped:
            return
        self._parts.append(body)
        self._parts_bytes += len(body)
        if self._parts_bytes > _STRANGERS_BODY_BYTES_MAX and not self._known:
            self._known = self.app.takes_body(self._headers)
            if not self._known:
                self.metrics.bound_hit("strangers_body_bytes")
                self._skip_body()
                return
        if self._parts_bytes > self.settings.body_bytes_max:
            self._too_large()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._arriving = False
        if not self._skipped:
            parts = self._parts
            self._arrived.append(self._exchange(parts[0] if len(parts) == 1 else b"".join(parts)))
        else:
            if not self._arrived:
                self._head += _END  # what follows in this piece is another head, and all before it is none of it
            if self._current is None and self._idle is None:
                self._rest()  # its answer has gone out long ago

    # what an exchange uses

    @property
    def date_line(self) -> bytes:
        """The `date` header, which uvicorn renews each second."""
        headers = self._server.default_headers
        if headers is not self._dated:
            self._dated = headers
            self._date_line = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._date_line

    async def drain(self) -> None:
        """Waits until the client has caught up, or has left."""
        while self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Runs what serves an exchange; uvicorn waits for it at shutdown, and cancels it when the time to drain is over."""
        task = self._loop.create_task(work)
        self._server.tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def abort(self) -> None:
        """Closes the connection in the middle of an answer."""
        self._transport.abort()

    def exchange_ended(self, exchange: Exchange) -> None:
        """An answer is whole: the next request, or rest."""
        self._server.total_requests += 1
        self._current = None
        if not exchange.keep_alive:
            self._out.close()
        elif self._waiting:
            self._next()
        elif not self._transport.is_closing():
            self._rest()
            if self.stopping:  # its head went out before, and promised to keep the connection
                self._loop.call_later(self.linger_s, self._close_if_idle)

    def shutdown(self) -> None:
        """The server begins to stop: idle connections close now or after `linger_s`, the others behind their answer.

        A client that has already been told that its connection stays may use it once more, as an idle one may.
        """
        current = self._current
        if current is not None and not (current.started and self.linger_s):
            current.keep_alive = False
        elif self.linger_s:
            self._loop.call_later(self.linger_s, self._close_if_idle)
        else:
            self._out.close()

    # below

    def _exchange(self, body: bytes | None) -> Exchange:
        assert self._parser is not None  # noqa: S101
        parser, url = self._parser, self._url
        keep_alive: bool = parser.should_keep_alive()
        chunked = True
        if not keep_alive or b"connection" in self._headers:
            chunked = parser.get_http_version() != "1.0"
            keep_alive = keep_alive and chunked
        path = _PATHS.get(url) or _path_of(url)
        method: bytes = parser.get_method()
        return Exchange(
            self, method, path, self._headers, body, keep_alive=keep_alive, chunked=chunked, target=url, peer=self._peer
        )

    def _accept(self, exchange: Exchange) -> None:
        """Starts a request, or lets it wait for the one before it."""
        if self._current is None and not self.write_paused and not self._waiting:
            self._start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) > _PIPELINED_MAX and not self._read_paused:
            self._read_paused = True  # from here on we would not notice that the client leaves
            self._transport.pause_reading()

    def _next(self) -> None:
        """Starts what waits, until something has to be waited for again."""
        if self._advancing:  # the loop below goes on
            return
        self._advancing = True
        while self._waiting and self._current is None and not self.write_paused:
            if self._read_paused and len(self._waiting) <= _PIPELINED_MAX:
                self._read_paused = False
                self._transport.resume_reading()
            self._start(self._waiting.popleft())
        self._advancing = False

    def _start(self, exchange: Exchange) -> None:
        if self._transport.is_closing():
            return
        if self.stopping:
            exchange.keep_alive = False
        self._current = exchange
        try:
            self.app.handle(exchange)
        except Exception:  # a bug of ours ends this connection and nothing else
            log.exception("a request could not be answered")
            self._transport.abort()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._server.tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                log.error("a call could not be served", exc_info=error)
                self._transport.abort()

    def _rest(self) -> None:
        """Nothing is under way: from now on the connection is idle."""
        self._idle_since = self._loop.time()
        if self._idle is None:
            self._idle = self._loop.call_later(self.settings.keep_alive_s, self._on_idle)

    def _on_idle(self) -> None:
        self._idle = None
        if self._current is not None or self._arriving:
            return
        left_s = self._idle_since + self.settings.keep_alive_s - self._loop.time()
        if left_s > 0.001:
            self._idle = self._loop.call_later(left_s, self._on_idle)
        elif self._transport.get_write_buffer_size():
            self._transport.abort()  # it has not even taken its last answer
        else:
            self._out.close()

    def _watch_stall(self) -> None:
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._stall = self._loop.call_later(self.settings.keep_alive_s, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        if self._transport.get_write_buffer_size() < self._unsent_bytes:  # slow, but it reads
            self._watch_stall()
            return
        self.metrics.bound_hit("client_stalled")
        self._transport.abort()

    def _too_large(self) -> None:
        """The rest of the body is thrown away; the application says what the client hears."""
        self.metrics.bound_hit("body_bytes_max")
        self._skip_body()

    def _skip_body(self) -> None:
        self._skipped = True
        self._parts = []
        self._arrived.append(self._exchange(None))

    def _not_http(self) -> None:
        self._arriving = self._in_head = False
        if self._transport.is_closing():
            return
        self.metrics.bound_hit("not_http")
        body = openai.error_body(
            message="this is not a valid HTTP request", kind="invalid_request_error", code="malformed"
        )
        self._answer_and_close(b"400 Bad Request", body)

    def _refuse_head(self) -> None:
        self.metrics.bound_hit("header_bytes_max")
        self._arriving = self._in_head = False
        message = f"the request's head is larger than {self.settings.header_bytes_max} bytes"
        body = openai.error_body(message=message, kind="invalid_request_error", code="too_large")
        self._answer_and_close(b"431 Request Header Fields Too Large", body)

    def _close_if_idle(self) -> None:
        if self._current is None and not self._arriving:
            self._out.close()

    def _too_slow(self) -> None:
        self._arrival = None
        if self._transport.is_closing() or not self._arriving:
            return
        if self._read_paused:  # it is we who do not read on
            self._arrival = self._loop.call_later(self.settings.body_timeout_s, self._too_slow)
            return
        self.metrics.bound_hit("body_timeout_s")
        if self._in_head and self._current is None:
            message = "the request did not arrive in time"
            body = openai.error_body(message=message, kind="invalid_request_error", code="malformed")
            self._answer_and_close(b"408 Request Timeout", body)
        else:
            self._out.close()

    def _stop_timer(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _answer_and_close(self, status: bytes, body: bytes) -> None:
        if self._current is None or not self._current.started:  # else it would end in the middle of another answer
            self.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\nx-heph-call-id: %b\r\n"
                b"x-heph-error-source: client\r\ncontent-length: %d\r\n\r\n%b"
                % (status, new_id("call").encode(), len(body), body)
            )
        self._out.close()


def _path_of(target: bytes) -> str:
    """The path of a request's target."""
    path = target.partition(b"?")[0].decode("latin-1")
    return unquote(path) if "%" in path else path

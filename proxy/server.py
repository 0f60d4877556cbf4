"""The HTTP server of one worker: uvicorn, with the bounds that it lacks against slow and oversized requests.

Two things differ from uvicorn's own protocol because they are worth a fifth of a call's time: head and first body bytes go out in one
write, and the server itself tells the call that its client has left, so that nobody has to wait for that (decision 0006).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from controlplane.contract.proxy_settings import ProxySettings
from proxy.app import ProxyApp
from proxy.dialects import openai
from proxy.metrics import ProxyMetrics

_BACKLOG = 4096
_PIPELINED_MAX = 8  # requests behind the one that is served; more wait in the kernel
_CLOSE = (b"connection", b"close")
_CHUNKED = (b"transfer-encoding", b"chunked")


class Exchange(RequestResponseCycle):
    """One request and its response, as uvicorn keeps it; `on_gone` is called if the client leaves before the end."""

    on_gone: Callable[[], None] | None = None
    _start: MutableMapping[str, Any] | None = None  # ASGI's own type: the head, held back until the first body bytes

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]  # as ASGI has it
        """Status and headers wait for the first of the body; at the client's pace from then on."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            if self.response_started:
                raise RuntimeError("a response starts once")
            self.response_started = True
            self.waiting_for_100_continue = False
            self._start = message
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError(f"{message['type']} in the wrong place")
        body: bytes = message.get("body", b"")
        more_body: bool = message.get("more_body", False)
        head = b""
        if self._start is not None:
            head = self._head(self._start)
            self._start = None
        self.transport.write(head + self._framed(body, more_body=more_body))
        if not more_body:
            self.response_complete = True
            self.on_gone = None
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _head(self, start: MutableMapping[str, Any]) -> bytes:
        headers = self.default_headers + start["headers"]
        self.chunked_encoding = not any(name == b"content-length" for name, _ in headers)
        if self.chunked_encoding:
            headers.append(_CHUNKED)
        if not self.keep_alive:
            headers.append(_CLOSE)
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"".join((STATUS_LINE[start["status"]], *lines, b"\r\n"))
        if head.count(b"\n") != len(lines) + 2:
            raise RuntimeError("a header holds a line feed")
        return head

    def _framed(self, body: bytes, *, more_body: bool) -> bytes:
        if self.scope["method"] == "HEAD":
            return b""
        if not self.chunked_encoding:
            return body
        if more_body:
            return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on heads, on the time a request may take to arrive, and on connections.

    A timer runs only while a request is incomplete at the end of a read, so the usual request, which comes in one piece, costs none.
    """

    settings: ProxySettings
    metrics: ProxyMetrics

    _arrival: asyncio.TimerHandle | None = None
    _arriving = False
    _in_head = False
    _exchanges: tuple[Exchange, ...] = ()  # under way, or waiting behind one that is; hardly ever more than one
    _head_bytes = 0  # of the head that has not ended yet
    _piece_bytes = 0  # of the data being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Refuses a connection too many; gives a new one as long as an idle one to say something."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections_max:
            self.metrics.bound_hit("connections_max")
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and tells the calls that were under way."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        for exchange in self._exchanges:
            if not exchange.response_complete:
                exchange.disconnected = True
                exchange.message_event.set()
                if exchange.on_gone is not None:
                    exchange.on_gone()
        self._exchanges = ()

    def data_received(self, data: bytes) -> None:
        """Watches the clock and the head's size while a request is incomplete."""
        self._piece_bytes = len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:  # counted, not logged: whoever sends it could fill the log
            self.metrics.bound_hit("not_http")
            self.send_400_response("this is not a valid HTTP request")
            return
        except httptools.HttpParserUpgrade:  # an offer that a server may ignore; the request is served as it is
            pass
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.settings.header_bytes_max:
                self._refuse_head()
        if self._arriving:
            if self._arrival is None and not self.transport.is_closing():
                self._arrival = self.loop.call_later(self.settings.body_timeout_s, self._too_slow)
        elif self._arrival is not None:
            self._stop_timer()

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        self._arriving = self._in_head = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self.scope = {"type": "http", "http_version": "1.1", "headers": self.headers}  # type: ignore[typeddict-item]

    def on_headers_complete(self) -> None:
        """The head is whole; one that came in few large pieces may still be too large."""
        limit = self.settings.header_bytes_max
        if self._head_bytes + self._piece_bytes > limit:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > limit:
                self._refuse_head()
                raise ValueError("head too large")  # stops the parser; the answer is on its way
        self._in_head = False
        self._head_bytes = 0
        version = self.parser.get_http_version()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        path, _, query = self.url.partition(b"?")
        text = path.decode("latin-1")
        self.scope["path"] = unquote(text) if "%" in text else text
        self.scope["raw_path"] = path
        self.scope["query_string"] = query
        exchange = Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.scope["exchange"] = exchange  # type: ignore[typeddict-unknown-key]
        before, self.cycle = self.cycle, exchange
        self._exchanges = (*(item for item in self._exchanges if not item.response_complete), exchange)
        if before is None or before.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.pipeline.appendleft((exchange, self.app))
            if len(self.pipeline) > _PIPELINED_MAX:
                self.flow.pause_reading()  # from here on we would not notice that the client leaves

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._arriving = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets a clear answer, in the shape that our clients know."""
        self._arriving = self._in_head = False
        if self.transport.is_closing():
            return
        body = openai.error_body(message=msg, kind="invalid_request_error", code="malformed")
        self._answer_and_close(b"400 Bad Request", body)

    def _refuse_head(self) -> None:
        self.metrics.bound_hit("header_bytes_max")
        self._arriving = self._in_head = False
        message = f"the request's head is larger than {self.settings.header_bytes_max} bytes"
        body = openai.error_body(message=message, kind="invalid_request_error", code="too_large")
        self._answer_and_close(b"431 Request Header Fields Too Large", body)

    def _too_slow(self) -> None:
        self._arrival = None
        if self.transport.is_closing() or not self._arriving:
            return
        if self.flow.read_paused:  # it is we who do not read on
            self._arrival = self.loop.call_later(self.settings.body_timeout_s, self._too_slow)
            return
        self.metrics.bound_hit("body_timeout_s")
        if self._in_head:
            message = "the request did not arrive in time"
            body = openai.error_body(message=message, kind="invalid_request_error", code="malformed")
            self._answer_and_close(b"408 Request Timeout", body)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _answer_and_close(self, status: bytes, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )
        self.transport.close()


def make_server(app: ProxyApp, settings: ProxySettings, metrics: ProxyMetrics) -> uvicorn.Server:
    """A uvicorn server for one worker; `serve(sockets=[...])` runs it until SIGTERM or SIGINT."""
    protocol = type("WorkerProtocol", (BoundedProtocol,), {"settings": settings, "metrics": metrics})
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(settings.drain_s),
        backlog=_BACKLOG,
    )
    return uvicorn.Server(config)


def listen(settings: ProxySettings) -> socket.socket:
    """The worker's socket; siblings listen on the same port and the kernel spreads connections over them."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.workers > 1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)  # noqa: FBT003 - its only parameter
    return sock

"""The HTTP server of one worker: uvicorn, with the bounds that it lacks against slow and oversized requests."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from controlplane.contract.proxy_settings import ProxySettings
from proxy.app import ProxyApp
from proxy.dialects import openai
from proxy.metrics import ProxyMetrics

_BACKLOG = 4096


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on heads, on the time a request may take to arrive, and on connections.

    A timer runs only while a request is incomplete at the end of a read, so the usual request, which comes in one piece, costs none.
    """

    settings: ProxySettings
    metrics: ProxyMetrics

    _arrival: asyncio.TimerHandle | None = None
    _arriving = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Refuses a connection too many; gives a new one as long as an idle one to say something."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections_max:
            self.metrics.bound_hit("connections_max")
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Watches the clock while a request is incomplete."""
        super().data_received(data)
        if self._arriving:
            if self._arrival is None and not self.transport.is_closing():
                self._arrival = self.loop.call_later(self.settings.body_timeout_s, self._too_slow)
        elif self._arrival is not None:
            self._stop_timer()

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        self._arriving = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Part of the request line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._arriving = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets a clear answer, in the shape that our clients know."""
        body = openai.error_body(message=msg, kind="invalid_request_error", code="malformed")
        self._answer_and_close(b"400 Bad Request", body)

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self.settings.header_bytes_max:
            self.metrics.bound_hit("header_bytes_max")
            raise ValueError("head too large")  # the parser hands it on as an error of its own: see send_400_response

    def _too_slow(self) -> None:
        self._arrival = None
        if self.transport.is_closing() or not self._arriving:
            return
        if self.flow.read_paused:  # it is we who do not read on
            self._arrival = self.loop.call_later(self.settings.body_timeout_s, self._too_slow)
            return
        self.metrics.bound_hit("body_timeout_s")
        if self.cycle is None or self.cycle.response_complete:
            body = openai.error_body(
                message="the request did not arrive in time", kind="invalid_request_error", code="malformed"
            )
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

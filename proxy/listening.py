"""The life of a worker's server, and how the workers of one machine share their port, so that none of them ever has to refuse a connection.

The supervisor holds one listening socket for each worker, and every worker inherits them all. A worker accepts on its own; while a sibling is
restarted, or lies dead, the others accept on that one's too. What the kernel has queued on a socket is never lost, because the supervisor's
copy keeps it open.

What the supervisor writes to a worker's standard input, a line each: `accept N` and `release N` for the socket of worker N, `drain` to stop
without a gap. The end of the input means that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import cast

import structlog
import uvicorn

from controlplane.contract.proxy_settings import ProxySettings
from proxy.app import ProxyApp
from proxy.metrics import ProxyMetrics
from proxy.outbox import Outbox
from proxy.server import WorkerProtocol

BACKLOG = 4096
_LINE_BYTES_MAX = 4096

log = structlog.get_logger("proxy.listening")


class _Server(uvicorn.Server):
    """uvicorn's server, whose connections know from the first moment on that it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening and waits for the calls; a connection that comes meanwhile ends behind its first answer.

        Without that, one that is accepted in this very moment would be used on and on, and its call be cut off at the end of the drain.
        """
        cast("type[WorkerProtocol]", self.config.http_protocol_class).stopping = True
        await super().shutdown(sockets)


def make_server(app: ProxyApp, settings: ProxySettings, metrics: ProxyMetrics) -> uvicorn.Server:
    """A uvicorn server for one worker; `serve(sockets=[...])` runs it until SIGTERM or SIGINT."""
    protocol = type(
        "Protocol",
        (WorkerProtocol,),
        {"app": app, "settings": settings, "metrics": metrics, "outbox": Outbox(), "__slots__": ()},
    )
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
        backlog=BACKLOG,
    )
    server = _Server(config)
    app.serving = server.server_state.tasks
    return server


def listen(settings: ProxySettings) -> socket.socket:
    """A worker's socket; siblings listen on the same port and the kernel spreads connections over them."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.workers > 1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((settings.host, settings.port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)  # noqa: FBT003 - its only parameter
    return sock


async def accept_also(server: uvicorn.Server, sock: socket.socket) -> asyncio.Server:
    """Lets a server that runs accept the connections of one more socket, until what is returned is closed."""

    def protocol() -> asyncio.Protocol:
        made: asyncio.Protocol = server.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn makes it
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made

    return await asyncio.get_running_loop().create_server(protocol, sock=sock, backlog=BACKLOG)


def drain(server: uvicorn.Server, *, linger_s: float) -> None:
    """Stops a server whose port others still serve: calls end, and idle connections may ask once more before they are closed."""
    protocol = cast("type[WorkerProtocol]", server.config.http_protocol_class)
    protocol.linger_s = linger_s  # a class of this server alone
    server.should_exit = True


class Listening:
    """A worker's end of it."""

    def __init__(self, server: uvicorn.Server, sockets: Sequence[int], *, linger_s: float) -> None:
        """sockets: file descriptors of all listening sockets, by worker. linger_s: what an idle connection has after `drain`."""
        self._server = server
        self._sockets = sockets
        self._linger_s = linger_s
        self._line = b""
        self._accepting: dict[int, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listens to the supervisor."""
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._hear)

    def close(self) -> None:
        """Accepts nothing more for siblings; safe to call twice."""
        asyncio.get_running_loop().remove_reader(0)
        for number in list(self._accepting):
            self._release(number)

    def _hear(self) -> None:
        try:
            data = os.read(0, _LINE_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:  # the supervisor is gone
            self.close()
            self._server.should_exit = True
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._obey(*line.decode("ascii", "replace").split())

    def _obey(self, command: str = "", number: str = "0") -> None:
        if command == "accept":
            task = asyncio.get_running_loop().create_task(self._accept(int(number)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif command == "release":
            self._release(int(number))
        elif command == "drain":
            self.close()
            drain(self._server, linger_s=self._linger_s)

    async def _accept(self, number: int) -> None:
        if number in self._accepting or self._ends():
            return
        sock = socket.socket(fileno=os.dup(self._sockets[number]))
        try:
            self._accepting[number] = await accept_also(self._server, sock)
        except OSError as error:
            sock.close()
            log.warning("a sibling's socket cannot be served", sibling=number, reason=str(error))
        if self._ends():  # since then
            self._release(number)

    def _ends(self) -> bool:
        return self._server.should_exit

    def _release(self, number: int) -> None:
        accepting = self._accepting.pop(number, None)
        if accepting is not None:
            accepting.close()

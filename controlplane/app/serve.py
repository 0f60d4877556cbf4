"""The control plane as a process: its event loop, its HTTP server and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop

from controlplane import logs
from controlplane.app.plane import ControlPlane
from controlplane.catalog.load import Loaded
from controlplane.clock import SystemClock
from controlplane.errors import Conflict
from controlplane.secrets import ServerSecrets


def serve(loaded: Loaded, secrets: ServerSecrets) -> None:
    """Serves until SIGINT or SIGTERM. Raises HephaestusError when it cannot start."""
    logs.configure(loaded.settings.log)
    uvloop.run(_serve(loaded, secrets))


class StoppingServer(uvicorn.Server):
    """A server that says when it begins to stop, so that nobody's long poll holds it up, and leaves signals to `_serve`."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the long polls, then waits for the rest as uvicorn does."""
        self._stopping.set()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says where."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            structlog.get_logger("controlplane").info("serving", host=host, port=port)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: uvicorn would raise a signal again once it has served, which ends the process before its stores are closed."""
        yield


async def _serve(loaded: Loaded, secrets: ServerSecrets) -> None:
    listener = _listen(loaded.settings.host, loaded.settings.port)
    with listener:
        plane = await ControlPlane.open(loaded, secrets, clock=SystemClock())
        try:
            await _serve_until_told(plane, listener)
        finally:
            await plane.close()


async def _serve_until_told(plane: ControlPlane, listener: socket.socket) -> None:
    settings = plane.settings
    server = StoppingServer(
        uvicorn.Config(
            plane.app,
            host=settings.host,
            port=settings.port,
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.api.shutdown_s)),
        ),
        plane.stopping,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    stop = asyncio.Event()
    turning = asyncio.create_task(plane.run(stop))
    try:
        await server.serve([listener])
    finally:
        stop.set()
        await turning


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, bound before anything else is opened. Raises Conflict when the address cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Conflict(
            f"the control plane cannot listen on {host} port {port}: {error.strerror or error}; "
            "stop who has it, or change `server.host` and `server.port`"
        ) from error
    return listener

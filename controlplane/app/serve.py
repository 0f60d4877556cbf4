"""The control plane as a process: its event loop, its HTTP server and its end."""

from __future__ import annotations

import asyncio
import socket

import structlog
import uvicorn
import uvloop

from controlplane import logs
from controlplane.app.plane import ControlPlane
from controlplane.catalog.load import Loaded
from controlplane.clock import SystemClock
from controlplane.secrets import ServerSecrets


def serve(loaded: Loaded, secrets: ServerSecrets) -> None:
    """Serves until SIGINT or SIGTERM. Raises HephaestusError when it cannot start."""
    logs.configure(loaded.settings.log)
    uvloop.run(_serve(loaded, secrets))


class StoppingServer(uvicorn.Server):
    """A server that says when it begins to stop, so that nobody's long poll holds it up."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the long polls, then waits for the rest as uvicorn does."""
        self._stopping.set()
        await super().shutdown(sockets)


async def _serve(loaded: Loaded, secrets: ServerSecrets) -> None:
    plane = await ControlPlane.open(loaded, secrets, clock=SystemClock())
    stop = asyncio.Event()
    turning = asyncio.create_task(plane.run(stop))
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
    structlog.get_logger("controlplane").info("serving", address=settings.control_plane_url)
    try:
        await server.serve()
    finally:
        stop.set()
        await turning
        await plane.close()

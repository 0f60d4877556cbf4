"""The control plane as a process: its event loop, its HTTP server and its end."""

from __future__ import annotations

import asyncio

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


async def _serve(loaded: Loaded, secrets: ServerSecrets) -> None:
    plane = await ControlPlane.open(loaded, secrets, clock=SystemClock())
    stop = asyncio.Event()
    turning = asyncio.create_task(plane.run(stop))
    settings = plane.settings
    server = uvicorn.Server(
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
        )
    )
    structlog.get_logger("controlplane").info("serving", address=settings.control_plane_url)
    try:
        await server.serve()
    finally:
        stop.set()
        await turning
        await plane.close()

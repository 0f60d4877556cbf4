"""`python -m proxy --settings FILE`: one worker in this process, or several under its watch."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import structlog
import uvloop

from controlplane.contract.proxy_settings import ProxySettings
from proxy.server import listen, make_server
from proxy.settings import ProxySecrets, SettingsError, load_secrets, load_settings
from proxy.spool import SpoolLocked
from proxy.succession import share_out
from proxy.supervisor import Supervisor
from proxy.worker import Worker

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GC_THRESHOLD = (
    20_000,
    50,
    100,
)  # calls make little garbage in cycles; full collections are what hurts the slowest percent

log = structlog.get_logger("proxy")


def main() -> int:
    """Runs until SIGTERM or SIGINT; exit status 0, 1 when it could not serve, 2 for bad usage or settings."""
    parser = argparse.ArgumentParser(prog="python -m proxy", description="The data plane of Hephaestus.")
    parser.add_argument("--settings", type=Path, required=True, help="JSON file with the proxy's settings")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        # One write for each line, also when PYTHONUNBUFFERED is set: the workers share what they write to.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    try:
        settings = load_settings(arguments.settings)
        secrets = load_secrets(os.environ)
    except SettingsError as error:
        log.critical("the proxy cannot start", reason=str(error))
        return 2
    if settings.workers > 1 and not arguments.worker:
        return Supervisor(arguments.settings, settings).run()
    try:
        return _run_worker(settings, secrets, name=arguments.worker or "0", supervised=bool(arguments.worker))
    except (OSError, SpoolLocked) as error:
        log.critical("the worker cannot serve", reason=str(error))
        return 1


def _run_worker(settings: ProxySettings, secrets: ProxySecrets, *, name: str, supervised: bool) -> int:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # a supervisor blocks them, and children inherit that
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal once more when it has stopped
    if not supervised:  # a supervisor does it before it starts the first worker
        share_out(settings)
    sock = listen(settings)
    worker = Worker(settings, secrets, name=name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(worker, settings, sock, supervised=supervised))
    return 0


async def _serve(worker: Worker, settings: ProxySettings, sock: socket.socket, *, supervised: bool) -> None:
    server = make_server(worker.app, settings, worker.metrics)
    if supervised:
        loop = asyncio.get_running_loop()

        def orphaned() -> None:
            """The supervisor is gone: its end of our standard input is closed."""
            if not os.read(0, 1):
                loop.remove_reader(0)
                server.should_exit = True

        loop.add_reader(0, orphaned)
    log.info("proxy listens", address=f"{settings.host}:{sock.getsockname()[1]}", proxy=worker.spool.proxy_id)
    await server.serve(sockets=[sock])


if __name__ == "__main__":
    sys.exit(main())

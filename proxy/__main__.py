"""`python -m proxy --settings FILE`: one worker in this process, or several under its watch."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
import uvloop
from structlog.typing import Processor

from controlplane.contract.lifeline import hold_lifeline
from controlplane.contract.proxy_settings import ProxySettings
from proxy.listening import Listening, listen, make_server
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
    parser.add_argument("--sockets", default="", help=argparse.SUPPRESS)  # listening, by worker
    parser.add_argument("--started", type=int, default=-1, help=argparse.SUPPRESS)  # a pipe, to be told that it serves
    arguments = parser.parse_args()
    _open_log()
    hold_lifeline(os.environ)
    try:
        settings = load_settings(arguments.settings)
        secrets = load_secrets(os.environ)
    except SettingsError as error:
        log.critical("the proxy cannot start", reason=str(error))
        return 2
    if settings.workers > 1 and not arguments.worker:
        return Supervisor(arguments.settings, settings).run()
    family = None
    if arguments.worker:
        family = Family(tuple(int(number) for number in arguments.sockets.split(",")), arguments.started)
    try:
        return _run_worker(settings, secrets, name=arguments.worker or "0", family=family)
    except (OSError, SpoolLocked) as error:
        log.critical("the worker cannot serve", reason=str(error), host=settings.host, port=settings.port)
        return 1


def _open_log() -> None:
    """Every line is JSON and one write, for workers share what they write to; a log that cannot be written stops nothing."""
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=shared))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("proxy").setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class Family(NamedTuple):
    """What a supervisor hands to its workers: the listening sockets of all, and where to say that one serves."""

    sockets: tuple[int, ...]
    started: int


def _run_worker(settings: ProxySettings, secrets: ProxySecrets, *, name: str, family: Family | None) -> int:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # a supervisor blocks them, and children inherit that
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal once more when it has stopped
    _take_all_files()
    signal.signal(signal.SIGHUP, partial(_cannot_be_replaced, supervised=family is not None))
    if family is None:  # a supervisor does it before it starts the first worker
        share_out(settings)
        sock = listen(settings)
    else:
        sock = socket.socket(fileno=os.dup(family.sockets[int(name)]))
    worker = Worker(settings, secrets, name=name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        served = runner.run(_serve(worker, settings, sock, family))
    return 0 if served else 1


def _take_all_files() -> None:
    """Raises the number of open files to what the system allows: each stream is two sockets, and the usual soft limit is a thousand."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the system does not mean what it says, the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


async def _serve(worker: Worker, settings: ProxySettings, sock: socket.socket, family: Family | None) -> bool:
    """Whether it ever served; False when its start failed, which the log says why."""
    server = make_server(worker.app, settings, worker.metrics)
    log.info("proxy listens", address=f"{settings.host}:{sock.getsockname()[1]}", proxy=worker.spool.proxy_id)
    listening = None
    if family is not None:
        listening = Listening(server, family.sockets, linger_s=settings.linger_s)
        listening.open()
        worker.app.on_started = partial(_say_started, family.started)
    try:
        await server.serve(sockets=[sock])
    except SystemExit:  # how uvicorn ends where a start failed, with a status of its own
        return False
    finally:
        if listening is not None:
            listening.close()
    return True


def _cannot_be_replaced(*_: object, supervised: bool) -> None:
    """SIGHUP is for a supervisor; a worker alone has nobody to serve in its place."""
    if not supervised:
        log.warning("a single worker cannot be replaced without a gap; run at least two, or restart it")


def _say_started(pipe: int) -> None:
    """Tells the supervisor that siblings need not serve this worker's connections any longer; one that is gone ends this worker soon."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, b"+")
    os.close(pipe)


if __name__ == "__main__":
    sys.exit(main())

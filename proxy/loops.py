"""The loops that a worker lives by: one that fails unforeseen is told of, counted, and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

PAUSE_S = 1.0  # before a loop that has failed begins again

log = structlog.get_logger("proxy.loops")


async def keep_running(
    work: Callable[[], Awaitable[None]], *, name: str, failed: Callable[[str], None], pause_s: float = PAUSE_S
) -> None:
    """Runs a loop until it returns or is cancelled; after a bug of ours once more, because nothing else would do its work.

    failed: told the name each time.
    """
    while True:
        try:
            await work()
        except Exception:  # whatever it is, shipping, booking and limits must go on
            failed(name)
            log.exception("a loop of this worker failed and begins again", loop=name)
        else:
            return
        await asyncio.sleep(pause_s)

"""Background loops: one turn after the other, failures counted and survived, until told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from controlplane.clock import US_PER_S, Clock
from controlplane.metrics import LoopMetrics

_log = structlog.get_logger("loops")
FAILURE_WAIT_S = 1.0


async def keep_turning(
    name: str,
    turn: Callable[[], Awaitable[object]],
    *,
    every_s: float,
    clock: Clock,
    metrics: LoopMetrics,
) -> None:
    """Takes a turn each `every_s` seconds until cancelled; a turn that fails is logged and the next one is taken all the same."""
    while True:
        try:
            await turn()
            metrics.turns.labels(name, "ok").inc()
            metrics.last_ok.labels(name).set(clock.now_us() / US_PER_S)
        except Exception:  # noqa: BLE001 - the one place that catches what nobody expected in a loop
            metrics.turns.labels(name, "failed").inc()
            _log.exception("turn failed", loop=name)
            await clock.sleep(FAILURE_WAIT_S)
        await clock.sleep(every_s)


async def stay_up(name: str, run: Callable[[], Awaitable[None]], *, clock: Clock, metrics: LoopMetrics) -> None:
    """Runs a loop that has its own rhythm, and runs it again when it fails, until cancelled or it ends by itself."""
    while True:
        try:
            await run()
            return
        except Exception:  # noqa: BLE001 - as above
            metrics.turns.labels(name, "failed").inc()
            _log.exception("loop failed", loop=name)
            await clock.sleep(FAILURE_WAIT_S)


async def cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Stale answers are asked anew behind the calls that got them: one background call for each key, and a bounded number of them.

A background call is a call like any other: it has a record, and its cost is on the ledger of the tenant whose call got the stale answer.
Where workers share a Redis, one of them asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from proxy.call import Call

PAUSED_MAX = 1_024


class Refreshes:
    """The background calls of one worker."""

    def __init__(
        self,
        ask: Callable[[Call], Awaitable[bool]],
        *,
        running_max: int,
        pause_s: float,
        elsewhere: Callable[[Call], Awaitable[bool]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """ask: makes the background call for a call that got a stale answer, and says whether it brought a fresh one.

        pause_s: how long a key is left alone whose background call failed. elsewhere: whether another worker has asked for it already, or is about to.
        """
        self._ask = ask
        self._running_max = running_max
        self._pause_s = pause_s
        self._elsewhere = elsewhere
        self._monotonic = monotonic
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._paused: dict[bytes, float] = {}  # until when; oldest first
        self.started_total = 0
        self.failed_total = 0
        self.skipped_total = 0  # because of running_max

    @property
    def running(self) -> int:
        """Background calls now."""
        return len(self._running)

    def want(self, call: Call) -> None:
        """Has the answer to this call asked anew, unless that is under way, has just failed, or too many are. Never waits."""
        key = call.cache_key
        if key in self._running:
            return
        until = self._paused.get(key)
        if until is not None:
            if self._monotonic() < until:
                return
            del self._paused[key]
        if len(self._running) >= self._running_max:
            self.skipped_total += 1
            return
        task = asyncio.get_running_loop().create_task(self._refresh(key, call), name="cache-refresh")
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key))  # also if it ends before it has begun

    async def settled(self) -> None:
        """Waits until no background call is under way."""
        while self._running:
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def aclose(self) -> None:
        """Cancels what is under way; each call still leaves its record. Safe to call twice."""
        for task in self._running.values():
            task.cancel()
        await self.settled()

    async def _refresh(self, key: bytes, call: Call) -> None:
        if self._elsewhere is not None and await self._elsewhere(call):
            self._pause(key)
            return
        self.started_total += 1
        if not await self._ask(call):
            self.failed_total += 1
            self._pause(key)

    def _pause(self, key: bytes) -> None:
        if len(self._paused) >= PAUSED_MAX:
            del self._paused[next(iter(self._paused))]
        self._paused[key] = self._monotonic() + self._pause_s

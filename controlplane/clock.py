"""Time as a thing that is passed in, so that what waits can be tested without waiting."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

US_PER_S = 1_000_000
_TURNS = 20  # turns of the event loop that woken tasks get to reach their next wait


class Clock(Protocol):
    """Wall time for what is written down, monotonic time for what is measured, and a way to wait."""

    def now_us(self) -> int:
        """Unix time in microseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits; at once for zero or less, though other tasks get a turn."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Unix time in microseconds."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that stands still until a test moves it; who sleeps is woken when its time has come, in order.

    start_us: the wall time it begins with.
    """

    def __init__(self, start_us: int = 1_800_000_000 * US_PER_S) -> None:
        self._start_us = start_us
        self._elapsed_us = 0
        self._order = itertools.count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def sleepers(self) -> int:
        """How many tasks wait for this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def now_us(self) -> int:
        """Unix time in microseconds."""
        return self._start_us + self._elapsed_us

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed_us / US_PER_S

    async def sleep(self, seconds: float) -> None:
        """Waits until the clock was moved far enough."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_us + round(seconds * US_PER_S), next(self._order), future))
        await future

    def move(self, seconds: float) -> None:
        """Moves time at once, for code that does not wait; sleepers that are due are woken at the new time."""
        self._elapsed_us += round(seconds * US_PER_S)
        while self._sleepers and self._sleepers[0][0] <= self._elapsed_us:
            self._wake_first()

    async def advance(self, seconds: float) -> None:
        """Moves time from one sleeper to the next, letting each do its work before time goes on."""
        await self._let_tasks_run()
        target_us = self._elapsed_us + round(seconds * US_PER_S)
        while self._sleepers and self._sleepers[0][0] <= target_us:
            self._elapsed_us = max(self._elapsed_us, self._sleepers[0][0])
            self._wake_first()
            await self._let_tasks_run()
        self._elapsed_us = max(self._elapsed_us, target_us)  # who was woken may have moved time further
        await self._let_tasks_run()

    def _wake_first(self) -> None:
        _, _, future = heapq.heappop(self._sleepers)
        if not future.done():
            future.set_result(None)

    @staticmethod
    async def _let_tasks_run() -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

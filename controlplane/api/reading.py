"""One reading of the stores for all open pages: many browsers that look every two seconds cost as much as one."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.api.counters import ApiCounters
from controlplane.api.parts import Health
from controlplane.api.views import Overview
from controlplane.clock import Clock
from controlplane.errors import HephaestusError


class SharedReading:
    """The last overview, read anew when it is older than `fresh_s`, by one reader at a time.

    When it cannot be read, who asks gets None and the page says so; a broken store never breaks the page.
    """

    def __init__(self, *, health: Health, clock: Clock, fresh_s: float, counters: ApiCounters) -> None:
        self._health = health
        self._clock = clock
        self._fresh_s = fresh_s
        self._counters = counters
        self._lock = asyncio.Lock()
        self._last: Overview | None = None
        self._read_at = 0.0

    async def overview(self) -> Overview | None:
        """An overview not older than `fresh_s`, or None when it could not be read."""
        async with self._lock:
            if self._read_at and self._clock.monotonic() - self._read_at < self._fresh_s:
                return self._last
            try:
                self._last = await self._health.overview()
            except HephaestusError as error:
                structlog.get_logger(__name__).warning(
                    "console could not read its data", code=error.code, reason=error.message
                )
                self._counters.console_troubles.inc()
                self._last = None
            self._read_at = self._clock.monotonic() or 1e-9
            return self._last

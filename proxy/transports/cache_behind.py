"""Entries that wait to be written to a shared tier: bounded in bytes, written in batches behind the calls that brought them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from controlplane.contract.proxy_settings import ProxySettings
from proxy.transports.cache_entry import CacheEntry

BATCH_ENTRIES = 16  # written in one go

Batch = list[tuple[bytes, CacheEntry]]


class WriteBehind(ABC):
    """The half of a shared tier that takes entries; what does not fit, or cannot be written, is dropped and counted."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._pending: dict[bytes, CacheEntry] = {}
        self._pending_bytes = 0
        self.written_total = 0
        self.too_large_total = 0
        self.dropped_total = 0

    @property
    @abstractmethod
    def degraded(self) -> bool:
        """Whether the tier is out: look-ups and writes are skipped."""

    @abstractmethod
    async def _write(self, batch: Batch) -> int:
        """Writes some entries at once; returns how many. Never raises."""

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Has an entry written some time soon, or not at all; never waits. It takes the place of one that waits under the same key."""
        before = self._pending.get(key)
        before_bytes = 0 if before is None else before.size_bytes
        if entry.size_bytes > self._settings.redis_entry_bytes_max:
            self.too_large_total += 1
        elif (
            self.degraded
            or self._pending_bytes - before_bytes + entry.size_bytes > self._settings.redis_pending_bytes_max
        ):
            self.dropped_total += 1
        else:
            self._pending[key] = entry
            self._pending_bytes += entry.size_bytes - before_bytes
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-writes")

    async def flush(self) -> None:
        """Waits until all that was put is written or dropped."""
        while self._task is not None:
            await asyncio.shield(self._task)

    def _give_up(self) -> None:
        """Drops what is being written."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._pending:
                batch = list(self._pending.items())[:BATCH_ENTRIES]
                written = await self._write(batch)
                self.written_total += written
                self.dropped_total += len(batch) - written
                for key, entry in batch:
                    if self._pending[key] is entry:  # else a newer one has come
                        del self._pending[key]
                        self._pending_bytes -= entry.size_bytes
        finally:
            self._task = None

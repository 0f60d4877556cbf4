"""Where stored answers lie: memory, then a disk, then a Redis that workers and hosts share; each may be missing but the first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_redis import SharedTier

FLUSH_TIMEOUT_S = 5.0


class Store:
    """Entries by key in up to three tiers. What is found below comes up; what memory has no room for goes down."""

    def __init__(
        self, memory: MemoryTier, disk: DiskTier | None, redis: SharedTier | None, *, now_us: Callable[[], int]
    ) -> None:
        """The tiers belong to the store from now on. now_us: the wall clock."""
        self.memory = memory
        self.disk = disk
        self.redis = redis
        self._now_us = now_us
        self.hits_memory_total = 0
        self.hits_disk_total = 0
        self.hits_redis_total = 0

    async def open(self) -> None:
        """Opens the disk tier and begins to connect to Redis; calls may come before that."""
        if self.redis is not None:
            self.redis.open()
        if self.disk is not None:
            await self.disk.open()

    def may_hold(self, key: bytes) -> bool:
        """Whether it is worth the wait to ask the tiers below memory."""
        return self.redis is not None or (self.disk is not None and self.disk.holds(key, now_us=self._now_us()))

    async def from_disk(self, key: bytes) -> CacheEntry | None:
        """What the disk has under a key; waits only if there is something."""
        disk = self.disk
        if disk is None or not disk.holds(key, now_us=self._now_us()):
            return None
        return self._newest(key, await disk.get(key))

    async def from_redis(self, key: bytes) -> CacheEntry | None:
        """What Redis has under a key."""
        return None if self.redis is None else self._newest(key, await self.redis.get(key))

    def _newest(self, key: bytes, found: CacheEntry | None) -> CacheEntry | None:
        """What was found below, or what memory has been given during the look, if that is newer."""
        known = None if found is None else self.memory.get(key)
        return found if known is None or found is None or found.created_us >= known.created_us else known

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Keeps a fresh answer."""
        evicted = self.memory.put(key, entry)
        if evicted:
            self._spill(evicted)
        if self.redis is not None:
            self.redis.put(key, entry)

    def remember(self, key: bytes, entry: CacheEntry) -> None:
        """Keeps an entry in memory; what has to go for it goes to disk."""
        self._spill(self.memory.put(key, entry))

    def _spill(self, evicted: list[tuple[bytes, CacheEntry]]) -> None:
        if self.disk is None:
            return
        for key, entry in evicted:
            if entry.expires_us > self._now_us() and not entry.negative:
                self.disk.put(key, entry)

    async def aclose(self) -> None:
        """Hands memory to the disk for the next start, within bounds, and closes; safe to call twice."""
        disk, self.disk = self.disk, None
        if disk is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_TIMEOUT_S):
                    await self._hand_over(disk)
            await disk.aclose()
        redis, self.redis = self.redis, None
        if redis is not None:
            await redis.aclose()

    async def _hand_over(self, disk: DiskTier) -> None:
        """Puts what memory holds on disk, the most useful first."""
        for key, entry in self.memory.newest_first():
            if entry.expires_us > self._now_us() and not entry.negative:
                if not disk.has_room(entry):
                    await disk.flush()
                disk.put(key, entry)

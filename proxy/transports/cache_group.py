"""The cache's shared tier where Redis is a group: one behind sentinels, or a cluster. It goes through the one door to shared state.

The door finds the master, or the node that has a key, and has the breaker; what an entry is called and how it is sealed is as in `cache_redis`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import parse_redis_address
from proxy.settings import ProxySecrets
from proxy.shared import SharedState, SharedUnavailable
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_redis import RedisTier, SharedTier
from proxy.transports.cache_seal import EntrySeals

BATCH_ENTRIES = 16  # written at once


def shared_tier(shared: SharedState | None, settings: ProxySettings, secrets: ProxySecrets) -> SharedTier | None:
    """The cache's third tier: connections of its own to one Redis, the shared door where there is a group; None without Redis."""
    if shared is None or not settings.redis:
        return None
    if parse_redis_address(settings.redis).nodes:
        return GroupTier(shared, settings, secrets)
    return RedisTier(settings, secrets)


class GroupTier:
    """Entries by key in a group of Redis servers. The door belongs to somebody else and is neither opened nor closed here."""

    def __init__(
        self,
        shared: SharedState,
        settings: ProxySettings,
        secrets: ProxySecrets,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._seals = EntrySeals(secrets.pepper_bytes)
        self._now_us = now_us
        self._pending: dict[bytes, CacheEntry] = {}
        self._pending_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self.misses_total = 0
        self.skipped_total = 0
        self.busy_total = 0
        self.errors_total = 0
        self.damaged_total = 0
        self.written_total = 0
        self.too_large_total = 0
        self.dropped_total = 0

    @property
    def degraded(self) -> bool:
        """Whether the door is shut."""
        return self._shared.degraded

    def open(self) -> None:
        """The door is opened by its owner."""

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, or None: not there, not ours, or Redis is out or too slow. Takes at most `redis_timeout_s`."""
        if self._shared.degraded:
            self.skipped_total += 1
            return None
        name = self._seals.name_of(key).encode()
        try:
            data = await self._shared.ask("GETRANGE", name, 0, self._settings.redis_entry_bytes_max, key=name)
        except SharedUnavailable:
            self.errors_total += 1
            return None
        if not isinstance(data, bytes) or not data:
            self.misses_total += 1
            return None
        entry = self._seals.opened(key, data)
        self.damaged_total += entry is None
        return entry

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Has an entry written some time soon, or not at all; never waits."""
        if entry.size_bytes > self._settings.redis_entry_bytes_max:
            self.too_large_total += 1
        elif self.degraded or self._pending_bytes + entry.size_bytes > self._settings.redis_pending_bytes_max:
            self.dropped_total += 1
        elif key not in self._pending:
            self._pending[key] = entry
            self._pending_bytes += entry.size_bytes
            if self._writing is None:
                self._writing = asyncio.get_running_loop().create_task(self._write_behind(), name="redis-writes")

    async def flush(self) -> None:
        """Waits until all that was put is written or dropped."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def aclose(self) -> None:
        """Writes what waits, within the time of one connection; safe to call twice."""
        try:
            async with asyncio.timeout(self._settings.redis_connect_timeout_s):
                await self.flush()
        except TimeoutError:
            if self._writing is not None:
                self._writing.cancel()

    async def _write_behind(self) -> None:
        try:
            while self._pending:
                batch = list(self._pending.items())[:BATCH_ENTRIES]
                written = sum(await asyncio.gather(*(self._write(key, entry) for key, entry in batch)))
                self.written_total += written
                self.dropped_total += len(batch) - written
                for key, entry in batch:
                    del self._pending[key]
                    self._pending_bytes -= entry.size_bytes
        finally:
            self._writing = None

    async def _write(self, key: bytes, entry: CacheEntry) -> bool:
        ttl_ms = (entry.expires_us - self._now_us()) // 1000
        if ttl_ms <= 0:
            return False
        name = self._seals.name_of(key).encode()
        try:
            await self._shared.ask("SET", name, self._seals.sealed(key, entry), "PX", ttl_ms, key=name)
        except SharedUnavailable:
            self.errors_total += 1
            return False
        return True

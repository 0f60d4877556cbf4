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
from proxy.transports.cache_behind import Batch, WriteBehind
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_redis import RedisTier, SharedTier
from proxy.transports.cache_seal import EntrySeals


def shared_tier(shared: SharedState | None, settings: ProxySettings, secrets: ProxySecrets) -> SharedTier | None:
    """The cache's third tier: connections of its own to one Redis, the shared door where there is a group; None without Redis."""
    if shared is None or not settings.redis:
        return None
    if parse_redis_address(settings.redis).nodes:
        return GroupTier(shared, settings, secrets)
    return RedisTier(settings, secrets)


class GroupTier(WriteBehind):
    """Entries by key in a group of Redis servers. The door belongs to somebody else and is neither opened nor closed here."""

    def __init__(
        self,
        shared: SharedState,
        settings: ProxySettings,
        secrets: ProxySecrets,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        super().__init__(settings)
        self._shared = shared
        self._seals = EntrySeals(secrets.pepper_bytes)
        self._now_us = now_us
        self.misses_total = 0
        self.skipped_total = 0
        self.busy_total = 0
        self.errors_total = 0
        self.damaged_total = 0

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

    async def aclose(self) -> None:
        """Writes what waits, within the time of one connection; safe to call twice."""
        try:
            async with asyncio.timeout(self._settings.redis_connect_timeout_s):
                await self.flush()
        except TimeoutError:
            self._give_up()

    async def _write(self, batch: Batch) -> int:
        return sum(await asyncio.gather(*(self._write_one(key, entry) for key, entry in batch)))

    async def _write_one(self, key: bytes, entry: CacheEntry) -> bool:
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

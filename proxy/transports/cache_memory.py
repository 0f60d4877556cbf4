"""The first tier of the cache: answers in memory, the least recently used dropped first.

Tenants share it. Who uses more than an equal part when room is needed makes it out of its own entries, so that one tenant
cannot drop what all others have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from proxy.transports.cache_entry import CacheEntry


class _Share:
    """What one tenant has here."""

    __slots__ = ("bytes_used", "keys")

    def __init__(self) -> None:
        self.bytes_used = 0
        self.keys: OrderedDict[bytes, None] = OrderedDict()  # least recently used first


class MemoryTier:
    """Entries by key, bounded in bytes."""

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, CacheEntry] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self.bytes_used = 0
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CacheEntry | None:
        """The entry, now the most recently used; None if it is not here."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self._shares[entry.tenant].keys.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: CacheEntry) -> list[tuple[bytes, CacheEntry]]:
        """Keeps an entry; returns those that had to go for it, perhaps itself if it is larger than the whole tier."""
        if key in self._entries:
            self.remove(key)
        size_bytes = entry.size_bytes
        share = self._shares.get(entry.tenant)
        if share is None:
            share = self._shares[entry.tenant] = _Share()
        self._entries[key] = entry
        share.keys[key] = None
        share.bytes_used += size_bytes
        self.bytes_used += size_bytes
        return self._make_room(share) if self.bytes_used > self._bytes_max else []

    def _make_room(self, share: _Share) -> list[tuple[bytes, CacheEntry]]:
        """Drops entries until all fit, those of the given tenant first if it has more than an equal part."""
        evicted: list[tuple[bytes, CacheEntry]] = []
        while self.bytes_used > self._bytes_max:
            greedy = share.keys and share.bytes_used * len(self._shares) > self._bytes_max
            oldest = next(iter(share.keys if greedy else self._entries))
            evicted.append((oldest, self._drop(oldest, self._entries.pop(oldest))))
        self.evicted_total += len(evicted)
        return evicted

    def remove(self, key: bytes) -> None:
        """Forgets an entry, if it is here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._drop(key, entry)

    def _drop(self, key: bytes, entry: CacheEntry) -> CacheEntry:
        size_bytes = entry.size_bytes
        self.bytes_used -= size_bytes
        share = self._shares[entry.tenant]
        share.bytes_used -= size_bytes
        del share.keys[key]
        if not share.keys:
            del self._shares[entry.tenant]
        return entry

    def newest_first(self) -> Iterator[tuple[bytes, CacheEntry]]:
        """All entries, the most recently used first."""
        return reversed(self._entries.items())

"""The first tier of the cache: answers in memory, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from proxy.transports.cache_entry import CacheEntry


class MemoryTier:
    """Entries by key, bounded in bytes."""

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, CacheEntry] = OrderedDict()
        self.bytes_used = 0
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CacheEntry | None:
        """The entry, now the most recently used; None if it is not here."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: CacheEntry) -> list[tuple[bytes, CacheEntry]]:
        """Keeps an entry; returns those that had to go for it, perhaps itself if it is larger than the whole tier."""
        self.remove(key)
        self._entries[key] = entry
        self.bytes_used += entry.size_bytes
        evicted: list[tuple[bytes, CacheEntry]] = []
        while self.bytes_used > self._bytes_max:
            oldest_key, oldest = self._entries.popitem(last=False)
            self.bytes_used -= oldest.size_bytes
            evicted.append((oldest_key, oldest))
        self.evicted_total += len(evicted)
        return evicted

    def remove(self, key: bytes) -> None:
        """Forgets an entry, if it is here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes_used -= entry.size_bytes

    def newest_first(self) -> Iterator[tuple[bytes, CacheEntry]]:
        """All entries, the most recently used first."""
        return reversed(self._entries.items())

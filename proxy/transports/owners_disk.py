"""Whose the things are that upstreams keep: one file for each host, shared by its workers, that survives restarts and kills.

The event loop never waits for the disk: everything runs in a thread, one transaction at a time. A process that is killed loses nothing that was
answered; a loss of power may cost the last moments. The file is bounded in entries and in bytes; above either, the oldest give way, counted.

Keys and values are plain bytes; the pickles that `diskcache` would make of anything else are refused in both directions.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # diskcache has no types

import diskcache

TROUBLE = (sqlite3.Error, OSError, ValueError, TypeError, diskcache.Timeout)
_EVICT_MAX = 256  # in one step; the next goes on
_TIDY_EVERY = 512  # writes, after which what has expired is removed
_LOCK_S = 2.0  # how long one writer waits for another


class PlainDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores small values of bytes as they are and nothing else."""

    def get(self, key: Any, raw: Any) -> bytes:
        """A key from the database."""
        if not raw or not isinstance(key, bytes):
            raise TypeError("a key that is not plain bytes")
        return bytes(key)

    def fetch(self, mode: int, filename: Any, value: Any, read: Any) -> bytes:  # noqa: ARG002 - diskcache's
        """A value from the database."""
        if mode != diskcache.core.MODE_RAW or not isinstance(value, bytes):
            raise TypeError("a value that is not plain bytes")
        return bytes(value)


class OwnersDisk:
    """The file. Every method blocks and is safe to call from any thread and any process of the host."""

    def __init__(self, directory: Path, *, entries_max: int, bytes_max: int, ttl_s: float) -> None:
        """ttl_s: how long an entry lasts that nobody asks for."""
        self._directory = directory
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._cache: Any = None  # None: not open
        self._writes = 0
        self.evicted_total = 0
        self.entries = 0  # as of the last write
        self.bytes_used = 0

    @property
    def exists(self) -> bool:
        """Whether anybody has ever opened it."""
        return self._directory.exists()

    def open(self) -> None:
        """Opens the file, or makes it. Raises one of TROUBLE; one that is damaged is set aside, once, and a new one made."""
        try:
            self._cache = self._opened()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # the others are of this moment: locked, no room
                raise
            aside = self._directory.with_name(self._directory.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self._directory.rename(aside)
            self._cache = self._opened()

    def close(self) -> None:
        """Closes this process's connections; safe to call twice."""
        if self._cache is not None:
            self._cache.close()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys; one that was asked for lives on."""
        found: list[bytes | None] = []
        for key in keys:
            value, expires_s = self._cache.get(key, default=None, expire_time=True)
            if value is not None and expires_s is not None and expires_s - time.time() < self._ttl_s / 2:
                self._cache.touch(key, expire=self._ttl_s)
            found.append(value)
        return found

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, which live no longer for it."""
        return [self._cache.get(key, default=None) for key in keys]

    def values(self) -> list[bytes]:
        """All values that have not expired; for small files."""
        found = (self._cache.get(key) for key in list(self._cache.iterkeys()))
        return [value for value in found if value is not None]

    def put(self, entries: Mapping[bytes, bytes], ttl_s: float | None = None) -> None:
        """Stores values, all or none. ttl_s: for these alone."""
        cache = self._cache
        with cache.transact():
            for key, value in entries.items():
                cache.set(key, value, expire=self._ttl_s if ttl_s is None else ttl_s)
            self._make_room(cache)

    def add(self, key: bytes, value: bytes) -> bool:
        """Stores a value unless there is one; whether it did. Of all processes that try, one succeeds."""
        with self._cache.transact():
            added: bool = self._cache.add(key, value, expire=self._ttl_s)
            self._make_room(self._cache)
        return added

    def change(self, key: bytes, decide: Callable[[bytes | None], bytes | None]) -> bool:
        """Stores what a value becomes, in one step of all processes: b"" removes it, None leaves it as it is; whether it was changed."""
        cache = self._cache
        with cache.transact():
            value = decide(cache.get(key, default=None))
            if value is None:
                return False
            if value:
                cache.set(key, value, expire=self._ttl_s)
                self._make_room(cache)
            else:
                cache.delete(key)
        return True

    def remove(self, keys: Sequence[bytes]) -> None:
        """Forgets keys."""
        with self._cache.transact():
            for key in keys:
                self._cache.delete(key)

    def _make_room(self, cache: Any) -> None:  # the open cache
        self._writes += 1
        if self._writes % _TIDY_EVERY == 1:
            cache.expire()
        self.entries, self.bytes_used = len(cache), cache.volume()
        surplus = max(0, self.entries - self._entries_max)
        if self.bytes_used > self._bytes_max:
            surplus = max(surplus, self.entries // 16 + 1)
        for _ in range(min(surplus, _EVICT_MAX, self.entries)):
            key, _value = cache.peekitem(last=False)
            cache.delete(key)
            self.evicted_total += 1

    def _opened(self) -> Any:  # diskcache.Cache
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return diskcache.Cache(
            str(self._directory),
            disk=PlainDisk,
            timeout=_LOCK_S,
            eviction_policy="none",
            cull_limit=0,
            disk_min_file_size=2**31,  # no value in a file of its own
        )

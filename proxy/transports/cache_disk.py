"""The second tier of the cache: answers for which memory had no room, and all of them over a restart.

The event loop never waits for the disk but where a stored answer is known to lie there: an index in memory says what does, so a miss costs
one look-up in a dictionary. Writes happen behind, in batches, in a thread; when too much waits, an entry is not written,
which costs at most an upstream call later. Whatever is wrong with the disk or an entry on it is a miss.

Keys and values are plain bytes; the pickles that `diskcache` would make of anything else are refused in both directions.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any  # diskcache has no types

import diskcache

from proxy.transports.cache_entry import CacheEntry, decode_entry, encode_entry

THREADS = 2  # one may write while the other reads
BATCH_ENTRIES = 64
ENTRY_BYTES_MEAN = 4096  # the index is allowed one key for so many bytes of disk
UNKNOWN_US = 2**63 - 1  # expiry of an entry from an earlier life; the entry itself says when it is read
_TROUBLE = (sqlite3.Error, OSError, ValueError, TypeError, diskcache.Timeout)

_log = logging.getLogger(__name__)


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores bytes as they are and nothing else."""

    def get(self, key: Any, raw: Any) -> bytes:
        """A key from the database."""
        if not raw or not isinstance(key, bytes):
            raise TypeError("a key that is not plain bytes")
        return bytes(key)

    def fetch(self, mode: int, filename: Any, value: Any, read: Any) -> bytes:
        """A value from the database or its file."""
        if mode not in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY):
            raise TypeError("a value that is not plain bytes")
        data = super().fetch(mode, filename, value, read)
        if not isinstance(data, bytes):
            raise TypeError("a value that is not plain bytes")
        return data


class DiskTier:
    """Entries by key in a directory of its own, bounded in bytes."""

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        pending_bytes_max: int = 16 * 1024 * 1024,
        reads_max: int = 64,
        read_timeout_s: float = 0.25,
    ) -> None:
        """Nothing is opened yet; until `open` has returned, every look-up misses.

        pending_bytes_max: what may wait to be written. reads_max: reads at any moment. Above either: a miss.
        """
        self._directory = directory
        self._bytes_max = bytes_max
        self._entries_max = max(1, bytes_max // ENTRY_BYTES_MEAN)
        self._pending_bytes_max = pending_bytes_max
        self._reads_max = reads_max
        self._read_timeout_s = read_timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cache-disk")
        self._cache: Any = None  # diskcache has no types; None: not open
        self._index: dict[bytes, int] = {}  # key to expiry in microseconds, oldest first
        self._pending: dict[bytes, CacheEntry] = {}
        self._pending_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._reads = 0
        self.bytes_used = 0  # as of the last write
        self.written_total = 0
        self.skipped_total = 0  # entries not written because too much waited
        self.busy_total = 0  # look-ups given up because of reads_max or read_timeout_s
        self.corrupt_total = 0
        self.errors_total = 0

    def __len__(self) -> int:
        return len(self._index)

    async def open(self) -> bool:
        """Opens the directory and reads its index; False if it is unusable, then the tier stays empty.

        A database that cannot be read is thrown away once: it is a cache.
        """
        loop = asyncio.get_running_loop()
        for attempt in range(2):
            try:
                self._cache, keys = await loop.run_in_executor(self._threads, self._open)
            except _TROUBLE as error:
                self._failed(f"the cache in {self._directory} cannot be opened: {error}")
                if attempt == 0:
                    await loop.run_in_executor(self._threads, _wipe, self._directory)
            else:
                self._index = dict.fromkeys(keys, UNKNOWN_US)
                return True
        return False

    def holds(self, key: bytes, *, now_us: int) -> bool:
        """Whether `get` is worth its wait."""
        return self._index.get(key, 0) > now_us or key in self._pending

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, or None: gone, damaged, or the disk is too slow or too busy today."""
        waiting = self._pending.get(key)
        if waiting is not None:
            return waiting
        if self._cache is None or self._reads >= self._reads_max:
            self.busy_total += 1
            return None
        self._reads += 1
        read = asyncio.get_running_loop().run_in_executor(self._threads, self._read, key)
        read.add_done_callback(self._read_done)
        try:
            async with asyncio.timeout(self._read_timeout_s):
                data = await asyncio.shield(read)
        except TimeoutError:
            self.busy_total += 1
            return None
        except _TROUBLE as error:
            self._failed(f"the cache on disk cannot be read: {error}")
            self._index.pop(key, None)
            return None
        entry = None if data is None else decode_entry(data)
        if entry is None:
            self.corrupt_total += data is not None
            self._index.pop(key, None)
        elif key in self._index:
            self._index[key] = entry.expires_us
        return entry

    def has_room(self, entry: CacheEntry) -> bool:
        """Whether `put` would take an entry now."""
        return self._pending_bytes + entry.size_bytes <= self._pending_bytes_max

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Has an entry written some time soon, or not at all; never waits."""
        if self._cache is None or self._index.get(key) == entry.expires_us or key in self._pending:
            return
        if not self.has_room(entry):
            self.skipped_total += 1
            return
        self._pending[key] = entry
        self._pending_bytes += entry.size_bytes
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_behind())

    async def flush(self) -> None:
        """Waits until all that was put is written."""
        while self._writer is not None:
            await asyncio.shield(self._writer)

    async def aclose(self) -> None:
        """Writes what waits and closes; safe to call twice."""
        cache = self._cache
        try:
            if cache is not None:
                await self.flush()
                self._cache = None
                await asyncio.get_running_loop().run_in_executor(self._threads, cache.close)
        finally:
            self._cache = None
            self._index.clear()
            self._threads.shutdown(wait=False)

    async def _write_behind(self) -> None:
        """Writes batch after batch until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                batch = dict(list(self._pending.items())[:BATCH_ENTRIES])
                room = self._entries_max - len(self._index) - len(batch)
                surplus = list(self._index)[: max(0, -room)]
                try:
                    self.bytes_used = await loop.run_in_executor(self._threads, self._write, batch, surplus)
                except _TROUBLE as error:
                    self._failed(f"the cache on disk cannot be written: {error}")
                else:
                    self.written_total += len(batch)
                    self._index.update((key, entry.expires_us) for key, entry in batch.items())
                for key, entry in batch.items():
                    del self._pending[key]
                    self._pending_bytes -= entry.size_bytes
                for key in surplus:
                    self._index.pop(key, None)
        finally:
            self._writer = None

    def _open(self) -> tuple[Any, list[bytes]]:
        """In a thread: the open cache and its keys, as many as the index may hold."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache = diskcache.Cache(
            str(self._directory),
            disk=BytesDisk,
            timeout=1,
            size_limit=self._bytes_max,
            eviction_policy="least-recently-stored",
            sqlite_synchronous=0,  # a cache need not survive a loss of power
        )
        keys = list(cache.iterkeys())
        return cache, keys[-self._entries_max :]

    def _read(self, key: bytes) -> bytes | None:
        """In a thread."""
        data: bytes | None = self._cache.get(key)
        return data

    def _write(self, batch: dict[bytes, CacheEntry], surplus: list[bytes]) -> int:
        """In a thread: one transaction; returns the bytes on disk."""
        cache = self._cache
        with cache.transact():
            for key in surplus:
                cache.delete(key)
            for key, entry in batch.items():
                cache.set(key, encode_entry(entry), expire=entry.ttl_s)
        volume: int = cache.volume()
        return volume

    def _read_done(self, read: asyncio.Future[bytes | None]) -> None:
        self._reads -= 1
        if not read.cancelled():
            read.exception()  # looked at, also when nobody waited for it any more

    def _failed(self, message: str) -> None:
        if not self.errors_total:
            _log.warning("%s; going on without it", message)
        self.errors_total += 1


def _wipe(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)

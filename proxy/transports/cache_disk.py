"""The second tier of the cache: answers for which memory had no room, and all of them over a restart.

The event loop never waits for the disk but where a stored answer is known to lie there: an index in memory says what does and where, so a
miss costs one look-up in a dictionary. Writes happen behind, in a thread, many entries together as one *page*: diskcache needs as long for
a page as for an entry. The thread gets the page as bytes: whatever Python it ran would stand in the way of the calls, which share the
interpreter's lock with it. What waits for its page is served from memory. When too much waits, an entry is not written,
which costs at most an upstream call later. Whatever is wrong with the disk or an entry on it is a miss.

A page is a directory (keys, expiries, places) with its checksum, and the entries, each with its own; it leaves the disk as a whole, the oldest first.
So an entry cannot be taken from the disk alone: whoever withdraws one must also refuse it by its age when it comes back.

Keys and values are plain bytes; the pickles that `diskcache` would make of anything else are refused in both directions.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple  # Any: diskcache has no types

import diskcache
import msgspec

from proxy.transports.cache_entry import CacheEntry, decode_entry, encode_entry

THREADS = 2  # one may write while the other reads
PAGE_ENTRIES = 256
PAGE_BYTES = 1024 * 1024
LINGER_S = 1.0  # how long an entry may wait for others to share its page
ENTRY_BYTES_MEAN = 4096  # the index is allowed one key for so many bytes of disk
_PLACE = struct.Struct(
    "<QIIQ"
)  # page, offset in it, length, expiry in microseconds: in the index, where a tuple would take four times the memory
_HEAD = struct.Struct("<II")  # length and checksum of a page's directory
_PAGE = b"page-2:"  # and eight bytes of its number; anything else in the database is not ours, or older
_TROUBLE = (sqlite3.Error, OSError, ValueError, TypeError, diskcache.Timeout)

_Directory = list[tuple[bytes, bytes]]  # key and place of each entry of a page
_encode_directory = msgspec.msgpack.Encoder().encode
_decode_directory = msgspec.msgpack.Decoder(_Directory).decode
_log = logging.getLogger(__name__)


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores bytes as they are and nothing else."""

    def get(self, key: Any, raw: Any) -> bytes:
        """A key from the database."""
        if not raw or not isinstance(key, bytes):
            raise TypeError("a key that is not plain bytes")
        return bytes(key)

    def fetch(self, mode: int, filename: Any, value: Any, read: Any) -> Any:
        """A page's file, open to read; what is no file was not written by us."""
        if mode != diskcache.core.MODE_BINARY or not read:
            raise TypeError("a value that is not a file of plain bytes")
        return super().fetch(mode, filename, value, read)


class _Waiting(NamedTuple):
    """An entry that waits for its page, and its bytes there."""

    entry: CacheEntry
    data: bytes
    size_bytes: int


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
        self._index: dict[bytes, bytes] = {}  # key to _PLACE, oldest first
        self._page = 0  # the number of the newest page
        self._pending: dict[bytes, _Waiting] = {}
        self._pending_bytes = 0
        self._linger: asyncio.TimerHandle | None = None
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
                self._cache, self._index, self._page = await loop.run_in_executor(self._threads, self._open)
            except _TROUBLE as error:
                self._failed(f"the cache in {self._directory} cannot be opened: {error}")
                if attempt == 0:
                    await loop.run_in_executor(self._threads, _wipe, self._directory)
            else:
                return True
        return False

    def holds(self, key: bytes, *, now_us: int) -> bool:
        """Whether `get` is worth its wait."""
        place = self._index.get(key)
        return key in self._pending if place is None else _expiry_of(place) > now_us or key in self._pending

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, or None: gone, damaged, or the disk is too slow or too busy today."""
        waiting = self._pending.get(key)
        if waiting is not None:
            return waiting.entry
        place = self._index.get(key)
        if place is None or self._cache is None:
            return None
        if self._reads >= self._reads_max:
            self.busy_total += 1
            return None
        self._reads += 1
        read = asyncio.get_running_loop().run_in_executor(self._threads, self._read, place)
        read.add_done_callback(self._read_done)
        try:
            async with asyncio.timeout(self._read_timeout_s):
                data = await asyncio.shield(read)
        except TimeoutError:
            self.busy_total += 1
            return None
        except _TROUBLE as error:
            self._failed(f"the cache on disk cannot be read: {error}")
            self._forget(key, place)
            return None
        entry = None if data is None else decode_entry(data)
        if entry is None:
            self.corrupt_total += data is not None
            self._forget(key, place)
        return entry

    def has_room(self, entry: CacheEntry) -> bool:
        """Whether `put` would take an entry now."""
        return self._pending_bytes + entry.size_bytes <= self._pending_bytes_max

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Has an entry written some time soon, or not at all; never waits."""
        if self._cache is None or key in self._pending:
            return
        place = self._index.get(key)
        if place is not None and _expiry_of(place) == entry.expires_us:
            return
        size_bytes = entry.size_bytes
        if self._pending_bytes + size_bytes > self._pending_bytes_max:
            self.skipped_total += 1
            return
        self._pending[key] = _Waiting(entry, encode_entry(entry), size_bytes)
        self._pending_bytes += size_bytes
        if self._writer is None:
            if self._page_is_full:
                self._write_now()
            elif self._linger is None:
                self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._write_now)

    async def flush(self) -> None:
        """Waits until all that was put is written."""
        while self._pending:
            self._write_now()
            if self._writer is not None:
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
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            self._threads.shutdown(wait=False)

    @property
    def _page_is_full(self) -> bool:
        return len(self._pending) >= PAGE_ENTRIES or self._pending_bytes >= PAGE_BYTES

    def _write_now(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._writer is None and self._pending:
            self._writer = asyncio.get_running_loop().create_task(self._write_behind())

    async def _write_behind(self) -> None:
        """Writes a page, and more while full ones wait."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._write_page()
                if not self._page_is_full:
                    break
        finally:
            self._writer = None
            if self._pending and self._linger is None:
                self._linger = loop.call_later(LINGER_S, self._write_now)

    async def _write_page(self) -> None:
        batch = self._batch()
        self._page += 1
        directory, data = _page_of(self._page, batch)
        keep_s = max(waiting.entry.keep_s for waiting in batch.values())
        try:
            self.bytes_used = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._write, self._page, data, keep_s
            )
        except _TROUBLE as error:
            self._failed(f"the cache on disk cannot be written: {error}")
        else:
            self.written_total += len(batch)
            for key, place in directory:
                self._index.pop(key, None)  # so that it becomes the newest
                self._index[key] = place
            for key in list(islice(self._index, max(0, len(self._index) - self._entries_max))):
                del self._index[key]
        for key, waiting in batch.items():
            del self._pending[key]
            self._pending_bytes -= waiting.size_bytes

    def _batch(self) -> dict[bytes, _Waiting]:
        """What waits longest, as much as a page takes."""
        batch: dict[bytes, _Waiting] = {}
        size_bytes = 0
        for key, waiting in islice(self._pending.items(), PAGE_ENTRIES):
            batch[key] = waiting
            size_bytes += waiting.size_bytes
            if size_bytes >= PAGE_BYTES:
                break
        return batch

    def _forget(self, key: bytes, place: bytes) -> None:
        """Takes a key off the index, unless it has a new place by now."""
        if self._index.get(key) is place:
            del self._index[key]

    def _open(self) -> tuple[Any, dict[bytes, bytes], int]:
        """In a thread: the open cache, where its entries lie, as many as the index may hold, and the newest page."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache = diskcache.Cache(
            str(self._directory),
            disk=BytesDisk,
            timeout=1,
            size_limit=self._bytes_max,
            eviction_policy="least-recently-stored",
            sqlite_synchronous=0,  # a cache need not survive a loss of power
            disk_min_file_size=0,  # pages are files, so that an entry can be read alone
        )
        index: dict[bytes, bytes] = {}
        page = 0
        for name in cache.iterkeys():  # by number, so by age
            if name.startswith(_PAGE):
                page = int.from_bytes(name[len(_PAGE) :])
                for key, place in _read_directory(cache, name):
                    index.pop(key, None)
                    index[key] = place
        for key in list(islice(index, max(0, len(index) - self._entries_max))):
            del index[key]
        return cache, index, page

    def _read(self, place: bytes) -> bytes | None:
        """In a thread."""
        page, offset, length, _ = _PLACE.unpack(place)
        file = self._cache.get(_name_of(page), read=True)
        if file is None:
            return None
        with file:
            file.seek(offset)
            data: bytes = file.read(length)
        return data

    def _write(self, page: int, data: bytes, keep_s: int) -> int:
        """In a thread: one file and one transaction; returns the bytes on disk."""
        self._cache.set(_name_of(page), data, expire=keep_s)
        volume: int = self._cache.volume()
        return volume

    def _read_done(self, read: asyncio.Future[bytes | None]) -> None:
        self._reads -= 1
        if not read.cancelled():
            read.exception()  # looked at, also when nobody waited for it any more

    def _failed(self, message: str) -> None:
        if not self.errors_total:
            _log.warning("%s; going on without it", message)
        self.errors_total += 1


def _page_of(page: int, batch: Mapping[bytes, _Waiting]) -> tuple[_Directory, bytes]:
    """A page's directory and the page. A place's size does not depend on what it says, so neither does the directory's."""
    nowhere = _PLACE.pack(0, 0, 0, 0)
    offset = _HEAD.size + len(_encode_directory([(key, nowhere) for key in batch]))
    directory: _Directory = []
    for key, waiting in batch.items():
        length = len(waiting.data)
        directory.append((key, _PLACE.pack(page, offset, length, waiting.entry.expires_us)))
        offset += length
    head = _encode_directory(directory)
    entries = [waiting.data for waiting in batch.values()]
    return directory, b"".join((_HEAD.pack(len(head), zlib.crc32(head)), head, *entries))


def _read_directory(cache: Any, name: bytes) -> _Directory:
    """Where a page's entries lie; nothing if it is damaged or gone."""
    try:
        file = cache.get(name, read=True)
        if file is None:
            return []
        with file:
            length, checksum = _HEAD.unpack(file.read(_HEAD.size))
            head = file.read(length)
        return _decode_directory(head) if zlib.crc32(head) == checksum else []
    except (*_TROUBLE, struct.error, msgspec.DecodeError):
        return []


def _name_of(page: int) -> bytes:
    return _PAGE + page.to_bytes(8)


def _expiry_of(place: bytes) -> int:
    expires_us: int = _PLACE.unpack(place)[3]
    return expires_us


def _wipe(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)

"""The second tier of the cache: answers for which memory had no room, and all of them over a restart.

The event loop never waits for the disk but where a stored answer is known to lie there: an index in memory says what does and where, so a
miss costs one look-up in a dictionary. Writes happen behind, in a thread, many entries together as one *page* (`cache_pages`). The thread
gets the page as bytes: whatever Python it ran would stand in the way of the calls, which share the interpreter's lock with it. What waits
for its page is served from memory. When too much waits, an entry is not written, which costs at most an upstream call later. Whatever is
wrong with the disk or an entry on it is a miss.

A page leaves the disk as a whole, the oldest first. So an entry cannot be taken from the disk alone: whoever withdraws one must also refuse
it by its age when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from proxy.transports.cache_entry import CacheEntry, decode_entry, encode_entry
from proxy.transports.cache_pages import Pages, Waiting, expiry_of, page_of

THREADS = 2  # one may write while the other reads
PAGE_ENTRIES = 256
PAGE_BYTES = 1024 * 1024
LINGER_S = 1.0  # how long an entry may wait for others to share its page
ENTRY_BYTES_MEAN = 4096  # the index is allowed one key for so many bytes of disk

_log = logging.getLogger(__name__)


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
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """Nothing is opened yet; until `open` has returned, every look-up misses.

        pending_bytes_max: what may wait to be written. reads_max: reads at any moment. Above either: a miss.
        """
        self._directory = directory
        self._pages = Pages(directory, bytes_max=bytes_max)
        self._now_us = now_us
        self._entries_max = max(1, bytes_max // ENTRY_BYTES_MEAN)
        self._pending_bytes_max = pending_bytes_max
        self._reads_max = reads_max
        self._read_timeout_s = read_timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cache-disk")
        self._is_open = False
        self._index: dict[bytes, bytes] = {}  # key to PLACE, oldest first
        self._page = 0  # the number of the newest page
        self._pending: dict[bytes, Waiting] = {}
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

        A directory that cannot be read is thrown away once: it is a cache.
        """
        loop = asyncio.get_running_loop()
        for attempt in range(2):
            try:
                self._index, self._page = await loop.run_in_executor(self._threads, self._pages.open)
            except OSError as error:
                self._failed(f"the cache in {self._directory} cannot be opened: {error}")
                if attempt == 0:
                    await loop.run_in_executor(self._threads, self._pages.wipe)
            else:
                self._trim()
                self.bytes_used = self._pages.bytes_used
                self._is_open = True
                return True
        return False

    def holds(self, key: bytes, *, now_us: int) -> bool:
        """Whether `get` is worth its wait."""
        place = self._index.get(key)
        return key in self._pending if place is None else expiry_of(place) > now_us or key in self._pending

    async def get(self, key: bytes) -> CacheEntry | None:
        """The entry, or None: gone, damaged, or the disk is too slow or too busy today."""
        waiting = self._pending.get(key)
        if waiting is not None:
            return waiting.entry
        place = self._index.get(key)
        if place is None or not self._is_open:
            return None
        if self._reads >= self._reads_max:
            self.busy_total += 1
            return None
        self._reads += 1
        read = asyncio.get_running_loop().run_in_executor(self._threads, self._pages.read, place)
        read.add_done_callback(self._read_done)
        try:
            async with asyncio.timeout(self._read_timeout_s):
                data = await asyncio.shield(read)
        except TimeoutError:
            self.busy_total += 1
            return None
        except OSError as error:
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
        if not self._is_open or key in self._pending:
            return
        place = self._index.get(key)
        if place is not None and expiry_of(place) == entry.expires_us:
            return
        size_bytes = entry.size_bytes
        if self._pending_bytes + size_bytes > self._pending_bytes_max:
            self.skipped_total += 1
            return
        self._pending[key] = Waiting(entry, encode_entry(entry), size_bytes)
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
        try:
            if self._is_open:
                await self.flush()
        finally:
            self._is_open = False
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
        number, loop = self._page, asyncio.get_running_loop()
        directory, data = page_of(number, batch)
        expires_us = max(waiting.entry.expires_us for waiting in batch.values())
        write = partial(self._pages.write, number, data, expires_us=expires_us, now_us=self._now_us())
        try:
            self.bytes_used = await loop.run_in_executor(self._threads, write)
        except OSError as error:
            self._failed(f"the cache on disk cannot be written: {error}")
        else:
            self.written_total += len(batch)
            for key, place in directory:
                self._index.pop(key, None)  # so that it becomes the newest
                self._index[key] = place
            self._trim()
        for key, waiting in batch.items():
            del self._pending[key]
            self._pending_bytes -= waiting.size_bytes

    def _batch(self) -> dict[bytes, Waiting]:
        """What waits longest, as much as a page takes."""
        batch: dict[bytes, Waiting] = {}
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

    def _trim(self) -> None:
        """Forgets the oldest keys beyond what the index may hold."""
        for key in list(islice(self._index, max(0, len(self._index) - self._entries_max))):
            del self._index[key]

    def _read_done(self, read: asyncio.Future[bytes | None]) -> None:
        self._reads -= 1
        if not read.cancelled():
            read.exception()  # looked at, also when nobody waited for it any more

    def _failed(self, message: str) -> None:
        if not self.errors_total:
            _log.warning("%s; going on without it", message)
        self.errors_total += 1

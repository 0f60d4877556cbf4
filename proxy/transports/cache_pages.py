"""The files of the cache's disk tier: pages of many entries, written whole, read in part, dropped whole. Everything here blocks: it is for threads.

A page is one file named by its number, which only grows: a directory (keys, expiries, places) with its checksum, then the entries, each with
its own. So a page that was torn, or changed by a bit, costs the entries that it hurt and nothing else, and nothing need be kept in a
database beside it. A page takes a thread three calls into the kernel; each time it came back from one it would have to wait for the
interpreter's lock, which the calls hold, and each of their own calls into the kernel would wake it in vain (decision 0029).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from proxy.transports.cache_entry import CacheEntry

PLACE = struct.Struct(
    "<QIIQ"
)  # page, offset in it, length, expiry in microseconds: in the index, where a tuple would take four times the memory
_HEAD = struct.Struct("<II")  # length and checksum of a page's directory
_SUFFIX = ".page"
_NAME = re.compile(r"\d{12}\.page")
_OLD_FILE = re.compile(r"cache\.db(-\w+)?")
_OLD_FOLDER = re.compile(r"[0-9a-f]{2}")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

Directory = list[tuple[bytes, bytes]]  # key and place of each entry of a page
_encode_directory = msgspec.msgpack.Encoder().encode
_decode_directory = msgspec.msgpack.Decoder(Directory).decode


class Waiting(NamedTuple):
    """An entry that waits for its page, and its bytes there."""

    entry: CacheEntry
    data: bytes
    size_bytes: int


class _Page(NamedTuple):
    size_bytes: int
    expires_us: int  # of its last entry


class Pages:
    """Page files in a directory of their own, bounded in bytes; the oldest go first, and those that have expired."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._pages: dict[int, _Page] = {}  # oldest first
        self.bytes_used = 0

    def open(self) -> tuple[dict[bytes, bytes], int]:
        """Where the entries lie, the oldest first, and the number of the newest page. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pages, self.bytes_used = {}, 0
        index: dict[bytes, bytes] = {}
        for path in sorted(self._directory.iterdir()):
            if _NAME.fullmatch(path.name) is None:
                _remove_old(path)
                continue
            directory = _read_directory(path)
            if not directory:
                path.unlink(missing_ok=True)
                continue
            for key, place in directory:
                index.pop(key, None)  # so that it becomes the newest
                index[key] = place
            expires_us = max(expiry_of(place) for _, place in directory)
            self._note(int(path.stem), _Page(path.stat().st_size, expires_us))
        newest = max(self._pages, default=0)
        if self._make_room(0, now_us=0):  # the bound was higher, or there were fewer workers to share it
            index = {key: place for key, place in index.items() if PLACE.unpack(place)[0] in self._pages}
        return index, newest

    def write(self, number: int, data: bytes, *, expires_us: int, now_us: int) -> int:
        """Writes a page, after as many old ones as must go for it; the bytes on disk then. Raises OSError."""
        self._make_room(len(data), now_us=now_us)
        if len(data) > self._bytes_max:
            return self.bytes_used
        path = self._path(number)
        try:
            fd = os.open(path, _CREATE, 0o600)
        except FileNotFoundError:  # somebody has deleted the directory
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, _CREATE, 0o600)
        try:
            _write_whole(fd, data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._note(number, _Page(len(data), expires_us))
        return self.bytes_used

    def read(self, place: bytes) -> bytes | None:
        """The bytes of an entry; None if its page is gone. Raises OSError."""
        page, offset, length, _ = PLACE.unpack(place)
        try:
            fd = os.open(self._path(page), _OPEN)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def wipe(self) -> None:
        """Throws all away: it is a cache."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _make_room(self, size_bytes: int, *, now_us: int) -> bool:
        """Drops the oldest pages that have expired or are in the way of so many bytes; whether there were any."""
        dropped = False
        for old, page in list(self._pages.items()):
            if self.bytes_used + size_bytes <= self._bytes_max and page.expires_us > now_us:
                break
            self._path(old).unlink(missing_ok=True)
            self.bytes_used -= self._pages.pop(old).size_bytes
            dropped = True
        return dropped

    def _note(self, number: int, page: _Page) -> None:
        self._pages[number] = page
        self.bytes_used += page.size_bytes

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SUFFIX}"


def page_of(number: int, batch: Mapping[bytes, Waiting]) -> tuple[Directory, bytes]:
    """A page's directory and the page. A place's size does not depend on what it says, so neither does the directory's."""
    nowhere = PLACE.pack(0, 0, 0, 0)
    offset = _HEAD.size + len(_encode_directory([(key, nowhere) for key in batch]))
    directory: Directory = []
    for key, waiting in batch.items():
        length = len(waiting.data)
        directory.append((key, PLACE.pack(number, offset, length, waiting.entry.expires_us)))
        offset += length
    head = _encode_directory(directory)
    entries = [waiting.data for waiting in batch.values()]
    return directory, b"".join((_HEAD.pack(len(head), zlib.crc32(head)), head, *entries))


def expiry_of(place: bytes) -> int:
    """When an entry is of no more use, in microseconds."""
    expires_us: int = PLACE.unpack(place)[3]
    return expires_us


def _read_directory(path: Path) -> Directory:
    """Where a page's entries lie; nothing if it is damaged or gone."""
    try:
        with path.open("rb") as file:
            length, checksum = _HEAD.unpack(file.read(_HEAD.size))
            if length > os.fstat(file.fileno()).st_size:
                return []
            head = file.read(length)
        directory = _decode_directory(head) if zlib.crc32(head) == checksum else []
        return directory if all(len(place) == PLACE.size for _, place in directory) else []
    except (OSError, struct.error, msgspec.DecodeError):
        return []


def _write_whole(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove_old(path: Path) -> None:
    """Removes what a version before this one left, which kept a database; anything else is not ours."""
    if _OLD_FILE.fullmatch(path.name):
        path.unlink(missing_ok=True)
    elif _OLD_FOLDER.fullmatch(path.name):
        shutil.rmtree(path, ignore_errors=True)

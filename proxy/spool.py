"""The worker's spool: every settled call, on disk before it counts, until the control plane has it.

Records are appended as frames (`controlplane.contract.wire`) to numbered segments. One `os.write` puts a frame into the page cache, where it
survives `kill -9` of this process; a loss of power may cost the last seconds. A segment is sealed by size or by age,
shipped whole (`proxy.shipper`) and then deleted.

The ledger lives by the same file: its checkpoint says "these amounts are all records before this position", is replaced atomically at each
seal, and on start the records behind it are booked again. A segment is deleted only when a checkpoint covers it. So the
ledger is exactly the sum of all records ever written here, plus those that had to be dropped.

When the spool has reached its limit, or the disk its own, the new record is dropped: what is already here was promised first and is
needed in order. The drop is counted, its amounts move the ledger all the same (a tenant does not get free calls because
our disk is full), and the count and the amounts go into the checkpoint.

In the directory: `<number>.seg`, `ledger.checkpoint`, `next-segment`, `proxy-id`, `lock`, `quarantine/`. Numbers only grow, also over
restarts and deletions, so that a batch token (`proxy_id`/number) never names two batches.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from controlplane.contract.ids import new_id
from controlplane.contract.records import CallRecord
from controlplane.contract.wire import RECORD_BYTES_MAX, TornFrame, encode_frame, frames
from proxy.ledger import Ledger, LedgerState

_SEGMENT_SUFFIX = ".seg"
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class SpoolLocked(RuntimeError):
    """Another process has this spool directory open; each worker needs its own."""


class Checkpoint(msgspec.Struct):
    """The ledger as it was when all bytes before a position were booked."""

    segment: int
    offset: int
    ledger: LedgerState
    dropped_calls: int = 0
    dropped_nanousd: int = 0


class Spool:
    """An append-only, bounded queue of records in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        ledger: Ledger,
        bytes_max: int,
        segment_bytes: int,
        segment_age_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens the directory, repairs what a killed process left, and books what the checkpoint does not hold.

        ledger: new; it is restored here and booked by `append` from then on.
        Raises SpoolLocked when another process has the directory, OSError when it cannot be used at all.
        """
        self._directory = directory
        self._quarantine = directory / "quarantine"
        self._ledger = ledger
        self._bytes_max = bytes_max
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._monotonic = monotonic
        self._active: _Segment | None = None
        self._sealed: deque[tuple[int, int]] = deque()  # number and bytes, oldest first
        self._sealed_bytes = 0
        self._quarantine_bytes = 0
        self._next = 1  # the number of the next segment
        self._checkpoint_segment = 1  # the checkpoint covers all segments before this one
        self._checkpoint_due = False
        self.dropped = 0  # records, all lives
        self.dropped_nanousd = 0
        self.payloads_cut_total = 0  # records stored without their payload because it made them too large
        self.torn_bytes = 0  # cut off behind the last good record at this start
        self.quarantined = 0  # segments set aside and still there
        self.checkpoint_failures_total = 0
        self.checkpoint_damaged = False  # at this start: the ledger counts only what was still here
        self._quarantine.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(directory / "lock")
        try:
            self.proxy_id = _proxy_id(directory / "proxy-id")
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def ledger(self) -> Ledger:
        """What was settled here."""
        return self._ledger

    @property
    def bytes_stored(self) -> int:
        """Bytes on disk that count against the limit, quarantine included."""
        active = 0 if self._active is None else self._active.size
        return self._sealed_bytes + active + self._quarantine_bytes

    @property
    def oldest(self) -> int | None:
        """The number of the sealed segment to ship next."""
        return self._sealed[0][0] if self._sealed else None

    @property
    def segments(self) -> int:
        """Sealed segments that wait."""
        return len(self._sealed)

    def append(self, record: CallRecord) -> bool:
        """Stores a settled call and books it in the ledger; False when it had to be dropped (and was booked and counted).

        Never raises for a full disk. May block for as long as the kernel takes to copy the bytes.
        """
        frame = encode_frame(record)
        if len(frame) > RECORD_BYTES_MAX:
            self.payloads_cut_total += 1
            frame = encode_frame(msgspec.structs.replace(record, payload=None))
        stored = self._write(frame)
        if not stored:
            self.dropped += 1
            self.dropped_nanousd += record.cost_nanousd
            self._checkpoint_due = True
        self._ledger.book(record)
        if self._active is not None and self._active.size >= self._segment_bytes:
            self.seal()
        return stored

    def tick(self) -> None:
        """Seals the active segment when it is old enough, and keeps the checkpoint up with drops; call it a few times a second."""
        active = self._active
        if active is not None and self._monotonic() - active.opened_s >= self._segment_age_s:
            self.seal()
        elif self._checkpoint_due:
            self._checkpoint()

    def seal(self) -> None:
        """Closes the active segment, if there is one, so that it can be shipped."""
        active, self._active = self._active, None
        if active is None:
            return
        os.close(active.fd)
        if active.size:
            self._sealed.append((active.number, active.size))
            self._sealed_bytes += active.size
        else:
            self._path(active.number).unlink(missing_ok=True)
        self._checkpoint()

    def read(self, number: int) -> bytes:
        """The bytes of a sealed segment. Blocks; safe to call from a thread."""
        return self._path(number).read_bytes()

    def remove(self, number: int) -> bool:
        """Deletes a sealed segment that the control plane has; False when it must stay until the ledger has a newer checkpoint."""
        if not self._covered(number):
            return False
        self._path(number).unlink(missing_ok=True)
        self._unlist(number)
        return True

    def set_aside(self, number: int) -> bool:
        """Moves a segment that the control plane will never take to `quarantine/`; False as in `remove`."""
        if not self._covered(number):
            return False
        self._path(number).rename(self._quarantine / self._path(number).name)
        self._quarantine_bytes += self._unlist(number)
        self.quarantined += 1
        return True

    def replace_ledger(self, state: LedgerState) -> None:
        """Goes on from other amounts than those found, durably. Only before the first `append`.

        Raises OSError, with the checkpoint on disk as it was.
        """
        self._ledger.replace(state)
        if not self._checkpoint():
            raise OSError(f"the ledger in {self._directory} cannot be written; make room on its disk")

    def close(self) -> None:
        """Seals, writes the last checkpoint and gives the directory free; safe to call twice."""
        self.seal()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write(self, frame: bytes) -> bool:
        """Appends a frame whole or not at all."""
        active = self._active
        stored = self._sealed_bytes + self._quarantine_bytes + (0 if active is None else active.size)
        if stored + len(frame) > self._bytes_max:
            return False
        try:
            if active is None:
                active = self._open()
            written = os.write(active.fd, frame)
        except OSError:
            return False
        if written == len(frame):
            active.size += written
            return True
        try:
            os.ftruncate(active.fd, active.size)
        except OSError:
            self.seal()  # readers stop at the torn frame; nothing may be written behind it
        return False

    def _open(self) -> _Segment:
        number = self._next
        self._put("next-segment", b"%d" % (number + 1))
        fd = os.open(self._path(number), _APPEND, 0o600)
        self._next = number + 1
        self._active = _Segment(number, fd, self._monotonic())
        return self._active

    def _covered(self, number: int) -> bool:
        """Whether the checkpoint holds all of a sealed segment, made true if it can be."""
        return number < self._checkpoint_segment or self._checkpoint()

    def _checkpoint(self) -> bool:
        """Writes down what the ledger is, and up to where that is all."""
        active = self._active
        segment, offset = (self._next, 0) if active is None else (active.number, active.size)
        checkpoint = Checkpoint(
            segment, offset, self._ledger.state(), dropped_calls=self.dropped, dropped_nanousd=self.dropped_nanousd
        )
        payload = msgspec.msgpack.encode(checkpoint)
        try:
            self._put("ledger.checkpoint", zlib.crc32(payload).to_bytes(4, "little") + payload)
        except OSError:
            self.checkpoint_failures_total += 1
            return False
        self._checkpoint_segment = segment
        self._checkpoint_due = False
        return True

    def _put(self, name: str, data: bytes) -> None:
        """Writes one of the small files; into a new directory, with the worker's id, if somebody has deleted the old one."""
        try:
            replace_file(self._directory / name, data)
        except FileNotFoundError:
            self._quarantine.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._directory / "proxy-id", self.proxy_id.encode())
            replace_file(self._directory / name, data)

    def _recover(self) -> None:
        checkpoint = self._load_checkpoint()
        self._ledger.restore(checkpoint.ledger)
        self.dropped, self.dropped_nanousd = checkpoint.dropped_calls, checkpoint.dropped_nanousd
        self._checkpoint_segment = checkpoint.segment
        numbers = sorted(_numbers(self._directory))
        aside = _numbers(self._quarantine)
        self.quarantined = len(aside)
        self._quarantine_bytes = sum(path.stat().st_size for path in self._quarantine.iterdir())
        self._next = max(
            _read_number(self._directory / "next-segment"), checkpoint.segment, *(n + 1 for n in (*numbers, *aside, 0))
        )
        for number in numbers:
            if number < checkpoint.segment:
                size = self._path(number).stat().st_size
            else:
                size = self._replay(number, offset=checkpoint.offset if number == checkpoint.segment else 0)
            if size:
                self._sealed.append((number, size))
                self._sealed_bytes += size
            else:
                self._path(number).unlink()
        self._checkpoint_due = not self._checkpoint()

    def _replay(self, number: int, *, offset: int) -> int:
        """Books the records behind an offset, cuts a torn tail off, and returns the good bytes."""
        data = self._path(number).read_bytes()
        good_bytes = 0
        try:
            for end, record in frames(data):
                good_bytes = end
                if end > offset:
                    self._ledger.book(record)
        except TornFrame as torn:
            good_bytes = torn.good_bytes
            self.torn_bytes += len(data) - good_bytes
            os.truncate(self._path(number), good_bytes)
        return good_bytes

    def _load_checkpoint(self) -> Checkpoint:
        path = self._directory / "ledger.checkpoint"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Checkpoint(segment=1, offset=0, ledger=LedgerState())
        try:
            if zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little"):
                return msgspec.msgpack.decode(data[4:], type=Checkpoint)
        except msgspec.DecodeError:
            pass
        self.checkpoint_damaged = True
        path.rename(path.with_suffix(".damaged"))
        return Checkpoint(segment=1, offset=0, ledger=LedgerState())

    def _unlist(self, number: int) -> int:
        """Takes a segment off the list and returns its bytes."""
        for entry in self._sealed:
            if entry[0] == number:
                self._sealed.remove(entry)
                self._sealed_bytes -= entry[1]
                return entry[1]
        return 0

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SEGMENT_SUFFIX}"


class _Segment:
    """The segment that is being written; size is its good bytes."""

    __slots__ = ("fd", "number", "opened_s", "size")

    def __init__(self, number: int, fd: int, opened_s: float) -> None:
        self.number = number
        self.fd = fd
        self.opened_s = opened_s
        self.size = 0


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise SpoolLocked(f"{path.parent} is in use by another process; give each worker its own directory") from error
    return fd


def _proxy_id(path: Path) -> str:
    """The id of this directory's worker: made once, then always the same."""
    proxy_id = path.read_text().strip() if path.exists() else ""
    if not proxy_id:
        proxy_id = new_id("prx")
        replace_file(path, proxy_id.encode())
    return proxy_id


def _numbers(directory: Path) -> list[int]:
    return [int(path.stem) for path in directory.glob("*" + _SEGMENT_SUFFIX) if path.stem.isdecimal()]


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 1


def replace_file(path: Path, data: bytes) -> None:
    """Writes a small file atomically: after a kill either the old or the new content is there."""
    partial = path.with_name(path.name + ".partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(f"{partial} could not be written whole")
    finally:
        os.close(fd)
    partial.rename(path)

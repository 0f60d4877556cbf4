"""Numbers of snapshots: each is an event of the journal's stream `catalog` before anybody sees it, so that they only grow."""

from __future__ import annotations

import threading

import msgspec

from controlplane.contract.snapshot import Snapshot
from controlplane.errors import Conflict
from controlplane.journal.events import Codec, NewEvent, VersionConflict
from controlplane.journal.journal import Journal

STREAM = "catalog"
CHANGES_MAX = 100

_CHECKPOINT = "catalog"
_CHECKPOINT_EVERY = 100
_PAGE = 1_000
_TRIES_MAX = 10


class CatalogPublished(msgspec.Struct, frozen=True, tag="catalog.published", omit_defaults=True):
    """A snapshot got its number. changed: what is different from the one before, in words."""

    version: int
    hash: str
    changed: tuple[str, ...] = ()


_CODEC: Codec[CatalogPublished] = Codec(CatalogPublished)


class Versions:
    """Gives out numbers. Blocking; may be called from any thread, and by several processes on one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._last: CatalogPublished | None = None
        self._stream_version = 0
        self._position: int | None = None

    def number(
        self, compiled: Snapshot, *, now_us: int, above: int = 0, changed: tuple[str, ...] = (), actor: str = ""
    ) -> Snapshot:
        """The compiled snapshot with a number greater than `above` and than all before.

        Content that is published already, by this process or another, keeps its number.
        Raises Conflict when others publish all the time, JournalUnavailable when nothing can be written.
        """
        with self._lock:
            for _ in range(_TRIES_MAX):
                self._catch_up()
                last = self._last
                if last is not None and last.hash == compiled.hash and last.version > above:
                    return msgspec.structs.replace(compiled, version=last.version, created_us=now_us)
                version = max(above, 0 if last is None else last.version) + 1
                published = CatalogPublished(version, compiled.hash, changed[:CHANGES_MAX])
                event = NewEvent(payload=published, actor=actor, occurred_us=now_us)
                try:
                    result = self._journal.append(STREAM, self._stream_version, [event])
                except VersionConflict:
                    continue
                self._last, self._stream_version, self._position = published, result.version, result.global_pos
                if result.version % _CHECKPOINT_EVERY == 0:
                    self._journal.save_checkpoint(_CHECKPOINT, result.global_pos)
                return msgspec.structs.replace(compiled, version=version, created_us=now_us)
        raise Conflict(
            f"other processes published {_TRIES_MAX} snapshots in a row; is one control plane too many running?"
        )

    def _catch_up(self) -> None:
        """Reads what others published; the first time from a checkpoint, so that a long history costs nothing."""
        if self._position is None:
            self._position = max(0, self._journal.checkpoint(_CHECKPOINT) - 1)
        while page := self._journal.read(self._position, _PAGE, ("catalog.published",)):
            self._last = _CODEC.decode(page[-1])
            self._stream_version, self._position = page[-1].version, page[-1].global_pos

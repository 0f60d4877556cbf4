"""Recent changes of the catalog, read from the journal as they come: the first suspects of every incident."""

from __future__ import annotations

import re
from collections import deque

import msgspec

from controlplane.incidents.rootcause import Change
from controlplane.journal.events import Event
from controlplane.journal.journal import Journal

CHANGE_TYPES = ("catalog.published",)
_PAGE = 1_000
_LOOK_BACK = 10_000  # journal positions read at start
_HARMLESS = "keys:"  # a key that comes or goes makes no deployment sick


class _Published(msgspec.Struct, frozen=True):
    """The part of a catalog event that says what changed, in words such as `models: changed fast, cheap`."""

    changed: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(_Published)


class ChangeLog:
    """The newest changes, at most `changes_max`. Blocks; used by one thread at a time."""

    def __init__(self, journal: Journal, *, changes_max: int = 500) -> None:
        self._journal = journal
        self._changes: deque[Change] = deque(maxlen=changes_max)
        self._position: int | None = None

    def recent(self) -> tuple[Change, ...]:
        """The changes known now, oldest first, after reading what is new in the journal."""
        if self._position is None:
            self._position = max(0, self._journal.position() - _LOOK_BACK)
        while page := self._journal.read(self._position, _PAGE, CHANGE_TYPES):
            self._changes.extend(change for change in map(change_of, page) if change is not None)
            self._position = page[-1].global_pos
        return tuple(self._changes)


def change_of(event: Event) -> Change | None:
    """A catalog event as a change; None if nothing that matters changed."""
    try:
        words = _decoder.decode(event.data).changed
    except msgspec.ValidationError:
        words = ()  # written by another version; that something changed is still worth knowing
    if words and all(phrase.startswith(_HARMLESS) for phrase in words):
        return None
    names = frozenset(name for phrase in words for name in re.split(r"[\s,:]+", phrase) if name)
    return Change(position=event.global_pos, at_us=event.occurred_us, type=event.type, actor=event.actor, names=names)

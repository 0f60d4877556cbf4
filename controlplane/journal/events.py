"""The words of the journal: events in, events out, and what is appended beside them in the same transaction.

An event's payload is a tagged frozen struct (`class RunMatched(msgspec.Struct, frozen=True, tag="run.matched")`). The tag is the
column `type`, the struct as JSON the column `data`. Each area joins its payloads in one union and reads them with a `Codec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from controlplane.errors import Conflict, HephaestusError

T = TypeVar("T")


class JournalError(HephaestusError):
    """Base of all that the journal raises on purpose, but `JournalUnavailable`."""


class VersionConflict(JournalError, Conflict):
    """Somebody else appended to the stream first: load again, decide again."""

    code, status = Conflict.code, Conflict.status

    def __init__(self, stream_id: str, *, expected: int, actual: int) -> None:
        super().__init__(f"stream {stream_id!r} is at version {actual}, not {expected}: load it again and decide again")
        self.stream_id, self.expected, self.actual = stream_id, expected, actual


class GuardRefused(JournalError, Conflict):
    """A guard token was not free; nothing of the append happened."""

    code, status = Conflict.code, Conflict.status

    def __init__(self, scope: str, *, limit: int, holders: Sequence[str]) -> None:
        super().__init__(f"guard {scope!r} allows {limit} at a time and is held by {', '.join(holders) or 'nobody'}")
        self.scope, self.limit, self.holders = scope, limit, tuple(holders)


class ChainBroken(JournalError):
    """The hash chain does not hold: an event was changed, removed or inserted behind the journal's back."""

    def __init__(self, global_pos: int, reason: str) -> None:
        super().__init__(f"the journal's hash chain breaks at event {global_pos}: {reason}; restore it from a backup")
        self.global_pos = global_pos


class UnknownEvent(JournalError):
    """A stream holds an event that this version of the code cannot read; a fold must stop rather than skip it."""

    def __init__(self, stream_id: str, version: int, reason: str) -> None:
        super().__init__(f"event {version} of stream {stream_id!r} cannot be read: {reason}; run a newer version")


class NewEvent(msgspec.Struct, frozen=True):
    """An event to append. occurred_us: None means now; schema_ver: of the payload, for later upcasting."""

    payload: msgspec.Struct
    actor: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    tenant: str = ""
    schema_ver: int = 1
    occurred_us: int | None = None


class Event(msgspec.Struct, frozen=True):
    """An event as it was appended. global_pos orders all events, version (from 1) those of one stream."""

    global_pos: int
    stream_id: str
    version: int
    event_id: str
    type: str
    schema_ver: int
    data: bytes
    occurred_us: int
    actor: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    tenant: str = ""


class NewTimer(msgspec.Struct, frozen=True):
    """Wake the owner of the stream at `due_us`; an id that exists already is rescheduled."""

    id: str
    due_us: int
    kind: str


class Timer(msgspec.Struct, frozen=True):
    """A timer that was set and is not done."""

    id: str
    stream_id: str
    due_us: int
    kind: str


class NewOutbox(msgspec.Struct, frozen=True):
    """A message that must leave because of the events it is appended with. id: the receiver's idempotency key.

    One id goes to one sink once; appending the same pair again changes nothing.
    """

    id: str
    sink: str
    payload: bytes
    next_try_us: int = 0


class OutboxEntry(msgspec.Struct, frozen=True):
    """A message that waits to be sent. row: its key here; global_pos: the event that caused it."""

    row: int
    id: str
    sink: str
    payload: bytes
    global_pos: int
    next_try_us: int
    attempts: int
    created_us: int


class Guard(msgspec.Struct, frozen=True):
    """A token to hold: at most `limit` holders of `scope` at a time; a token frees itself at `expires_us`."""

    scope: str
    holder: str
    limit: int
    expires_us: int


class AppendResult(msgspec.Struct, frozen=True):
    """Where the stream and the journal stand after an append; duplicate: the command had been appended before."""

    version: int
    global_pos: int
    duplicate: bool = False


class ChainHead(msgspec.Struct, frozen=True):
    """The end of a verified hash chain; keep it elsewhere to notice a cut tail."""

    events: int
    global_pos: int
    hash: bytes


def tag_of(payload: msgspec.Struct) -> str:
    """The tag of an event payload, e.g. "run.matched"; raises JournalError if the struct has no text tag."""
    tag = payload.__struct_config__.tag
    if not isinstance(tag, str):
        raise JournalError(f"{type(payload).__name__} has no text tag, so it cannot be an event")
    return tag


class Codec(Generic[T]):
    """Reads the payloads of one area; loud about what it does not know."""

    def __init__(self, union: Any) -> None:  # Any: a union of types is not a type to mypy
        """union: the tagged structs of the area, joined with `|`."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(union)

    def decode(self, event: Event) -> T:
        """The payload of an event; raises UnknownEvent if it is none of this area's."""
        try:
            return self._decoder.decode(event.data)
        except msgspec.MsgspecError as error:
            raise UnknownEvent(event.stream_id, event.version, f"{event.type}: {error}") from error

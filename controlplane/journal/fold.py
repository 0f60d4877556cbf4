"""State is a fold of events; a command loads, folds, decides and appends, and tries again when somebody was faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from controlplane.journal.events import (
    AppendResult,
    Event,
    Guard,
    JournalError,
    NewEvent,
    NewOutbox,
    NewTimer,
    VersionConflict,
)
from controlplane.journal.journal import Journal

S = TypeVar("S")
E = TypeVar("E")
C_co = TypeVar("C_co", covariant=True)

TRIES_MAX = 5


def fold(initial: S, events: Iterable[E], evolve: Callable[[S, E], S]) -> S:
    """The state after all events, oldest first; `evolve` must be pure."""
    state = initial
    for event in events:
        state = evolve(state, event)
    return state


class Decoder(Protocol[C_co]):
    """Reads the payload of an event; a `Codec` is one."""

    def decode(self, event: Event) -> C_co:
        """The payload, or something made from the whole event; raises UnknownEvent."""
        ...


class Changes(msgspec.Struct, frozen=True):
    """What a decision wants appended, in one transaction; no events: nothing is to be done."""

    events: Sequence[NewEvent] = ()
    outbox: Sequence[NewOutbox] = ()
    timers: Sequence[NewTimer] = ()
    timers_done: Sequence[str] = ()
    guards: Sequence[Guard] = ()
    guards_released: Sequence[str] = ()


class Executed(msgspec.Struct, Generic[S], frozen=True):
    """How a command went. state: before it; result: None if it decided to change nothing."""

    state: S
    version: int
    result: AppendResult | None


def execute(
    journal: Journal,
    stream_id: str,
    decide: Callable[[S], Changes],
    *,
    initial: S,
    evolve: Callable[[S, E], S],
    codec: Decoder[E],
    dedup_key: str | None = None,
) -> Executed[S]:
    """Load a stream, fold it, ask `decide`, append what it wants; again, at most five times, on a conflict.

    decide: pure; it may raise to refuse the command. It is asked anew after each conflict.
    Raises VersionConflict when the stream moved on at every try, and what `decide` or the append raises.
    """
    for attempt in range(TRIES_MAX):
        events = journal.load(stream_id)
        state = fold(initial, (codec.decode(event) for event in events), evolve)
        changes = decide(state)
        if not changes.events:
            return Executed(state=state, version=len(events), result=None)
        try:
            result = append_changes(journal, stream_id, len(events), changes, dedup_key=dedup_key)
        except VersionConflict:
            if attempt == TRIES_MAX - 1:
                raise
            continue
        return Executed(state=state, version=result.version, result=result)
    raise JournalError("unreachable: the last try returns or raises")


def append_changes(
    journal: Journal, stream_id: str, expected_version: int | None, changes: Changes, *, dedup_key: str | None = None
) -> AppendResult:
    """Append all that a decision wants; raises what `Journal.append` raises."""
    return journal.append(
        stream_id,
        expected_version,
        changes.events,
        dedup_key=dedup_key,
        outbox=changes.outbox,
        timers=changes.timers,
        timers_done=changes.timers_done,
        guards=changes.guards,
        guards_released=changes.guards_released,
    )

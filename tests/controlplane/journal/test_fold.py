"""Folds and commands: replay gives the same state, and conflicts are decided anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.journal.events import Codec, NewEvent, NewTimer, UnknownEvent, VersionConflict
from controlplane.journal.fold import Changes, execute, fold
from controlplane.journal.journal import Journal
from tests.controlplane.journal.conftest import Opened, Paid

Entry = Opened | Paid
CODEC: Codec[Entry] = Codec(Entry)


class Account(msgspec.Struct, frozen=True):
    """A made-up state."""

    owner: str = ""
    total: int = 0
    events: int = 0


def evolve(state: Account, event: Entry) -> Account:
    """The made-up state after one more event."""
    if isinstance(event, Opened):
        return Account(event.owner, state.total, state.events + 1)
    return Account(state.owner, state.total + event.amount, state.events + 1)


def run(journal: Journal, stream: str, *events: Entry) -> None:
    """Append events by command."""
    execute(
        journal, stream, lambda _: Changes([NewEvent(e) for e in events]), initial=Account(), evolve=evolve, codec=CODEC
    )


PAYLOADS = st.one_of(st.builds(Opened, st.text(max_size=20)), st.builds(Paid, st.integers(-(2**60), 2**60)))


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.tuples(st.sampled_from("abc"), st.lists(PAYLOADS, min_size=1, max_size=4)), max_size=12))
def test_replay_of_any_interleaving_gives_the_state_that_was_there(
    batches: list[tuple[str, list[Entry]]],
) -> None:
    """Folding what was loaded equals folding what was given, stream by stream, and the chain holds."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(f"sqlite:///{Path(folder)}/journal.db")
        given_events: dict[str, list[Entry]] = {"a": [], "b": [], "c": []}
        for stream, events in batches:
            run(journal, stream, *events)
            given_events[stream] += events
        for stream, expected in given_events.items():
            loaded = [CODEC.decode(event) for event in journal.load(stream)]
            assert expected == loaded
            assert fold(Account(), expected, evolve) == fold(Account(), loaded, evolve)
            assert list(range(1, len(expected) + 1)) == [event.version for event in journal.load(stream)]
        everything = journal.read(0, 1000)
        assert list(range(1, len(everything) + 1)) == [event.global_pos for event in everything]
        assert len(everything) == journal.verify_chain().events
        journal.close()


@given(events=st.lists(PAYLOADS, max_size=20), cut=st.integers(0, 20))
def test_a_fold_can_stop_anywhere_and_go_on(events: list[Entry], cut: int) -> None:
    """Folding a head and then the tail equals folding all at once."""
    assert fold(Account(), events, evolve) == fold(fold(Account(), events[:cut], evolve), events[cut:], evolve)


def test_a_conflict_is_decided_anew_on_the_newer_state(journal: Journal) -> None:
    """When somebody appends between load and append, the decision is asked again with what they did."""
    seen: list[int] = []

    def decide(state: Account) -> Changes:
        seen.append(state.total)
        if len(seen) == 1:
            journal.append("a", None, [NewEvent(Paid(10))])
        return Changes([NewEvent(Paid(1))])

    done = execute(journal, "a", decide, initial=Account(), evolve=evolve, codec=CODEC)
    assert [0, 10] == seen
    assert (10, 2) == (done.state.total, done.version)


def test_endless_conflicts_end_after_five_tries(journal: Journal) -> None:
    """A command that is overtaken every time raises the conflict instead of looping."""
    tries: list[int] = []

    def decide(state: Account) -> Changes:
        tries.append(state.total)
        journal.append("a", None, [NewEvent(Paid(1))])
        return Changes([NewEvent(Paid(100))])

    with pytest.raises(VersionConflict):
        execute(journal, "a", decide, initial=Account(), evolve=evolve, codec=CODEC)
    assert [0, 1, 2, 3, 4] == tries


def test_deciding_on_nothing_appends_nothing(journal: Journal) -> None:
    """No events: no append, and the state is handed back."""
    run(journal, "a", Paid(3))
    done = execute(journal, "a", lambda _: Changes(), initial=Account(), evolve=evolve, codec=CODEC)
    assert (3, 1, None) == (done.state.total, done.version, done.result)


def test_all_parts_of_a_decision_are_appended(journal: Journal) -> None:
    """Timers of a decision are set in its append."""
    changes = Changes([NewEvent(Paid(1))], timers=[NewTimer("t", 5, "k")])
    execute(journal, "a", lambda _: changes, initial=Account(), evolve=evolve, codec=CODEC)
    assert ["t"] == [timer.id for timer in journal.due_timers(5, 10)]


class Unheard(msgspec.Struct, frozen=True, tag="account.unheard"):
    """An event of a newer version."""


def test_a_fold_stops_at_an_event_it_does_not_know(journal: Journal) -> None:
    """An unknown event raises, with stream, version and type, rather than being skipped."""
    journal.append("a", 0, [NewEvent(Unheard())])
    with pytest.raises(UnknownEvent, match=r"event 1 of stream 'a'.*account\.unheard"):
        execute(journal, "a", lambda _: Changes(), initial=Account(), evolve=evolve, codec=CODEC)

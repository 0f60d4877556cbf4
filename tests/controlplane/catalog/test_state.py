"""State is a fold of events: the same events always give the same keys and leases."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog.state import (
    STATE_CODEC,
    STATE_TYPES,
    CacheInvalidated,
    CatalogState,
    KeyCreated,
    KeyRevoked,
    KeyRotated,
    LeaseGranted,
    LeaseRenewed,
    LeaseRevoked,
    StateEvent,
    StateReader,
    evolve,
)
from controlplane.contract.snapshot import CacheInvalidation, Lease, LeaseKind
from controlplane.journal.events import NewEvent, tag_of
from controlplane.journal.journal import Journal

IDS = st.sampled_from(["a", "b", "c"])
EVENTS = st.lists(
    st.one_of(
        st.builds(KeyCreated, id=IDS, tenant=st.just("t"), hash=IDS),
        st.builds(KeyRevoked, id=IDS),
        st.builds(
            LeaseGranted,
            st.builds(Lease, id=IDS, kind=st.sampled_from(LeaseKind), deployment=IDS, expires_us=st.integers(1, 9)),
        ),
        st.builds(LeaseRenewed, id=IDS, expires_us=st.integers(1, 99)),
        st.builds(LeaseRevoked, id=IDS),
    ),
    max_size=30,
)


def numbered(events: list[StateEvent], start: int = 0) -> list[tuple[StateEvent, int, int]]:
    """Events as the journal gives them, one a microsecond."""
    return [(event, 1_000 + at, at) for at, event in enumerate(events, start + 1)]


@given(EVENTS, st.integers(0, 30))
def test_folding_in_two_parts_is_folding_at_once(events: list[StateEvent], cut: int) -> None:
    """A reader that stops anywhere and goes on later has the state of one that never stopped, and changes nothing it gave out."""
    whole = evolve(CatalogState(), numbered(events))
    first = evolve(CatalogState(), numbered(events[:cut]))
    before = (dict(first.keys), dict(first.leases))
    assert whole == evolve(first, numbered(events[cut:], start=min(cut, len(events))))
    assert before == (first.keys, first.leases)


@given(EVENTS)
def test_revoked_stays_revoked(events: list[StateEvent]) -> None:
    """A key whose last event is its revocation is revoked, a lease whose last event is its revocation is gone."""
    state = evolve(CatalogState(), numbered(events))
    for name in "abc":
        own = [event for event in events if isinstance(event, KeyCreated | KeyRevoked) and event.id == name]
        if own and isinstance(own[-1], KeyRevoked) and any(isinstance(event, KeyCreated) for event in own):
            assert 0 < state.keys[name].revoked_us
        granted = [event for event in events if isinstance(event, LeaseGranted) and event.lease.id == name]
        revoked = [event for event in events if isinstance(event, LeaseRevoked) and event.id == name]
        last = max((at for at, event in enumerate(events) if event in granted or event in revoked), default=None)
        if last is not None:
            assert isinstance(events[last], LeaseGranted) == (name in state.leases)


def test_revocation_keeps_its_first_moment() -> None:
    """Revoking twice does not move the moment at which the key became worthless."""
    state = evolve(
        CatalogState(), numbered([KeyCreated(id="a", tenant="t", hash="h"), KeyRevoked("a"), KeyRevoked("a")])
    )
    assert (1_001, 1_002) == (state.keys["a"].created_us, state.keys["a"].revoked_us)


def test_events_are_known_by_their_types(journal: Journal) -> None:
    """The list of types that the reader asks the journal for is that of the events it can read."""
    lease = Lease(id="l", kind=LeaseKind.DRAIN, deployment="d", expires_us=5)
    events: list[StateEvent] = [
        KeyCreated(id="a", tenant="t", hash="h"),
        KeyRotated("a", hash="i", grace_until_us=7),
        KeyRevoked("a"),
        LeaseGranted(lease),
        LeaseRenewed("l", 9),
        LeaseRevoked("l"),
        CacheInvalidated(CacheInvalidation(id="c", before_us=1, expires_us=2)),
    ]
    assert STATE_TYPES == tuple(tag_of(event) for event in events)
    journal.append("s", 0, [NewEvent(payload=event) for event in events])
    assert events == [STATE_CODEC.decode(event) for event in journal.load("s")]


def test_reader_follows_the_journal(journal: Journal) -> None:
    """A reader takes in what was appended since, over more than one page, and skips what others say in streams of their own."""

    class Told(msgspec.Struct, frozen=True, tag="lease.granted"):
        """A run's own account of a lease."""

    reader = StateReader(journal)
    assert CatalogState() == reader.refresh()
    journal.append("run/1", 0, [NewEvent(payload=Told())])
    created = [NewEvent(payload=KeyCreated(id=f"k{n}", tenant="t", hash=f"h{n}")) for n in range(1_500)]
    journal.append("key/many", 0, created)
    assert 1_500 == len(reader.refresh().keys)
    journal.append("key/many", None, [NewEvent(payload=KeyRevoked("k7"))])
    journal.append("run/1", None, [NewEvent(payload=Told())])
    assert 0 < reader.refresh().keys["k7"].revoked_us
    assert journal.position() == reader.state.position
    assert reader.state is reader.refresh()

"""Calls: filters, pages without gaps or repetitions, and one call as it was reported."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, CacheState, CallRecord, Outcome, Payload
from controlplane.errors import BadRequest, NotFound
from controlplane.store.client import Store
from controlplane.store.queries.calls import CallFilter, list_calls, show_call
from tests.controlplane.store.fakes import START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

EVERYTHING = CallFilter(from_us=START_US - 10**12, to_us=START_US + 10**12)


def a_full_call() -> CallRecord:
    """A call that uses every field."""
    return a_call(
        1,
        outcome=Outcome.TIMED_OUT,
        status=504,
        cache=CacheState.COALESCED,
        tokens=Tokens(1, 2, 3, 4, 5, 6, 7, 8),
        cost_nanousd=999_999_999_999_999_999,
        saved_nanousd=1,
        attempts=(
            an_attempt(error=AttemptError.STATUS_5XX, cost_nanousd=5),
            an_attempt("azure/gpt", at_us=START_US + 500_000, cost_nanousd=999_999_999_999_999_994, probe=True),
        ),
        payload=Payload(b'{"a": "\xff"}', b"", 7),
    )


def test_shown_as_it_was_reported(store: Store) -> None:
    """A call comes back equal to its record: attempts, bodies, every token and nano-USD."""
    call = a_full_call()
    fill(store, call, a_call(2))
    assert call == show_call(store, call.call_id)


def test_unknown_call_is_not_found(store: Store) -> None:
    """A call that is not stored is not found, whatever its id looks like."""
    for call_id in ("call_x", "", "' OR 1=1 --"):
        with pytest.raises(NotFound):
            show_call(store, call_id)


def test_list_is_newest_first_without_attempts(store: Store) -> None:
    """A list holds the calls of the time asked for, newest first."""
    calls = [a_call(n, at_us=START_US + n) for n in range(5)]
    fill(store, *calls)
    bare = [msgspec.structs.replace(call, attempts=()) for call in calls]
    assert bare[::-1] == list_calls(store, EVERYTHING)
    some = CallFilter(from_us=START_US + 1, to_us=START_US + 4)
    assert bare[3:0:-1] == list_calls(store, some)


@pytest.mark.parametrize(
    ("field", "value", "matches"),
    [
        ("tenant", "beta", {2}),
        ("agent", "miner", {3}),
        ("session", "s-9", {4}),
        ("model", "claude", {5}),
        ("model", "alias-6", {6}),
        ("deployment", "anthropic/claude", {5}),
        ("outcome", "exhausted", {7}),
        ("cache", "hit", {8}),
        ("tenant", "' OR 1=1 --", set()),
    ],
)
def test_filters(store: Store, field: str, value: str, matches: set[int]) -> None:
    """Each filter keeps exactly the calls that match."""
    fill(
        store,
        a_call(1),
        a_call(2, tenant="beta"),
        a_call(3, agent="miner"),
        a_call(4, session="s-9"),
        a_call(5, deployment="anthropic/claude"),
        a_call(6, alias="alias-6"),
        a_call(7, outcome=Outcome.EXHAUSTED),
        a_call(8, cache=CacheState.HIT),
    )
    found = list_calls(store, msgspec.structs.replace(EVERYTHING, **{field: value}))
    assert matches == {int(call.call_id.removeprefix("call_")) for call in found}


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_pages_have_no_gaps_and_no_repetitions(store: Store, size: int) -> None:
    """Page after page gives every call once, also among calls that started in the same microsecond."""
    fill(store, *(a_call(n, at_us=START_US + n // 4) for n in range(23)))
    seen: list[CallRecord] = []
    wanted = msgspec.structs.replace(EVERYTHING, limit=size)
    while page := list_calls(store, wanted):
        seen += page
        wanted = msgspec.structs.replace(wanted, before_us=page[-1].started_us, before_call_id=page[-1].call_id)
    assert [f"call_{n:026d}" for n in range(22, -1, -1)] == [call.call_id for call in seen]


@pytest.mark.parametrize("limit", [0, -1, 2**32])
def test_page_size_is_bounded(store: Store, limit: int) -> None:
    """A page of nothing or of everything is refused."""
    with pytest.raises(BadRequest):
        list_calls(store, msgspec.structs.replace(EVERYTHING, limit=limit))

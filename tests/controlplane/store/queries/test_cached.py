"""How many stored answers fit a selection."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.contract.records import CacheState, CallRecord, Outcome
from controlplane.store.client import Store
from controlplane.store.queries.cached import Cached, count_cached
from tests.controlplane.store.fakes import START_US, a_call
from tests.controlplane.store.fill import fill

MISS = CacheState.MISS


def _call(
    number: int, *, tags: dict[str, str] | None = None, model: str = "m", channel: str = "", **fields: object
) -> CallRecord:
    """A call whose answer has ten bytes."""
    call = a_call(number, **fields)  # type: ignore[arg-type]
    return msgspec.structs.replace(call, tags=tags or {}, model=model, channel=channel, response_bytes=10)


@pytest.mark.parametrize(
    ("selectors", "entries"),
    [
        ({}, 5),
        ({"tenant": "globex"}, 1),
        ({"tag": "team"}, 2),
        ({"tag": "team=search"}, 1),
        ({"tag": "team=sear"}, 0),
        ({"alias": "deep"}, 1),
        ({"model": "m-2"}, 1),
        ({"agent": "bot"}, 1),
        ({"tenant": "globex", "agent": "bot"}, 0),
        ({"before_us": START_US + 2}, 2),
        ({"from_us": START_US + 2}, 3),
        ({"agent": "again"}, 1),
    ],
)
def test_answers_that_were_stored_are_counted(store: Store, selectors: dict[str, str | int], entries: int) -> None:
    """A miss that ended well was stored, and so was what was asked anew; hits, other bypasses and failures were not. Every selector narrows."""
    fill(
        store,
        _call(1, cache=MISS, tags={"team": "search"}, at_us=START_US),
        _call(2, cache=MISS, tags={"team": "ads"}, at_us=START_US + 1, alias="deep"),
        _call(3, cache=MISS, tenant="globex", at_us=START_US + 2, model="m-2"),
        _call(4, cache=MISS, agent="bot", at_us=START_US + 3),
        _call(5, cache=CacheState.HIT, at_us=START_US),
        _call(6, cache=CacheState.BYPASS, at_us=START_US),
        _call(8, cache=CacheState.BYPASS, at_us=START_US + 4, agent="again", channel="cache-refresh"),
        _call(7, cache=MISS, at_us=START_US, outcome=Outcome.EXHAUSTED, status=502),
    )
    wanted = {"from_us": START_US - 10, "before_us": START_US + 10} | dict.fromkeys(
        ("tenant", "tag", "alias", "model", "agent"), ""
    )
    assert Cached(entries, 10 * entries) == count_cached(store, **(wanted | selectors))  # type: ignore[arg-type]

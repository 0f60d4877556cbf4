"""Costs: every report adds up to the same total, to the nano-USD."""

from __future__ import annotations

import random

import msgspec
import pytest

from controlplane.contract.pricing import ITEM_KINDS, TOKEN_KINDS, Item, Tokens
from controlplane.contract.records import CallRecord, CostState
from controlplane.errors import BadRequest, TooLarge
from controlplane.store.client import Store
from controlplane.store.queries.calls import show_call
from controlplane.store.queries.costs import DIMENSIONS, costs_by, total_cost, total_nanousd
from tests.controlplane.store.fakes import START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

DAY_US = 86_400_000_000
FROM_US, TO_US = START_US, START_US + 3 * DAY_US


def many_calls() -> list[CallRecord]:
    """Three hundred calls over three days with amounts of every size."""
    dice = random.Random(7)
    return [
        a_call(
            n,
            at_us=START_US + dice.randrange(3 * DAY_US),
            tenant=dice.choice(["acme", "beta", "gamma"]),
            agent=dice.choice(["scout", "miner"]),
            session=f"s-{dice.randrange(40)}",
            deployment=dice.choice(["openai/gpt", "azure/gpt", "anthropic/claude"]),
            cost_nanousd=dice.choice([0, 1, dice.randrange(10**6), dice.randrange(10**18)]),
            saved_nanousd=dice.randrange(10**9),
            cost_state=dice.choice(list(CostState)),
            tokens=Tokens(*(dice.randrange(1000) for _ in TOKEN_KINDS)),
        )
        for n in range(300)
    ]


@pytest.mark.parametrize(
    "dimensions", [(), ("tenant",), ("session", "day"), ("tenant", "agent", "model"), *((name,) for name in DIMENSIONS)]
)
def test_every_report_adds_up(store: Store, dimensions: tuple[str, ...]) -> None:
    """Whatever costs are asked by, rows sum to the records' own sums: money, tokens and counts."""
    calls = many_calls()
    fill(store, *calls)
    rows = costs_by(store, dimensions, from_us=FROM_US, to_us=TO_US)
    assert sum(call.cost_nanousd for call in calls) == sum(row.cost_nanousd for row in rows)
    assert sum(call.saved_nanousd for call in calls) == sum(row.saved_nanousd for row in rows)
    assert len(calls) == sum(row.calls for row in rows)
    for kind in TOKEN_KINDS:
        assert sum(getattr(call.tokens, kind) for call in calls) == sum(getattr(row.tokens, kind) for row in rows)
    for state, name in (("final", "calls_final"), ("estimated", "calls_estimated"), ("unpriced", "calls_unpriced")):
        assert sum(call.cost_state == state for call in calls) == sum(getattr(row, name) for row in rows)
    assert sum(call.cost_nanousd for call in calls) == total_nanousd(store, from_us=FROM_US, to_us=TO_US)
    assert [row.by for row in rows] == sorted(row.by for row in rows)


def test_rows_are_the_groups(store: Store) -> None:
    """Each row holds what the calls of its group cost."""
    calls = many_calls()
    fill(store, *calls)
    expected: dict[tuple[str, ...], int] = {}
    for call in calls:
        key = (call.tenant, call.session)
        expected[key] = expected.get(key, 0) + call.cost_nanousd
    rows = costs_by(store, ("tenant", "session"), from_us=FROM_US, to_us=TO_US)
    assert expected == {row.by: row.cost_nanousd for row in rows}


def test_time_is_half_open_and_tenants_are_apart(store: Store) -> None:
    """A call at the start counts, one at the end does not, and another tenant's never does."""
    fill(
        store,
        a_call(1, at_us=FROM_US, cost_nanousd=1),
        a_call(2, at_us=TO_US - 1, cost_nanousd=2),
        a_call(3, at_us=TO_US, cost_nanousd=4),
        a_call(4, at_us=FROM_US - 1, cost_nanousd=8),
        a_call(5, at_us=FROM_US, tenant="beta", cost_nanousd=16),
    )
    assert total_nanousd(store, from_us=FROM_US, to_us=TO_US) == 19
    assert total_cost(store, from_us=FROM_US, to_us=TO_US, tenant="acme").cost_nanousd == 3


def test_days_hours_and_months_are_utc(store: Store) -> None:
    """Times in reports are UTC and read as dates."""
    fill(store, a_call(1, at_us=START_US))
    (row,) = costs_by(store, ("day", "hour", "month"), from_us=FROM_US, to_us=TO_US)
    assert row.by == ("2027-01-15", "2027-01-15T08:00Z", "2027-01")


def test_nothing_costs_nothing(store: Store) -> None:
    """No calls: no rows, and a total of zero."""
    assert costs_by(store, ("tenant",), from_us=FROM_US, to_us=TO_US) == []
    assert total_nanousd(store, from_us=FROM_US, to_us=TO_US) == 0


@pytest.mark.parametrize("dimensions", [("planet",), ("tenant", "tenant"), ("tenant; DROP TABLE calls",), ("",)])
def test_unknown_dimensions_are_refused(store: Store, dimensions: tuple[str, ...]) -> None:
    """Only the listed dimensions, each once."""
    with pytest.raises(BadRequest, match="tenant"):
        costs_by(store, dimensions, from_us=FROM_US, to_us=TO_US)


def test_too_many_rows_are_refused(store: Store) -> None:
    """A report that would be cut is refused instead."""
    fill(store, *many_calls())
    with pytest.raises(TooLarge, match="more than 10 rows"):
        costs_by(store, ("session",), from_us=FROM_US, to_us=TO_US, rows_max=10)


def test_what_is_no_token_stands_apart(store: Store) -> None:
    """Items of every kind come back from their attempt exactly, and reports sum them by kind: a part of the cost, not more."""
    dice = random.Random(3)
    calls = []
    for n in range(40):
        items = tuple(
            Item(kind, dice.randrange(1, 10**9), dice.choice([None, dice.randrange(10**12)]))
            for kind in sorted(dice.sample(ITEM_KINDS, dice.randrange(4)))
        )
        attempt = msgspec.structs.replace(an_attempt(), cost_nanousd=10**13, items=items)
        calls.append(a_call(n, tenant=dice.choice(["acme", "beta"]), cost_nanousd=10**13, attempts=(attempt,)))
    fill(store, *calls)
    for call in calls:
        assert call.items == show_call(store, call.call_id).items
    for row in costs_by(store, ("tenant",), from_us=FROM_US, to_us=TO_US):
        expected: dict[str, int] = {}
        for item in (item for call in calls if (call.tenant,) == row.by for item in call.items):
            if item.nanousd is not None:
                expected[item.kind] = expected.get(item.kind, 0) + item.nanousd
        assert expected == row.items_nanousd
        assert row.cost_nanousd >= sum(row.items_nanousd.values())

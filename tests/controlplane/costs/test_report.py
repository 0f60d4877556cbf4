"""A report adds up to the nano-USD, and says how complete it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import TOKEN_KINDS, Tokens
from controlplane.contract.records import CacheState, CallRecord, CostState
from controlplane.contract.snapshot import ProxyStatus
from controlplane.costs.report import US_PER_DAY, CostReport, build, cost_report, reconcile, total_of
from controlplane.costs.savings import Confidence, savings
from controlplane.errors import BadRequest, TooLarge
from controlplane.store.client import Store
from controlplane.store.queries.costs import CostRow, total_cost
from tests.controlplane.store.fakes import START_US, a_call
from tests.controlplane.store.fill import fill

AMOUNTS = st.integers(0, 10**18)
ROWS = st.builds(
    CostRow,
    by=st.tuples(st.text(max_size=5)),
    calls=st.integers(1, 10**6),
    tokens=st.builds(Tokens, *([st.integers(0, 10**9)] * len(TOKEN_KINDS))),
    cost_nanousd=AMOUNTS,
    saved_nanousd=AMOUNTS,
    calls_final=st.integers(0, 10**6),
    calls_estimated=st.integers(0, 10**6),
    calls_unpriced=st.integers(0, 10**6),
)
PERIOD = {"from_us": START_US, "to_us": START_US + 2 * US_PER_DAY, "generated_us": START_US + 3 * US_PER_DAY}


def asked(store: Store, *dimensions: str, rows_max: int = 100) -> CostReport:
    """A report on the period of these tests."""
    from_us, to_us, generated_us = PERIOD.values()
    return cost_report(
        store,
        dimensions,
        from_us=from_us,
        to_us=to_us,
        generated_us=generated_us,
        price_book="2026-01-01",
        rows_max=rows_max,
    )


def some_calls() -> list[CallRecord]:
    """Calls of two tenants over two days, one estimated, one unpriced, two not paid for."""
    return [
        a_call(1, at_us=START_US, tenant="acme", agent="a", cost_nanousd=9 * 10**17 + 1, cost_state=CostState.FINAL),
        a_call(
            2, at_us=START_US + US_PER_DAY, tenant="acme", agent="b", cost_nanousd=2, cost_state=CostState.ESTIMATED
        ),
        a_call(3, at_us=START_US, tenant="beta", agent="a", cost_nanousd=0, cost_state=CostState.UNPRICED),
        a_call(4, at_us=START_US, tenant="beta", agent="a", cost_nanousd=0, saved_nanousd=7, cache=CacheState.HIT),
        a_call(5, at_us=START_US, tenant="beta", agent="a", cost_nanousd=0, saved_nanousd=3, cache=CacheState.SEMANTIC),
        a_call(6, at_us=START_US + 2 * US_PER_DAY, tenant="beta", cost_nanousd=5),
    ]


@given(st.lists(ROWS, max_size=20))
def test_the_total_is_the_sum_of_the_rows(rows: list[CostRow]) -> None:
    """Whatever the rows, every number of the total is the sum of theirs, and no row is lost or doubled."""
    report = build(("tenant",), rows, price_book="v", **PERIOD)
    assert sorted(rows, key=repr) == sorted(report.rows, key=repr)
    for name in ("calls", "cost_nanousd", "saved_nanousd", "calls_final", "calls_estimated", "calls_unpriced"):
        assert sum(getattr(row, name) for row in rows) == getattr(report.total, name)
    for kind in TOKEN_KINDS:
        assert sum(getattr(row.tokens, kind) for row in rows) == getattr(report.total.tokens, kind)
    assert [row.cost_nanousd for row in report.rows] == sorted((row.cost_nanousd for row in rows), reverse=True)


@pytest.mark.parametrize(
    "dimensions", [(), ("tenant",), ("agent", "session"), ("tenant", "agent", "session", "model", "day")]
)
def test_every_grouping_of_real_rows_has_the_same_total(store: Store, dimensions: tuple[str, ...]) -> None:
    """On the real store, any combination of dimensions adds up to the store's own total, and the header counts the states."""
    fill(store, *some_calls())
    report = asked(store, *dimensions)
    assert total_cost(store, from_us=PERIOD["from_us"], to_us=PERIOD["to_us"]) == report.total
    assert 9 * 10**17 + 3 == report.total.cost_nanousd
    header = report.header
    assert (5, 3, 1, 1) == (header.calls, header.calls_final, header.calls_estimated, header.calls_unpriced)
    assert ("USD", "UTC", "2026-01-01", PERIOD["generated_us"]) == (
        header.currency,
        header.timezone,
        header.price_book,
        header.generated_us,
    )


def test_rows_are_in_the_order_people_look_for(store: Store) -> None:
    """Dearest first, but by time where time is asked for."""
    fill(store, *some_calls())
    assert [("acme",), ("beta",)] == [row.by for row in asked(store, "tenant").rows]
    days = [row.by[0] for row in asked(store, "day", "tenant").rows]
    assert sorted(days) == days


def test_a_report_of_nothing_is_a_report(store: Store) -> None:
    """A period without calls has no rows and a total of zero."""
    report = asked(store)
    assert ((), 0, 0) == (report.rows, report.total.calls, report.total.cost_nanousd)


def test_bad_wishes_are_refused(store: Store) -> None:
    """An empty period, an unknown dimension and too many rows are refused."""
    fill(store, *some_calls())
    with pytest.raises(BadRequest, match="ends before it begins"):
        cost_report(store, (), from_us=5, to_us=5, generated_us=1, price_book="v")
    with pytest.raises(BadRequest):
        asked(store, "tenant; DROP TABLE calls")
    with pytest.raises(TooLarge):
        asked(store, "tenant", rows_max=1)


def test_reconciliation_tells_the_difference_to_the_nano_usd() -> None:
    """Rows less ledgers, in calls and nano-USD, with what is still under way; equal counts agree."""
    total = CostRow(
        by=(),
        calls=10,
        tokens=Tokens(),
        cost_nanousd=10**18,
        saved_nanousd=0,
        calls_final=10,
        calls_estimated=0,
        calls_unpriced=0,
    )
    one, two = (
        ProxyStatus(proxy_id=name, at_us=1, snapshot_version=1, ledger_calls=5, ledger_nanousd=5 * 10**17)
        for name in "ba"
    )
    equal = reconcile(total, [one, two])
    assert (0, 0, ("a", "b"), True) == (equal.difference_calls, equal.difference_nanousd, equal.proxies, equal.agrees)
    late = ProxyStatus(proxy_id="c", at_us=1, snapshot_version=1, ledger_calls=1, ledger_nanousd=1, spool_bytes=300)
    behind = reconcile(total, [one, two, late])
    assert (-1, -1, 300, False) == (
        behind.difference_calls,
        behind.difference_nanousd,
        behind.spool_bytes,
        behind.agrees,
    )


def test_savings_come_from_stored_and_joined_answers_only(store: Store) -> None:
    """Savings are by tenant and means, exact for the same request and priced for a similar one; what was paid is beside them."""
    fill(store, *some_calls())
    report = savings(store, from_us=PERIOD["from_us"], to_us=PERIOD["to_us"])
    assert [
        ("beta", CacheState.HIT, Confidence.EXACT, 1, 7),
        ("beta", CacheState.SEMANTIC, Confidence.PRICED, 1, 3),
    ] == [(line.tenant, line.source, line.confidence, line.calls, line.saved_nanousd) for line in report.lines]
    assert (10, 9 * 10**17 + 3) == (report.saved_nanousd, report.spent_nanousd)
    with pytest.raises(BadRequest):
        savings(store, from_us=2, to_us=1)


def test_no_rows_total_nothing() -> None:
    """The sum of no rows is zero of everything."""
    assert (0, 0, Tokens()) == (total_of([]).calls, total_of([]).cost_nanousd, total_of([]).tokens)

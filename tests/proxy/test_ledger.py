"""Tests of the ledger: it never overspends, and it is the sum of its records."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import Budget, TenantPolicy, Window
from proxy.ledger import Ledger, LedgerState, Refused, Reservation
from proxy.quotas.account import Share
from proxy.quotas.windows import NEVER_US, window_bounds
from tests.proxy.state_fakes import NOON_US, make_record

MOMENTS = st.integers(0, 4_000_000_000_000_000)  # until the year 2096
AMOUNTS = st.integers(0, 50)
WINDOWS = st.sampled_from(Window)


def _us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def _reserved(
    ledger: Ledger, policy: TenantPolicy, *, tokens: int = 0, nanousd: int = 0, now_us: int = NOON_US
) -> Reservation:
    held = ledger.reserve(policy, tokens=tokens, nanousd=nanousd, now_us=now_us)
    assert isinstance(held, Reservation)
    return held


@pytest.mark.parametrize(
    ("window", "at", "start", "end"),
    [
        (Window.MINUTE, "2026-02-28T23:59:59", "2026-02-28T23:59:00", "2026-03-01T00:00:00"),
        (Window.HOUR, "2026-02-28T23:59:59", "2026-02-28T23:00:00", "2026-03-01T00:00:00"),
        (Window.DAY, "2024-02-28T12:00:00", "2024-02-28T00:00:00", "2024-02-29T00:00:00"),
        (Window.MONTH, "2024-02-29T12:00:00", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
        (Window.MONTH, "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_windows_are_those_of_the_utc_calendar(window: Window, at: str, start: str, end: str) -> None:
    """A window starts and ends where an operator's calendar says, leap days and turns of the year included."""
    assert (_us(start), _us(end)) == window_bounds(window, _us(at))


@given(WINDOWS, MOMENTS)
def test_windows_tile_time(window: Window, at_us: int) -> None:
    """Each moment is in exactly one window of a kind: the next begins where this one ends."""
    start_us, end_us = window_bounds(window, at_us)
    assert start_us <= at_us < end_us
    if window is not Window.TOTAL:
        assert (start_us, end_us) == window_bounds(window, end_us - 1)
        assert end_us == window_bounds(window, end_us)[0]


def test_a_refusal_moves_nothing() -> None:
    """When the last of several scopes refuses, none of them holds anything."""
    policy = TenantPolicy(
        "acme",
        tokens_per_minute=100,
        budgets=(Budget("a", Window.DAY, nanousd=100), Budget("b", Window.TOTAL, nanousd=10)),
    )
    ledger = Ledger()
    refused = ledger.reserve(policy, tokens=5, nanousd=11, now_us=NOON_US)
    assert Refused("b", "nanousd", 10, 10, 0, 0, 11, NEVER_US, budget=True) == refused
    assert (0, 0) == ledger.reserved("acme")


def test_a_refusal_names_scope_and_reset() -> None:
    """The first scope that is in the way says what is used, what is held and when it starts anew."""
    policy = TenantPolicy("acme", tokens_per_minute=100)
    ledger = Ledger()
    ledger.book(make_record(tokens=60))
    _reserved(ledger, policy, tokens=30)
    refused = ledger.reserve(policy, tokens=11, nanousd=0, now_us=NOON_US)
    assert (
        Refused("tokens_per_minute", "tokens", 100, 100, 60, 30, 11, NOON_US + 60_000_000, budget=True, minute=True)
        == refused
    )
    assert isinstance(ledger.reserve(policy, tokens=10, nanousd=0, now_us=NOON_US), Reservation)


def test_a_new_window_begins_empty_but_for_calls_in_flight() -> None:
    """After a roll-over nothing is settled, and what is in flight is held against the new window."""
    policy = TenantPolicy("acme", budgets=(Budget("m", Window.MINUTE, tokens=100),))
    ledger = Ledger()
    ledger.book(make_record(tokens=50))
    held = _reserved(ledger, policy, tokens=50)
    next_us = NOON_US + 60_000_000
    assert isinstance(ledger.reserve(policy, tokens=51, nanousd=0, now_us=next_us), Refused)
    ledger.release(held)
    ledger.book(make_record(tokens=50, at_us=next_us + 5))
    assert 50 == ledger.settled("acme", Window.MINUTE, now_us=next_us).tokens
    assert 100 == ledger.settled("acme", Window.HOUR, now_us=next_us).tokens


def test_releasing_twice_gives_back_once() -> None:
    """A second release of the same reservation changes nothing."""
    policy = TenantPolicy("acme", budgets=(Budget("t", Window.TOTAL, tokens=100),))
    ledger = Ledger()
    held, other = _reserved(ledger, policy, tokens=40), _reserved(ledger, policy, tokens=40)
    ledger.release(held)
    ledger.release(held)
    assert (40, 0) == ledger.reserved("acme")
    ledger.release(other)
    assert (0, 0) == ledger.reserved("acme")


def test_a_budget_added_later_counts_what_was_spent_before() -> None:
    """Spending is kept for every kind of window, whether or not the tenant had a budget for it."""
    ledger = Ledger()
    ledger.book(make_record(nanousd=90))
    policy = TenantPolicy("acme", budgets=(Budget("new", Window.MONTH, nanousd=100),))
    assert isinstance(ledger.reserve(policy, tokens=0, nanousd=11, now_us=NOON_US), Refused)
    assert isinstance(ledger.reserve(policy, tokens=0, nanousd=10, now_us=NOON_US), Reservation)


def test_tenants_do_not_share() -> None:
    """One tenant's spending never stands in another's way."""
    ledger = Ledger()
    ledger.book(make_record(tenant="other", nanousd=1000))
    policy = TenantPolicy("acme", budgets=(Budget("t", Window.TOTAL, nanousd=1),))
    assert isinstance(ledger.reserve(policy, tokens=0, nanousd=1, now_us=NOON_US), Reservation)


@given(limit=st.integers(0, 100), workers=st.integers(1, 40))
def test_all_workers_together_let_in_the_limit_and_no_token_more(limit: int, workers: int) -> None:
    """The shares sum to the limit, also where it is smaller than the number of workers."""
    policy = TenantPolicy("acme", budgets=(Budget("t", Window.TOTAL, tokens=limit),), tokens_per_minute=limit)
    let_in = 0
    for number in range(workers):
        ledger = Ledger(share=Share(number, workers))
        while isinstance(ledger.reserve(policy, tokens=1, nanousd=0, now_us=NOON_US), Reservation):
            let_in += 1
    assert limit == let_in


@given(amount=st.integers(0, 10**12), more=st.integers(0, 10**12), workers=st.integers(1, 64), data=st.data())
def test_a_share_never_falls_when_the_amount_grows(amount: int, more: int, workers: int, data: st.DataObject) -> None:
    """So a share of what was spent within a limit is within the same share of the limit."""
    share = Share(data.draw(st.integers(0, workers - 1)), workers)
    assert share.of(amount) <= share.of(amount + more)


def test_a_clock_that_was_put_back_does_not_switch_budgets_off() -> None:
    """A clock that ran far ahead and was corrected counts spending in the windows it says now."""
    ledger = Ledger()
    ledger.book(make_record(nanousd=70, at_us=_us("2027-12-01T00:00:00")))
    ledger.book(make_record(nanousd=60))
    assert 60 == ledger.settled("acme", Window.DAY, now_us=NOON_US).nanousd
    assert 130 == ledger.settled("acme", Window.TOTAL, now_us=NOON_US).nanousd


@pytest.mark.parametrize("window", [Window.HOUR, Window.DAY, Window.MONTH])
def test_a_clock_that_errs_for_a_while_makes_no_budget_forget(window: Window) -> None:
    """A clock that jumps into the next window and is put back finds what was spent before, over a restart too."""
    policy = TenantPolicy("acme", budgets=(Budget("b", window, nanousd=100),))
    ledger = Ledger()
    ledger.book(make_record(nanousd=90))
    later_us = window_bounds(window, NOON_US)[1] + 5_000_000
    assert isinstance(ledger.reserve(policy, tokens=0, nanousd=50, now_us=later_us), Reservation)
    restarted = Ledger()
    restarted.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(ledger.state()), type=LedgerState))
    for one in (ledger, restarted):
        assert 90 == one.settled("acme", window, now_us=NOON_US).nanousd
    assert isinstance(restarted.reserve(policy, tokens=0, nanousd=11, now_us=NOON_US), Refused)
    assert isinstance(restarted.reserve(policy, tokens=0, nanousd=10, now_us=NOON_US), Reservation)


def test_a_record_of_the_minute_before_stays_in_it() -> None:
    """A record settled just before a roll-over that was seen first is not charged to the new minute."""
    policy = TenantPolicy("acme", budgets=(Budget("m", Window.MINUTE, tokens=100),))
    ledger = Ledger()
    ledger.release(_reserved(ledger, policy, tokens=1))
    ledger.book(make_record(tokens=30, at_us=NOON_US - 1))
    assert 0 == ledger.settled("acme", Window.MINUTE, now_us=NOON_US).tokens
    assert 30 == ledger.settled("acme", Window.TOTAL, now_us=NOON_US).tokens


def test_budget_status_reports_each_budget_of_a_tenant_that_spent() -> None:
    """The status has a line for each budget, with its window's start and both amounts."""
    policy = TenantPolicy("acme", budgets=(Budget("d", Window.DAY, nanousd=100), Budget("t", Window.TOTAL, tokens=9)))
    ledger = Ledger()
    ledger.book(make_record(tokens=3, nanousd=30))
    _reserved(ledger, policy, tokens=2, nanousd=20)
    day, total = ledger.budgets((policy, TenantPolicy("idle")), now_us=NOON_US)
    assert ("acme", "d", window_bounds(Window.DAY, NOON_US)[0]) == (day.tenant, day.budget, day.window_start_us)
    assert (30, 20, 3, 2) == (
        day.settled_nanousd,
        day.reserved_nanousd,
        day.settled_tokens,
        day.reserved_tokens,
    )
    assert ("t", 3) == (total.budget, total.settled_tokens)


@given(
    st.lists(
        st.builds(
            make_record,
            tenant=st.sampled_from(["a", "b", ""]),
            tokens=AMOUNTS,
            nanousd=AMOUNTS,
            at_us=st.integers(NOON_US - 50_000_000, NOON_US + 200_000_000),
        )
    ),
    st.integers(0, 30),
)
def test_a_restored_ledger_goes_on_as_if_nothing_had_happened(records: list[CallRecord], cut: int) -> None:
    """State taken anywhere, encoded, restored, and booked on, equals the ledger that never stopped."""
    whole, first = Ledger(), Ledger()
    for record in records:
        whole.book(record)
    for record in records[:cut]:
        first.book(record)
    second = Ledger()
    second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.state()), type=LedgerState))
    for record in records[cut:]:
        second.book(record)
    assert whole.state() == second.state()
    assert (len(records), sum(record.cost_nanousd for record in records)) == (second.calls, second.nanousd)


class LedgerMachine(RuleBasedStateMachine):
    """Calls come, are settled at no more than they reserved, and time passes, in any order."""

    @initialize(
        minute=st.none() | st.integers(0, 120),
        budgets=st.lists(
            st.tuples(WINDOWS, st.none() | st.integers(0, 150), st.none() | st.integers(0, 150)), max_size=3
        ),
    )
    def begin(self, minute: int | None, budgets: list[tuple[Window, int | None, int | None]]) -> None:
        """A tenant with some limits."""
        self.policy = TenantPolicy(
            "acme",
            tokens_per_minute=minute,
            budgets=tuple(
                Budget(f"b{index}", window, nanousd=nanousd, tokens=tokens)
                for index, (window, nanousd, tokens) in enumerate(budgets)
            ),
        )
        self.ledger = Ledger()
        self.now_us = NOON_US
        self.open: list[Reservation] = []
        self.records: list[CallRecord] = []

    @rule(tokens=AMOUNTS, nanousd=AMOUNTS)
    def reserve(self, tokens: int, nanousd: int) -> None:
        """A call comes."""
        held = self.ledger.reserve(self.policy, tokens=tokens, nanousd=nanousd, now_us=self.now_us)
        if isinstance(held, Reservation):
            self.open.append(held)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """A call ends, late perhaps, and costs at most what it reserved."""
        held = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        record = make_record(
            tokens=data.draw(st.integers(0, held.tokens)),
            nanousd=data.draw(st.integers(0, held.nanousd)),
            at_us=self.now_us,
        )
        self.ledger.release(held)
        self.ledger.book(record)
        self.records.append(record)

    @rule(seconds=st.sampled_from([0.001, 1, 30, 60, 3600, 86_400, 2_700_000]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_us += int(seconds * 1_000_000)

    @invariant()
    def nothing_is_overspent(self) -> None:
        """In every window that ever was, settled is within the limit, and now with what is held as well."""
        tokens, nanousd = self.ledger.reserved("acme")
        assert (sum(held.tokens for held in self.open), sum(held.nanousd for held in self.open)) == (tokens, nanousd)
        limits = [(budget.window, budget.tokens, budget.nanousd) for budget in self.policy.budgets]
        if self.policy.tokens_per_minute is not None:
            limits.append((Window.MINUTE, self.policy.tokens_per_minute, None))
        for window, limit_tokens, limit_nanousd in limits:
            spent_now = self.ledger.settled("acme", window, now_us=self.now_us)
            assert limit_tokens is None or spent_now.tokens + tokens <= max(limit_tokens, 0)
            assert limit_nanousd is None or spent_now.nanousd + nanousd <= limit_nanousd
            spent: dict[int, list[int]] = {}
            for record in self.records:
                at = spent.setdefault(window_bounds(window, record.started_us + record.latency_us)[0], [0, 0])
                at[0] += record.tokens.total
                at[1] += record.cost_nanousd
            for spent_tokens, spent_nanousd in spent.values():
                assert limit_tokens is None or spent_tokens <= limit_tokens
                assert limit_nanousd is None or spent_nanousd <= limit_nanousd

    @invariant()
    def the_ledger_is_the_sum_of_its_records(self) -> None:
        """Totals and current windows are sums over the records, to the nano-USD."""
        assert (len(self.records), sum(record.cost_nanousd for record in self.records)) == (
            self.ledger.calls,
            self.ledger.nanousd,
        )
        for window in Window:
            settled = self.ledger.settled("acme", window, now_us=self.now_us)
            inside = [
                record
                for record in self.records
                if settled.start_us <= record.started_us + record.latency_us < settled.end_us
            ]
            assert sum(record.cost_nanousd for record in inside) == settled.nanousd
            assert sum(record.tokens.total for record in inside) == settled.tokens


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

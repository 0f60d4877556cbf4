"""Tests of quotas in the ledger: whose use counts where, what happens beyond a ceiling, and that nothing is forgotten."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptRecord, CallRecord, Outcome
from controlplane.contract.snapshot import Quota, QuotaAction, QuotaMatch, QuotaScope, TenantPolicy, Window
from proxy.ledger import OTHERS, Ledger, LedgerState, Refused, Reservation
from proxy.quotas.plan import Who
from tests.proxy.state_fakes import NOON_US

DAY_US = 86_400_000_000
SCOPES = (QuotaScope.KEY, QuotaScope.AGENT, QuotaScope.USER, QuotaScope.SESSION, QuotaScope.MODEL, QuotaScope.TAG)


def _who(**said: object) -> Who:
    plain: dict[str, object] = {"key": "k", "agent": "a", "user": "u", "session": "s", "model": "m", "tags": {}}
    return Who(**(plain | said))  # type: ignore[arg-type]  # a table of fields


def _record(who: Who, *, tokens: int = 0, nanousd: int = 0, at_us: int = NOON_US, routed: str = "") -> CallRecord:
    return CallRecord(
        "call_x",
        at_us - 1000,
        1000,
        "chat",
        Outcome.OK,
        200,
        tenant="acme",
        key_id=who.key,
        agent=who.agent,
        user=who.user,
        session=who.session,
        alias=who.model,
        routed=routed,
        tags=dict(who.tags),
        tokens=Tokens(input=tokens),
        cost_nanousd=nanousd,
        attempts=(AttemptRecord("d", "u", "m", at_us - 1000, 1000),),
    )


def _take(
    ledger: Ledger, policy: TenantPolicy, who: Who, *, tokens: int = 1, nanousd: int = 1, now_us: int = NOON_US
) -> Reservation | Refused:
    return ledger.reserve(policy, tokens=tokens, nanousd=nanousd, now_us=now_us, who=who)


@pytest.mark.parametrize("scope", SCOPES)
def test_each_value_of_a_scope_has_its_own_ceiling(scope: QuotaScope) -> None:
    """What one key, agent, user, session, model or tag uses up does not stand in the way of another."""
    policy = TenantPolicy("acme", quotas=(Quota("q", scope, tag="team", window=Window.DAY, tokens=10),))
    name = {QuotaScope.TAG: "tags"}.get(scope, scope.value)
    one, other = ({name: {"team": value} if name == "tags" else value} for value in ("x", "y"))
    ledger = Ledger()
    assert isinstance(_take(ledger, policy, _who(**one), tokens=10), Reservation)
    refused = _take(ledger, policy, _who(**one))
    assert isinstance(refused, Refused)
    assert ("q", "x", scope, 10) == (refused.scope, refused.value, refused.per, refused.reserved)
    assert isinstance(_take(ledger, policy, _who(**other), tokens=10), Reservation)


@pytest.mark.parametrize(
    ("match", "counted", "free"),
    [
        (QuotaMatch(models=("large",)), {"model": "large"}, {"model": "small"}),
        (QuotaMatch(keys=("k1", "k2")), {"key": "k2"}, {"key": "k3"}),
        (QuotaMatch(agents=("bot",)), {"agent": "bot"}, {"agent": ""}),
        (QuotaMatch(users=("ann",)), {"user": "ann"}, {"user": "bob"}),
        (QuotaMatch(tags={"env": "dev"}), {"tags": {"env": "dev", "x": "y"}}, {"tags": {"env": "prod"}}),
        (QuotaMatch(models=("large",), agents=("bot",)), {"model": "large", "agent": "bot"}, {"model": "large"}),
    ],
)
def test_a_quota_is_about_the_calls_that_match(
    match: QuotaMatch, counted: dict[str, object], free: dict[str, object]
) -> None:
    """All that is named must be so; other calls are neither held against it nor booked to it."""
    policy = TenantPolicy("acme", quotas=(Quota("q", window=Window.DAY, tokens=10, match=match),))
    ledger = Ledger()
    ledger.configure((policy,), now_us=NOON_US)
    ledger.book(_record(_who(**free), tokens=100))
    ledger.book(_record(_who(**counted), tokens=9))
    assert isinstance(_take(ledger, policy, _who(**free), tokens=100), Reservation)
    assert isinstance(_take(ledger, policy, _who(**counted), tokens=1), Reservation)
    assert isinstance(_take(ledger, policy, _who(**counted), tokens=1), Refused)


def test_requests_count_what_reached_an_upstream() -> None:
    """A call in flight is held as one; one that cost no attempt, as a cached answer, is not booked."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.AGENT, window=Window.HOUR, requests=2),))
    ledger = Ledger()
    first, second = _take(ledger, policy, _who()), _take(ledger, policy, _who())
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert isinstance(_take(ledger, policy, _who()), Refused)
    ledger.release(first)
    ledger.book(msgspec.structs.replace(_record(_who()), attempts=()))
    ledger.release(second)
    ledger.book(_record(_who()))
    assert isinstance(_take(ledger, policy, _who()), Reservation)
    assert isinstance(_take(ledger, policy, _who()), Refused)


def test_calls_at_once_are_slots_that_come_back() -> None:
    """Concurrency has no window: what ends makes room, and the refusal has no reset."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.SESSION, concurrency=1),))
    ledger = Ledger()
    held = _take(ledger, policy, _who())
    assert isinstance(held, Reservation)
    refused = _take(ledger, policy, _who())
    assert isinstance(refused, Refused)
    assert ("calls", 0, 1) == (refused.unit, refused.resets_us, refused.reserved)
    ledger.release(held)
    ledger.book(_record(_who()))
    assert isinstance(_take(ledger, policy, _who()), Reservation)


def test_a_soft_quota_lets_pass_and_says_so_and_a_downgrade_comes_before_a_refusal() -> None:
    """Soft: a warning on the reservation. Downgrade: the refusal names the model, and the quota can be passed after that."""
    soft = TenantPolicy("acme", quotas=(Quota("s", window=Window.DAY, tokens=1, action=QuotaAction.SOFT),))
    held = _take(Ledger(), soft, _who(), tokens=5)
    assert isinstance(held, Reservation)
    assert ["s"] == [one.scope for one in held.warnings]
    policy = TenantPolicy(
        "acme",
        quotas=(
            Quota("hard", window=Window.DAY, tokens=4),
            Quota("down", QuotaScope.AGENT, window=Window.DAY, tokens=4, action=QuotaAction.DOWNGRADE, to="small"),
        ),
    )
    ledger = Ledger()
    over = _take(ledger, policy, _who(), tokens=5)
    assert isinstance(over, Refused)
    assert ("down", QuotaAction.DOWNGRADE, "small") == (over.scope, over.action, over.to)
    accounts, lines = ledger.meets(policy, _who(), now_us=NOON_US)
    again = ledger.hold(accounts, lines, tokens=5, nanousd=0, now_us=NOON_US, passed=("down",))
    assert isinstance(again, Refused)
    assert "hard" == again.scope
    assert isinstance(ledger.hold(accounts, lines, tokens=4, nanousd=0, now_us=NOON_US, passed=("down",)), Reservation)


def test_the_model_that_serves_is_the_one_that_pays() -> None:
    """A call that was sent to another model is booked to that one's instance, not to that of the model it asked for."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.MODEL, window=Window.DAY, nanousd=10),))
    ledger = Ledger()
    ledger.configure((policy,), now_us=NOON_US)
    ledger.book(_record(_who(model="large"), nanousd=10, routed="small"))
    assert isinstance(_take(ledger, policy, _who(model="large")), Reservation)
    assert isinstance(_take(ledger, policy, _who(model="small")), Refused)


def test_a_day_begins_at_the_quota_s_own_midnight() -> None:
    """A quota in Sao Paulo begins anew three hours after one in UTC."""
    policy = TenantPolicy(
        "acme",
        quotas=(
            Quota("utc", QuotaScope.AGENT, window=Window.DAY, tokens=10),
            Quota("sp", QuotaScope.AGENT, window=Window.DAY, tokens=10, timezone="America/Sao_Paulo"),
        ),
    )
    ledger = Ledger()
    ledger.configure((policy,), now_us=NOON_US)
    ledger.book(_record(_who(), tokens=10))
    midnight_us = NOON_US + DAY_US // 2
    for at_us, scope in ((midnight_us - 1, "utc"), (midnight_us, "sp"), (midnight_us + 10_799_999_999, "sp")):
        refused = _take(ledger, policy, _who(), now_us=at_us)
        assert isinstance(refused, Refused)
        assert scope == refused.scope
    assert isinstance(_take(ledger, policy, _who(), now_us=midnight_us + 10_800_000_000), Reservation)


def test_instances_beyond_the_bound_share_one_and_nothing_that_counts_is_dropped() -> None:
    """Invented agents do not make the ledger grow, do not get a fresh allowance each, and do not push real ones out."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.AGENT, window=Window.DAY, tokens=10),))
    ledger = Ledger(instances_max=3)
    ledger.configure((policy,), now_us=NOON_US)
    for name in ("real", "x", "y"):
        ledger.book(_record(_who(agent=name), tokens=10))
    for number in range(50):
        ledger.book(_record(_who(agent=f"invented-{number}"), tokens=1))
    assert isinstance(_take(ledger, policy, _who(agent="invented-99")), Refused)
    assert isinstance(_take(ledger, policy, _who(agent="real")), Refused)
    assert 50 == ledger.settled("acme", Window.DAY, now_us=NOON_US, counter="agent", value=OTHERS).tokens
    assert 4 == ledger.instances()
    assert (51, 0) == (ledger.crowded_total, ledger.forgiven_total)
    assert isinstance(_take(ledger, policy, _who(agent="new"), now_us=NOON_US + DAY_US, tokens=10), Reservation)
    assert 0 == ledger.forgiven_total


def test_an_idle_instance_makes_room_and_is_counted() -> None:
    """A total never ends, so sessions that were idle for long make room; those with calls in flight never do."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.SESSION, window=Window.TOTAL, tokens=10),))
    ledger = Ledger(instances_max=2, idle_s=60)
    ledger.configure((policy,), now_us=NOON_US)
    ledger.book(_record(_who(session="old"), tokens=10))
    busy = _take(ledger, policy, _who(session="busy"))
    assert isinstance(busy, Reservation)
    later_us = NOON_US + 61_000_000
    assert isinstance(_take(ledger, policy, _who(session="new"), now_us=later_us, tokens=10), Reservation)
    assert (1, 0) == (ledger.forgiven_total, ledger.crowded_total)
    assert isinstance(_take(ledger, policy, _who(session="newer"), now_us=later_us), Reservation)
    assert (1, 1) == (ledger.forgiven_total, ledger.crowded_total)


@pytest.mark.parametrize("later_us", [61_000_000, DAY_US])
def test_an_instance_with_a_call_that_goes_on_upstream_makes_no_room(later_us: int) -> None:
    """A response in the background is no request any more, but what it may cost stays held against its agent, idle or in another window."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.AGENT, window=Window.DAY, tokens=10),))
    ledger = Ledger(instances_max=1, idle_s=60)
    ledger.configure((policy,), now_us=NOON_US)
    held = _take(ledger, policy, _who(agent="slow"), tokens=10)
    assert isinstance(held, Reservation)
    ledger.outlive(held)
    assert isinstance(_take(ledger, policy, _who(agent="new"), now_us=NOON_US + later_us, tokens=10), Reservation)
    assert isinstance(_take(ledger, policy, _who(agent="slow"), now_us=NOON_US + later_us, tokens=1), Refused)


def test_quotas_that_count_the_same_share_one_account() -> None:
    """Two quotas for each agent cost one account; a third about some models has its own."""
    policy = TenantPolicy(
        "acme",
        quotas=(
            Quota("day", QuotaScope.AGENT, window=Window.DAY, nanousd=10),
            Quota("hour", QuotaScope.AGENT, window=Window.HOUR, tokens=10),
            Quota("large", QuotaScope.AGENT, window=Window.DAY, tokens=5, match=QuotaMatch(models=("m",))),
        ),
    )
    ledger = Ledger()
    held = _take(ledger, policy, _who())
    assert isinstance(held, Reservation)
    assert ["", "agent", "agent@large"] == [account.counter for account in held.accounts]


def test_a_changed_quota_goes_on_with_what_was_spent() -> None:
    """A new limit applies at once to what was counted before; a quota that is gone forgets."""
    small, large = (
        TenantPolicy("acme", quotas=(Quota("q", QuotaScope.AGENT, window=Window.DAY, tokens=limit),))
        for limit in (10, 20)
    )
    ledger = Ledger()
    ledger.configure((small,), now_us=NOON_US)
    ledger.book(_record(_who(), tokens=10))
    assert isinstance(_take(ledger, small, _who()), Refused)
    ledger.configure((large,), now_us=NOON_US)
    assert isinstance(_take(ledger, large, _who(), tokens=10), Reservation)
    assert isinstance(_take(ledger, large, _who()), Refused)
    ledger.configure((TenantPolicy("acme"),), now_us=NOON_US)
    assert 0 == ledger.instances()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 5), st.integers(-DAY_US, 2 * DAY_US)),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_a_restart_anywhere_changes_nothing(calls: list[tuple[str, int, int, int]], cut: int) -> None:
    """A checkpoint taken anywhere, and the records behind it booked again, give the ledger that never stopped: quotas come with it."""
    policy = TenantPolicy(
        "acme",
        quotas=(
            Quota("d", QuotaScope.AGENT, window=Window.DAY, tokens=10, timezone="America/Sao_Paulo"),
            Quota("t", QuotaScope.AGENT, window=Window.TOTAL, requests=10, match=QuotaMatch(models=("m",))),
            Quota("m", window=Window.MONTH, nanousd=10, timezone="Asia/Kolkata"),
        ),
    )
    records = [
        _record(_who(agent=agent), tokens=tokens, nanousd=nanousd, at_us=NOON_US + at_us)
        for agent, tokens, nanousd, at_us in calls
    ]
    whole, first = Ledger(), Ledger()
    for ledger, some in ((whole, records), (first, records[:cut])):
        ledger.configure((policy,), now_us=NOON_US)
        for record in some:
            ledger.book(record)
    second = Ledger()
    second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.state()), type=LedgerState))
    for record in records[cut:]:
        second.book(record)
    assert _amounts(whole.state()) == _amounts(second.state())


def _amounts(state: LedgerState) -> dict[tuple[object, ...], tuple[int, int, int]]:
    return {
        (one.counter, one.value, one.window, one.timezone, settled.start_us): (
            settled.nanousd,
            settled.tokens,
            settled.requests,
        )
        for one in state.counters
        for settled in (one.now, one.ended)
        if settled is not None and (settled.nanousd or settled.tokens or settled.requests)
    }

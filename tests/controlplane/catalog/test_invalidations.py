"""Invalidations are journalled, travel in the snapshot, replace each other, and end when nothing can fit them any more."""

from __future__ import annotations

import pytest

from controlplane.catalog.compile import NoPrices, compile_snapshot, next_change_us
from controlplane.catalog.file import ConfigFile, DeploymentEntry, ModelEntry, TenantEntry
from controlplane.catalog.invalidations import RULES_MAX, SLACK_S, Invalidations, Selection, longest_cached_s
from controlplane.catalog.state import StateReader
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import CacheInvalidation, CachePolicy
from controlplane.errors import BadRequest, TooMany
from controlplane.journal.journal import Journal

LONGEST_S = 1000


@pytest.fixture
def invalidations(journal: Journal, clock: ManualClock) -> Invalidations:
    """Where answers are of use for a thousand seconds."""
    return Invalidations(journal, now_us=clock.now_us, longest_s=lambda: LONGEST_S)


def compiled(journal: Journal, clock: ManualClock) -> tuple[CacheInvalidation, ...]:
    """What proxies are told now."""
    state = StateReader(journal).refresh()
    return compile_snapshot(ConfigFile(), state, NoPrices(), now_us=clock.now_us()).invalidations


def test_a_rule_travels_until_no_answer_can_be_so_old(
    invalidations: Invalidations, journal: Journal, clock: ManualClock
) -> None:
    """It is in the snapshot with all its selectors, and gone when its time has passed, which changes the snapshot by itself."""
    wanted = Selection(tenant="acme", tag="team=search", alias="fast", model="m", agent="a")
    rule = invalidations.invalidate(wanted, reason="wrong prompt", actor="me")
    assert (rule,) == compiled(journal, clock) == invalidations.active()
    assert ("acme", "team=search", "fast", "m", "a") == (rule.tenant, rule.tag, rule.alias, rule.model, rule.agent)
    assert clock.now_us() == rule.before_us
    state = StateReader(journal).refresh()
    assert rule.expires_us == next_change_us(state, ConfigFile(), now_us=clock.now_us())
    clock.move(LONGEST_S + SLACK_S)
    assert rule not in compiled(journal, clock)
    assert () == invalidations.active()


def test_answers_that_an_ended_rule_forbade_do_not_come_back(
    invalidations: Invalidations, journal: Journal, clock: ManualClock
) -> None:
    """They may still lie there where an earlier configuration allowed longer times, which the next one may allow again."""
    assert () == compiled(journal, clock)
    first = invalidations.invalidate(Selection(tenant="acme"))
    clock.move(LONGEST_S + SLACK_S)
    (rest,) = compiled(journal, clock)
    assert (first.before_us, "", True) == (rest.before_us, rest.tenant, rest.expires_us > 10**17)
    second = invalidations.invalidate(Selection(agent="a", before_us=first.before_us - 1))
    assert (rest,) == compiled(journal, clock), "it had ended when it was made"
    third = invalidations.invalidate(Selection(agent="a"))
    assert (rest, third) == compiled(journal, clock)
    assert second.id not in {rule.id for rule in invalidations.active()}
    clock.move(LONGEST_S + SLACK_S)
    assert [third.before_us] == [rule.before_us for rule in compiled(journal, clock)]


def test_what_a_later_rule_covers_is_left_out(
    invalidations: Invalidations, journal: Journal, clock: ManualClock
) -> None:
    """A whole tenant replaces its routes, everything replaces all; what is only partly covered stays."""
    narrow = invalidations.invalidate(Selection(tenant="acme", alias="fast"))
    other = invalidations.invalidate(Selection(tenant="globex"))
    clock.move(1)
    wide = invalidations.invalidate(Selection(tenant="acme"))
    assert (other, wide) == compiled(journal, clock)
    assert narrow not in invalidations.active()
    clock.move(1)
    epoch = invalidations.invalidate(Selection())
    assert (epoch,) == compiled(journal, clock)


def test_rules_are_bounded_and_moments_have_passed(invalidations: Invalidations, clock: ManualClock) -> None:
    """Beyond the bound one must take the place of others, as everything always can; a moment to come is refused."""
    with pytest.raises(BadRequest):
        invalidations.invalidate(Selection(before_us=clock.now_us() + 1))
    for number in range(RULES_MAX):
        invalidations.invalidate(Selection(agent=f"a{number}"))
    with pytest.raises(TooMany):
        invalidations.invalidate(Selection(agent="one more"))
    again = invalidations.invalidate(Selection(agent="a7"))
    assert RULES_MAX == len(invalidations.active())
    with pytest.raises(TooMany):
        invalidations.invalidate(Selection(before_us=clock.now_us() - 1))
    assert again in invalidations.active()
    epoch = invalidations.invalidate(Selection())
    assert (epoch,) == invalidations.active()


def test_a_wider_rule_lasts_as_long_as_those_that_it_replaces(journal: Journal, clock: ManualClock) -> None:
    """Also where the configuration allows shorter times by then."""
    longest_s = [LONGEST_S]
    invalidations = Invalidations(journal, now_us=clock.now_us, longest_s=lambda: longest_s[0])
    narrow = invalidations.invalidate(Selection(tenant="acme", alias="fast"))
    longest_s[0] = 1
    clock.move(10)
    wide = invalidations.invalidate(Selection(tenant="acme"))
    assert (narrow.expires_us, (wide,)) == (wide.expires_us, invalidations.active())
    other = invalidations.invalidate(Selection(tenant="globex"))
    assert clock.now_us() + (1 + SLACK_S) * 1_000_000 == other.expires_us


def test_the_longest_time_is_that_of_any_tenant_or_route() -> None:
    """An answer may be of use for the longest time to live and the longest staleness together."""
    route = ModelEntry("fast", (DeploymentEntry("u", "m"),), cache_ttl_s=500, cache_stale_if_error_s=70)
    config = ConfigFile(
        models=(route,),
        tenants=(TenantEntry("acme", cache=CachePolicy(ttl_s=400, stale_while_revalidate_s=60)), TenantEntry("b")),
        cache=CachePolicy(ttl_s=300),
    )
    assert 570 == longest_cached_s(config)

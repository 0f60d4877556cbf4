"""Tests of invalidation: what fits a rule is not served from any tier, and everything else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import CacheInvalidation
from proxy.call import Call
from proxy.transports.cache import Cache
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_rules import LABELS_MAX, Rules, fits
from tests.proxy.state_fakes import NOON_US, FakeClock, FakeInner, make_call

LABELS = st.sampled_from(["", "a", "b"])
TAGS = st.sampled_from(["", "team", "team=a", "team=b", "other"])


def _entry(**fields: object) -> CacheEntry:
    known: dict[str, object] = {"tenant": "acme", "created_us": 5, "ttl_s": 9, "content_type": "x", "asked_us": 5}
    return CacheEntry(**(known | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        ({}, True),
        ({"tenant": "acme"}, True),
        ({"tenant": "other"}, False),
        ({"tag": "team"}, True),
        ({"tag": "team=search"}, True),
        ({"tag": "team=ads"}, False),
        ({"tag": "search"}, False),
        ({"alias": "fast"}, True),
        ({"alias": "deep"}, False),
        ({"model": "m"}, True),
        ({"model": "fast"}, False),
        ({"agent": "bot"}, True),
        ({"agent": "scout"}, False),
        ({"tenant": "acme", "agent": "bot", "tag": "team=search"}, True),
        ({"tenant": "acme", "agent": "scout", "tag": "team=search"}, False),
        ({"before_us": 6}, True),
        ({"before_us": 5}, False),
    ],
)
def test_a_rule_fits_what_each_of_its_selectors_says(rule: dict[str, object], gone: bool) -> None:
    """A rule without selectors fits everything before its moment; with several, all of them must fit."""
    entry = _entry(alias="fast", model="m", agent="bot", tags={"team": "search"})
    made = CacheInvalidation(**({"id": "i", "before_us": 9, "expires_us": 99} | rule))  # type: ignore[arg-type]
    rules = Rules((made,))
    assert gone is fits(made, entry) is rules.forbid(entry) is rules.forbid(entry)


def test_what_is_remembered_of_labels_is_bounded_and_right() -> None:
    """Any number of users may tag their calls as they like."""
    made = [CacheInvalidation("i", 9, 99, tag="n=7"), CacheInvalidation("j", 5, 99, agent="bot")]
    rules = Rules(made)
    for number in (*range(LABELS_MAX + 10), 7):
        assert (number == 7) is rules.forbid(_entry(tags={"n": str(number)}))
    assert [True, False] == [rules.forbid(_entry(agent="bot", asked_us=at)) for at in (4, 5)]
    assert len(rules._moments) <= LABELS_MAX


@given(
    st.lists(
        st.builds(
            CacheInvalidation, st.just("i"), st.integers(0, 9), st.just(99), tenant=LABELS, tag=TAGS, alias=LABELS,
            model=LABELS, agent=LABELS,
        ),
        max_size=5,
    ),
    st.builds(
        _entry, tenant=LABELS, alias=LABELS, model=LABELS, agent=LABELS, asked_us=st.integers(0, 9),
        tags=st.dictionaries(st.sampled_from(["team", "other"]), LABELS),
    ),
)  # fmt: skip
def test_rules_together_are_each_of_them(rules: list[CacheInvalidation], entry: CacheEntry) -> None:
    """Knowing the newest moment of all rules is only a short cut."""
    assert any(fits(rule, entry) for rule in rules) is Rules(rules).forbid(entry)


def _cache(inner: FakeInner, clock: FakeClock, disk: DiskTier | None = None, *, bytes_max: int = 10**6) -> Cache:
    return Cache(inner, memory=MemoryTier(bytes_max=bytes_max), disk=disk, entry_bytes_max=10_000, now_us=clock.us)


async def _ask(cache: Cache, clock: FakeClock, prompt: str = "hi", agent: str = "") -> CacheState:
    call = make_call(b'{"model":"small","messages":["%b"]}' % prompt.encode())
    call.started_us, call.agent = clock.us(), agent
    await cache.send(call)
    return call.cache


async def test_an_invalidated_answer_is_asked_anew_and_the_new_one_stays(tmp_path: Path) -> None:
    """From memory and from disk; answers that do not fit are still served, and what comes after the rule is stored again."""
    clock, inner = FakeClock(), FakeInner()
    cache = _cache(inner, clock, DiskTier(tmp_path, bytes_max=10**8, read_timeout_s=10), bytes_max=2500)
    await cache.open()
    for prompt in ("a", "b", "c"):  # only two fit into memory
        await _ask(cache, clock, prompt, agent="bot")
    await _ask(cache, clock, "d")
    assert cache.disk is not None
    await cache.disk.flush()
    clock.advance(1)
    cache.configure((CacheInvalidation("i", clock.us(), clock.us() + 10**9, agent="bot"),))
    assert CacheState.HIT is await _ask(cache, clock, "d")
    assert [CacheState.MISS] * 3 == [await _ask(cache, clock, prompt, agent="bot") for prompt in ("c", "a", "b")]
    assert CacheState.HIT is await _ask(cache, clock, "b", agent="bot")
    assert 7 == len(inner.calls)
    assert cache.invalidated_total >= 3
    cache.configure(())
    assert CacheState.HIT is await _ask(cache, clock, "b", agent="bot")
    await cache.aclose()


async def test_an_answer_on_its_way_when_the_rule_came_is_invalidated_too() -> None:
    """What counts is when it was asked for: an upstream may have made it from what was wrong before."""
    clock, inner = FakeClock(), FakeInner()
    cache = _cache(inner, clock)
    early: Call = make_call()
    early.started_us = NOON_US
    clock.advance(10)
    cache.configure((CacheInvalidation("i", NOON_US + 5, NOON_US * 2),))
    await cache.send(early)
    late = make_call()
    late.started_us = clock.us()
    await cache.send(late)
    assert (CacheState.MISS, 2) == (late.cache, len(inner.calls))

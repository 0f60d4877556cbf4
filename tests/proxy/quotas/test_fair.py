"""Simulations of agents that share one tenant's rate and slots: the greedy cannot starve the modest, and nothing lies idle."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.snapshot import TenantPolicy
from proxy.call import Call
from proxy.metrics import ProxyMetrics
from proxy.quotas.fair import FairShares
from proxy.stages.admit import Admit
from tests.proxy.fakes import Clock
from tests.proxy.stages.test_admit import call_of


class Town:
    """Agents that call one tenant's door, each at its own rate, for so many seconds in steps of a hundredth."""

    def __init__(self, tenant: TenantPolicy, *, seconds_of_a_call: float = 0.0) -> None:
        self.clock = Clock()
        self.stage = Admit(ProxyMetrics("0"), monotonic=self.clock)
        self.tenant = tenant
        self.seconds_of_a_call = seconds_of_a_call
        self.asked: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self._open: list[tuple[float, Call]] = []

    def run(self, rates: dict[str, float], *, seconds: float, seed: int = 1) -> None:
        """rates: calls a second of each agent."""
        draw = random.Random(seed)
        for _ in range(int(seconds * 100)):
            self.clock.now += 0.01
            while self._open and self._open[0][0] <= self.clock.now:
                self.stage.leave(self._open.pop(0)[1])
            for agent, rate in rates.items():
                due = int(rate / 100) + (draw.random() < rate / 100 % 1)
                for _ in range(due):
                    self._call(agent)

    def _call(self, agent: str) -> None:
        call = call_of(self.tenant)
        call.agent = agent
        self.asked[agent] += 1
        if self.stage.enter(call) is None:
            self.passed[agent] += 1
            self._open.append((self.clock.now + self.seconds_of_a_call, call))


@pytest.mark.parametrize("weights", [{}, {"modest": 2}])
def test_a_greedy_agent_cannot_starve_a_modest_one(weights: dict[str, int]) -> None:
    """One asks for twenty times the rate, the other for a fifth of it: the modest gets all it wants, the greedy all the rest."""
    town = Town(TenantPolicy("t", requests_per_minute=600, fair_weights=weights))
    town.run({"greedy": 200.0}, seconds=60)  # alone, it takes all there is
    assert town.passed["greedy"] >= 1180
    town.run({"greedy": 200.0, "modest": 2.0}, seconds=60)  # the newcomer is let in as soon as something is there
    town.asked.clear()
    town.passed.clear()
    town.run({"greedy": 200.0, "modest": 2.0}, seconds=120)
    assert town.passed["modest"] >= 0.99 * town.asked["modest"] > 200
    assert town.passed["greedy"] >= 0.95 * (1200 - town.asked["modest"])


def test_without_it_the_greedy_one_starves_the_other() -> None:
    """What the option is for: first come, first served leaves the modest agent with hardly anything."""
    town = Town(TenantPolicy("t", requests_per_minute=600))
    town.run({"greedy": 200.0, "modest": 2.0}, seconds=180)
    assert town.passed["modest"] < 0.3 * town.asked["modest"]


def test_greedy_agents_share_by_weight() -> None:
    """Who all want more than there is get their parts, three to one."""
    town = Town(TenantPolicy("t", requests_per_minute=600, fair_weights={"a": 3}))
    town.run({"a": 100.0, "b": 100.0}, seconds=180)
    town.passed.clear()
    town.run({"a": 100.0, "b": 100.0}, seconds=180)
    assert 2.4 <= town.passed["a"] / town.passed["b"] <= 3.6
    assert sum(town.passed.values()) >= 0.95 * 1800


def test_slots_are_shared_in_the_same_way() -> None:
    """Ten slots, calls of a second: the modest agent finds one free whenever it comes, the greedy uses the others."""
    town = Town(TenantPolicy("t", concurrency=10, fair_weights={}), seconds_of_a_call=1.0)
    town.run({"greedy": 100.0}, seconds=10)
    assert town.passed["greedy"] >= 90
    town.run({"greedy": 100.0, "modest": 1.0}, seconds=15)
    town.asked.clear()
    town.passed.clear()
    town.run({"greedy": 100.0, "modest": 1.0}, seconds=100)
    assert town.passed["modest"] >= 0.97 * town.asked["modest"] > 60
    assert town.passed["greedy"] >= 450


def test_what_an_idle_agent_leaves_is_borrowed() -> None:
    """An agent that has stopped is entitled to nothing after a while."""
    town = Town(TenantPolicy("t", concurrency=10, fair_weights={}), seconds_of_a_call=1.0)
    town.run({"greedy": 100.0, "modest": 1.0}, seconds=20)
    town.run({"greedy": 100.0}, seconds=12)
    town.passed.clear()
    town.run({"greedy": 100.0}, seconds=20)
    assert town.passed["greedy"] >= 190


@settings(max_examples=50)
@given(
    capacity=st.integers(1, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=80),
    weights=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5)),
)
def test_who_is_below_its_part_finds_a_slot_unless_others_took_it_before_it_came(
    capacity: int, steps: list[tuple[str, bool]], weights: dict[str, int]
) -> None:
    """In any order of comings and goings: whoever is over its part leaves free what the other active agents are entitled to."""
    shares = FairShares(weights, agents_max=10)
    agents = {name: shares.arrived(name, 0.0) for name in "abcd"}  # all are active from the start
    part = capacity / sum(agent.weight for agent in agents.values())
    inflight = 0
    for name, comes in steps:
        agent = agents[name]
        if comes and inflight < capacity:
            if shares.may_have_slot(agent, capacity=capacity, free=capacity - inflight, now_s=0.0):
                agent.took(0.0)
                inflight += 1
                due = sum(max(0.0, part * one.weight - one.inflight) for one in agents.values())
                assert capacity - inflight >= due - len(agents)  # a part is no whole number of slots
        elif not comes and agent.inflight:
            agent.left()
            inflight -= 1


def test_the_table_of_agents_is_bounded() -> None:
    """Invented names share one part, and idle ones make room."""
    shares = FairShares({}, agents_max=3)
    known = {id(shares.arrived(f"agent-{number}", 0.0)) for number in range(100)}
    assert len(known) <= 4
    late = shares.arrived("late", 1000.0)
    assert late is shares.arrived("late", 1001.0)
    late.took(1001.0)
    late.left()
    assert 0 == late.inflight


def test_a_call_that_shared_a_part_gives_it_back_though_its_agent_has_one_of_its_own_by_then() -> None:
    """Nothing is kept for calls that have ended: the last agent has all slots to itself."""
    clock = Clock()
    stage = Admit(ProxyMetrics("0"), agents_max=2, monotonic=clock)
    tenant = TenantPolicy("t", concurrency=4, fair_weights={})

    def begin(agent: str) -> Call:
        call = call_of(tenant)
        call.agent = agent
        assert stage.enter(call) is None
        return call

    first, second = begin("a"), begin("c")
    crowded = begin("b")  # finds no room and shares a part
    stage.leave(first)
    stage.leave(second)
    clock.now += 100.0
    alone = begin("b")  # the idle ones were forgotten, so it has a part of its own
    stage.leave(crowded)
    stage.leave(alone)
    clock.now += 100.0
    assert 4 == len([begin("d") for _ in range(4)])

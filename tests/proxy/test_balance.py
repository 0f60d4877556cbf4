"""Strategies, canaries and affinity: who comes first, and who never does."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Price
from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Affinity, Canary, Principal, Strategy
from controlplane.contract.snapshot import (
    Deployment,
    KeyEntry,
    Lease,
    LeaseKind,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from proxy.balance import Balancer
from proxy.call import Call
from proxy.dialects.dialect import RequestView
from proxy.load import Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import KeyIdentity, compile_runtime
from tests.proxy.fakes import Clock

FOREVER_US = 10**18
TENANT = TenantPolicy(id="acme")


class Bench:
    """A balancer with everything it asks in the test's hands."""

    def __init__(
        self,
        names: str = "abc",
        *,
        route: dict[str, object] | None = None,
        prices: dict[str, int] | None = None,
        priced: dict[str, Price] | None = None,
        drained: str = "",
        affinity_max: int = 10_000,
        seed: int = 7,
    ) -> None:
        self.clock = Clock()
        self.loads = Loads(monotonic=self.clock)
        self.sick: set[str] = set()
        self.due: set[str] = set()
        self.metrics = ProxyMetrics("0")
        self.balancer = Balancer(
            self.metrics,
            self.loads,
            probe_due=self.due.__contains__,
            sick=self.sick,
            affinity_max=affinity_max,
            draw=random.Random(seed).random,
            monotonic=self.clock,
            now_us=self.clock.us,
        )
        found = priced or {name: Price(input=price, output=price) for name, price in (prices or {}).items()}
        items = tuple(Deployment(id=name, upstream="u", model="m", price=found.get(name)) for name in names)
        self.snapshot = Snapshot(
            version=1,
            created_us=0,
            upstreams=(Upstream(id="u", dialect="openai", base_url="http://localhost/v1"),),
            routes=(Route(alias="gpt", deployments=items, **(route or {})),),  # type: ignore[arg-type] # a test's own knobs
            leases=tuple(
                Lease(id=name, kind=LeaseKind.DRAIN, deployment=name, expires_us=FOREVER_US) for name in drained
            ),
        )
        self.runtime = compile_runtime(self.snapshot, {})

    def call(self, **labels: str) -> Call:
        """A call of the tenant, with labels."""
        call = Call(self.runtime, "chat", "/", {}, b"", call_id="c", started_us=0, started_ns=0)
        call.view = RequestView(model="gpt")
        call.identity = KeyIdentity(TENANT, KeyEntry(hash="h", id="key_1", tenant="acme"), None)
        call.route = self.runtime.routes["gpt"]
        for name, value in labels.items():
            setattr(call, name, value)
        return call

    def order(self, call: Call | None = None) -> str:
        """The deployments in the order in which they would be tried."""
        made = call or self.call()
        return "".join(item.deployment.id for item in self.balancer.order(made, self.runtime.routes["gpt"]))

    def first(self, **labels: str) -> str:
        """The one that comes first for a call with these labels."""
        return self.order(self.call(**labels))[0]

    def answered(self, name: str, latency_s: float, error: AttemptError = AttemptError.NONE) -> None:
        """One call has been there."""
        load = self.loads.of(name)
        load.begin()
        load.finished(error, latency_s=latency_s, output_tokens=10)


def test_ordered_is_as_listed() -> None:
    """Always, and without a draw."""
    bench = Bench(route={"strategy": Strategy.ORDERED})
    assert {"abc"} == {bench.order() for _ in range(20)}


def test_cheapest_goes_by_price_and_unpriced_come_last() -> None:
    """The others stand behind in the order of their prices."""
    assert "cba" == Bench(route={"strategy": Strategy.CHEAPEST}, prices={"b": 30, "c": 10}).order()


def test_cheapest_goes_by_what_the_call_is_billed_by() -> None:
    """A picture's price, a second's or a character's where these count, and not that of tokens which nobody bills."""
    prices = {
        "a": Price(input=0, output=0, picture=90, second=3, character=1),
        "b": Price(input=0, output=0, picture=80, second=2, character=2),
        "c": Price(input=0, output=0, picture=99, pictures={"512x512": 1}, second=1, character=3),
    }
    bench = Bench(route={"strategy": Strategy.CHEAPEST}, priced=prices)
    for operation, view, expected in (
        ("images_generations", RequestView(model="gpt"), "bac"),
        ("images_generations", RequestView(model="gpt", size="512x512"), "cba"),
        ("audio_transcriptions", RequestView(model="gpt"), "cba"),
        ("audio_speech", RequestView(model="gpt", characters=10), "abc"),
    ):
        call = bench.call(operation=operation)
        call.view = view
        assert expected == bench.order(call)


def test_least_busy_goes_by_calls_in_flight() -> None:
    """One more call goes where the fewest are."""
    bench = Bench(route={"strategy": Strategy.LEAST_BUSY})
    for name in "aab":
        bench.loads.of(name).begin()
    assert "cba" == bench.order()


def test_the_better_of_two_is_never_the_worst_of_three() -> None:
    """Power of two choices: the slowest one is first only behind nobody, and who was never tried is tried soon."""
    bench = Bench(route={"strategy": Strategy.LOWEST_LATENCY})
    for name, latency_s in (("a", 0.1), ("b", 0.2), ("c", 5.0)):
        bench.answered(name, latency_s)
    counts = Counter(bench.first() for _ in range(600))
    assert 0 == counts["c"]
    assert counts["a"] > counts["b"] > 0
    assert "d" in {Bench("abcd", route={"strategy": Strategy.LOWEST_LATENCY}, seed=n).first() for n in range(30)}


def test_a_peak_counts_at_once_and_fades() -> None:
    """One slow answer sends calls elsewhere; after a while without news it is tried again."""
    bench = Bench("ab", route={"strategy": Strategy.LOWEST_LATENCY})
    bench.answered("a", 0.1)
    bench.answered("b", 0.2)
    bench.answered("a", 9.0)
    assert {"b"} == {bench.first() for _ in range(50)}
    bench.clock.now += 30
    bench.answered("b", 0.9)
    assert {"a"} == {bench.first() for _ in range(50)}


def test_a_quick_failure_is_no_speed() -> None:
    """A deployment that fails in a millisecond attracts no calls."""
    bench = Bench("ab", route={"strategy": Strategy.LOWEST_LATENCY})
    bench.answered("a", 0.5)
    bench.answered("b", 0.001, AttemptError.STATUS_5XX)
    assert {"a"} == {bench.first() for _ in range(50)}


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(list(Strategy)),
    drained=st.sets(st.sampled_from("abcd"), max_size=3),
    sick=st.sets(st.sampled_from("abcd"), max_size=3),
    latencies=st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.001, 10.0)), max_size=20),
    seed=st.integers(0, 1_000),
)
def test_no_strategy_picks_a_drained_or_a_sick_one(
    strategy: Strategy, drained: set[str], sick: set[str], latencies: list[tuple[str, float]], seed: int
) -> None:
    """Whatever its speed, price or load: a drained one is nowhere, and a sick one stands behind every healthy one."""
    bench = Bench("abcd", route={"strategy": strategy}, prices={"a": 1}, drained="".join(drained), seed=seed)
    bench.sick |= sick
    for name, latency_s in latencies:
        bench.answered(name, latency_s)
    order = bench.order()
    assert not drained & set(order)
    assert set("abcd") - drained == set(order)
    healthy = set("abcd") - drained - sick
    if healthy and strategy is not Strategy.ORDERED:
        assert healthy == set(order[: len(healthy)])


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.02, 0.5), salt=st.integers(0, 10**6))
def test_a_canary_keeps_its_share_and_its_principals(share: float, salt: int) -> None:
    """Over many sessions the share holds, each session is always on one side, and a larger share keeps those that were there."""
    bench = Bench("ab", route={"canary": Canary(deployment="b", share=share)})
    larger = Bench("ab", route={"canary": Canary(deployment="b", share=min(1.0, share * 2))})
    names = [f"s{salt}-{n}" for n in range(1_000)]
    there = {name for name in names if bench.first(session=name) == "b"}
    assert share == pytest.approx(len(there) / 1_000, abs=0.06)
    assert there == {name for name in names if bench.first(session=name) == "b"}
    assert there <= {name for name in names if larger.first(session=name) == "b"}


def test_calls_that_say_nothing_are_drawn_for_the_canary() -> None:
    """The share holds for them too, and whoever is not on the canary's side has it behind everything else."""
    bench = Bench("ab", route={"canary": Canary(deployment="b", share=0.2)})
    assert 0.2 == pytest.approx(Counter(bench.first() for _ in range(4_000))["b"] / 4_000, abs=0.03)
    assert {"ab", "ba"} == {bench.order() for _ in range(200)}


def test_a_drained_canary_gets_nobody() -> None:
    """The lease is stronger."""
    bench = Bench("ab", route={"canary": Canary(deployment="b", share=1.0)}, drained="b")
    assert {"a"} == {bench.order() for _ in range(50)}


def test_a_conversation_stays_where_it_was_served() -> None:
    """Also where the strategy would go elsewhere, until it falls silent for long."""
    bench = Bench("ab", route={"strategy": Strategy.LEAST_BUSY, "affinity": Affinity(ttl_s=60.0)})
    call = bench.call(session="s1")
    bench.balancer.served(call, "a")
    for _ in range(5):
        bench.loads.of("a").begin()
    assert ["a", "b"] == [bench.first(session="s1"), bench.first(session="s2")]
    bench.clock.now += 61
    assert "b" == bench.first(session="s1")


def test_a_sick_home_is_left() -> None:
    """Affinity saves a prompt cache, not a call; the home is a fallback like any other."""
    bench = Bench("ab", route={"affinity": Affinity()})
    bench.balancer.served(bench.call(session="s1"), "a")
    bench.sick.add("a")
    assert "ba" == bench.order(bench.call(session="s1"))


def test_workers_agree_about_a_new_conversation() -> None:
    """By rendezvous: without a word between them, and one that goes takes only its own conversations along."""
    route: dict[str, object] = {"affinity": Affinity()}
    names = [f"s{n}" for n in range(300)]
    one, other = Bench(route=route, seed=1), Bench(route=route, seed=2)
    homes = {name: one.first(session=name) for name in names}
    assert homes == {name: other.first(session=name) for name in names}
    assert min(Counter(homes.values()).values()) > 60
    other.sick.add("a")
    assert {n: h for n, h in homes.items() if h != "a"} == {
        n: other.first(session=n) for n, h in homes.items() if h != "a"
    }


def test_a_canary_has_its_share_of_new_conversations() -> None:
    """Keeping conversations at home takes nothing from it; those that began elsewhere stay there."""
    route: dict[str, object] = {
        "affinity": Affinity(),
        "canary": Canary(deployment="c", share=0.5, by=Principal.SESSION),
    }
    bench = Bench(route=route)
    plain = Bench(route={"canary": route["canary"]})
    names = [f"s{n}" for n in range(200)]
    on = {name for name in names if plain.first(session=name) == "c"}
    assert on == {name for name in names if bench.first(session=name) == "c"}
    assert 60 < len(on) < 140
    for name in on:
        bench.balancer.served(bench.call(session=name), "a")
    assert {"a"} == {bench.first(session=name) for name in on}


def test_the_table_of_conversations_is_bounded() -> None:
    """The one that was silent longest is forgotten, and that is counted."""
    bench = Bench("ab", route={"affinity": Affinity()}, affinity_max=10)
    for n in range(15):
        bench.balancer.served(bench.call(session=f"s{n}"), "a")
    assert 10 == bench.balancer.conversations
    assert b'bound="affinity_entries_max"' in bench.metrics.render()


def test_turns_of_one_conversation_have_one_prompt() -> None:
    """The first message is what is looked at; the model's name and what comes later are not."""
    bench = Bench("abc", route={"affinity": Affinity(by=Principal.PROMPT)})
    turns = [
        b'{"model":"gpt","messages":[{"role":"system","content":"You are %d"}%b]}' % (n, b',{"role":"user"}' * turn)
        for n in range(20)
        for turn in range(3)
    ]
    homes = [bench.first(body=turn) for turn in turns]  # type: ignore[arg-type] # the body is bytes
    assert [1] * 20 == [len(set(homes[n : n + 3])) for n in range(0, 60, 3)]
    assert len(set(homes)) > 1

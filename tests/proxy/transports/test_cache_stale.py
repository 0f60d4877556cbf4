"""Tests of answers past their time: served while they are asked anew, served through an outage, and never otherwise."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.records import CacheState, Outcome
from controlplane.contract.snapshot import CachePolicy, Route, Snapshot, TenantPolicy
from proxy.call import Call, Reply
from proxy.refusals import EXHAUSTED, INTERNAL, OVER_BUDGET, TIMED_OUT, UNAVAILABLE, Refusal, refuse
from proxy.runtime import Runtime
from proxy.transports.cache import Cache
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_policy import negative_ttl_s
from proxy.transports.cache_refresh import Refreshes
from tests.proxy.state_fakes import DEPLOYMENT, FakeClock, FakeInner, complete_reply, make_call, settle_down

TTL_S, ANEW_S, ON_ERROR_S = 100, 50, 1000
POLICY = CachePolicy(ttl_s=TTL_S, stale_while_revalidate_s=ANEW_S, stale_if_error_s=ON_ERROR_S)


class Scene:
    """A cache above an upstream, with background calls that go through the same cache."""

    inner: FakeInner

    def __init__(self, policy: CachePolicy = POLICY, *, running_max: int = 2, disk: DiskTier | None = None) -> None:
        self.clock = FakeClock()
        self.inner = FakeInner()
        self.policy = policy
        self.asked: list[Call] = []
        self.refreshes = Refreshes(self._ask, running_max=running_max, pause_s=5.0, monotonic=self.clock.s)
        self.cache = Cache(
            self.inner,
            memory=MemoryTier(bytes_max=10**6),
            disk=disk,
            entry_bytes_max=10_000,
            refreshes=self.refreshes,
            now_us=self.clock.us,
        )
        numbers = itertools.count(1)
        self.inner.answer = lambda: complete_reply(b"%d" % next(numbers))

    async def _ask(self, call: Call) -> bool:
        self.asked.append(call)
        again = make_call(call.body, tenant=self.tenant, headers={b"cache-control": b"no-cache"})
        return (await self.cache.send(again)).outcome is Outcome.OK

    @property
    def tenant(self) -> TenantPolicy:
        """Whose calls they are."""
        return TenantPolicy("acme", cache=self.policy)

    async def ask(self, *, prompt: str = "hi", **headers: bytes) -> tuple[CacheState, Reply]:
        """One call."""
        body = b'{"model":"small","messages":["%b"]}' % prompt.encode()
        found = {name.replace("_", "-").encode(): value for name, value in headers.items()}
        call = make_call(body, tenant=self.tenant, headers=found)
        reply = await self.cache.send(call)
        return call.cache, reply

    def fail(self, refusal: Refusal = EXHAUSTED) -> None:
        """From now on the upstreams fail."""
        self.inner.answer = lambda: refuse(refusal, "no")


async def test_a_stale_answer_is_served_at_once_while_one_call_asks_anew() -> None:
    """However many ask, one background call is made; afterwards the fresh answer is a hit."""
    scene = Scene()
    await scene.ask()
    scene.clock.advance(TTL_S)
    scene.inner.gate.clear()
    answers = [await scene.ask() for _ in range(5)]
    assert [(CacheState.STALE, b"1", float(TTL_S))] * 5 == [(s, r.body, r.age_s) for s, r in answers]
    await settle_down()
    assert (2, 1, 1) == (len(scene.inner.calls), len(scene.asked), scene.refreshes.running)
    scene.inner.gate.set()
    await scene.refreshes.settled()
    state, reply = await scene.ask()
    assert (CacheState.HIT, b"2", 0.0) == (state, reply.body, reply.age_s)
    assert (5, 1, 0) == (scene.cache.stale_total, scene.refreshes.started_total, scene.refreshes.failed_total)


async def test_past_both_times_the_upstream_is_asked() -> None:
    """The call waits for a fresh answer, as if nothing were stored."""
    scene = Scene()
    await scene.ask()
    scene.clock.advance(TTL_S + ANEW_S)
    state, reply = await scene.ask()
    assert (CacheState.MISS, b"2", []) == (state, reply.body, scene.asked)


@pytest.mark.parametrize("refusal", [EXHAUSTED, UNAVAILABLE, TIMED_OUT])
async def test_an_outage_is_served_through(refusal: Refusal) -> None:
    """Where the upstreams fail the stale answer comes instead, marked as stale, until its last second."""
    scene = Scene()
    await scene.ask()
    scene.fail(refusal)
    scene.clock.advance(TTL_S + ANEW_S)
    state, reply = await scene.ask()
    assert (CacheState.STALE, 200, b"1", Outcome.OK) == (state, reply.status, reply.body, reply.outcome)
    scene.clock.advance(ON_ERROR_S - ANEW_S - 0.001)
    assert CacheState.STALE is (await scene.ask())[0]
    scene.clock.advance(0.001)
    state, reply = await scene.ask()
    assert (CacheState.MISS, refusal.status) == (state, reply.status)
    assert 2 == scene.cache.stale_if_error_total


@pytest.mark.parametrize("refusal", [OVER_BUDGET, INTERNAL])
async def test_what_is_no_outage_is_not_hidden(refusal: Refusal) -> None:
    """Our own refusals and bugs reach the client, whatever is stored."""
    scene = Scene()
    await scene.ask()
    scene.fail(refusal)
    scene.clock.advance(TTL_S + ANEW_S)
    assert refusal.status == (await scene.ask())[1].status


async def test_an_upstream_s_refusal_is_passed_on_though_something_is_stored() -> None:
    """A permanent 4xx says something about the request, and no old answer stands in for it."""
    scene = Scene()
    await scene.ask()
    scene.inner.answer = _refused
    scene.clock.advance(TTL_S + ANEW_S)
    assert 400 == (await scene.ask())[1].status


def _refused() -> Reply:
    reply = complete_reply(b'{"error":{}}', status=400)
    reply.outcome, reply.error_code = Outcome.UPSTREAM_REFUSED, "upstream_refused"
    return reply


async def test_a_client_s_own_words_bound_staleness() -> None:
    """With `max-age` nothing stale is served, with `no-cache` not even in an outage."""
    scene = Scene()
    await scene.ask()
    scene.clock.advance(TTL_S + 1)
    scene.fail()
    state, reply = await scene.ask(cache_control=b"max-age=%d" % TTL_S)
    assert (CacheState.MISS, 502) == (state, reply.status)
    state, reply = await scene.ask(cache_control=b"no-cache")
    assert (CacheState.BYPASS, 502) == (state, reply.status)
    assert CacheState.STALE is (await scene.ask(cache_control=b"only-if-cached"))[0]


async def test_a_route_s_times_come_before_the_tenant_s() -> None:
    """A route may allow what its tenant does not, and the reverse."""
    scene = Scene()
    for tenant, anew_s, on_error_s, states in (
        (CachePolicy(ttl_s=10), 5, 0, [CacheState.STALE, CacheState.MISS]),
        (CachePolicy(ttl_s=10, stale_while_revalidate_s=5), 0, 20, [CacheState.STALE, CacheState.STALE]),
        (CachePolicy(ttl_s=10, stale_while_revalidate_s=5, stale_if_error_s=20), 0, 0, [CacheState.MISS] * 2),
    ):
        route = Route("small", (DEPLOYMENT,), cache_stale_while_revalidate_s=anew_s, cache_stale_if_error_s=on_error_s)
        policy = TenantPolicy("acme", cache=tenant)
        cache = Cache(
            scene.inner, memory=MemoryTier(bytes_max=10**6), disk=None, entry_bytes_max=10_000, now_us=scene.clock.us
        )
        scene.inner.answer = complete_reply
        await cache.send(make_call(tenant=policy, route=route))
        scene.fail()
        found = []
        for seconds in (11, 6):
            scene.clock.advance(seconds)
            call = make_call(tenant=policy, route=route)
            await cache.send(call)
            found.append(call.cache)
        assert states == found


async def test_background_calls_are_bounded_and_pause_after_a_failure() -> None:
    """Beyond the bound a stale answer is served without one; a key whose call failed is left alone for a while."""
    scene = Scene(running_max=2)
    for prompt in "abc":
        await scene.ask(prompt=prompt)
    scene.clock.advance(TTL_S)
    scene.inner.gate.clear()
    assert [CacheState.STALE] * 3 == [(await scene.ask(prompt=prompt))[0] for prompt in "abc"]
    assert (2, 1) == (scene.refreshes.running, scene.refreshes.skipped_total)
    scene.fail()
    scene.inner.gate.set()
    await scene.refreshes.settled()
    assert 2 == scene.refreshes.failed_total
    await scene.ask(prompt="a")
    assert 0 == scene.refreshes.running
    scene.clock.advance(5.0)
    await scene.ask(prompt="a")
    assert 1 == scene.refreshes.running
    await scene.refreshes.settled()


async def test_a_background_call_ends_with_the_cache() -> None:
    """Closing cancels it and waits for it."""
    scene = Scene()
    await scene.ask()
    scene.clock.advance(TTL_S)
    scene.inner.gate.clear()
    await scene.ask()
    await settle_down()
    await scene.cache.aclose()
    assert (0, 1) == (scene.refreshes.running, len(scene.inner.cancelled))


async def test_another_worker_s_background_call_is_enough() -> None:
    """Where one asks elsewhere already, none is made here."""
    asked: list[Call] = []

    async def ask(call: Call) -> bool:
        asked.append(call)
        return True

    async def elsewhere(_: Call) -> bool:
        return True

    refreshes = Refreshes(ask, running_max=1, pause_s=1.0, elsewhere=elsewhere)
    call = make_call()
    call.cache_key = b"key"
    refreshes.want(call)
    await refreshes.settled()
    assert ([], 0) == (asked, refreshes.started_total)


async def test_a_background_call_that_has_not_begun_does_not_hold_up_the_end() -> None:
    """It was wanted in the moment in which the proxy stops."""

    async def ask(_: Call) -> bool:
        return True

    refreshes = Refreshes(ask, running_max=1, pause_s=1.0)
    call = make_call()
    call.cache_key = b"key"
    refreshes.want(call)
    async with asyncio.timeout(10):
        await refreshes.aclose()
    assert (0, 0) == (refreshes.running, refreshes.started_total)


async def test_stale_answers_survive_a_restart(tmp_path: Path) -> None:
    """The disk keeps an answer until it is of no more use, so that an outage is served through after a restart too."""
    first = Scene(disk=DiskTier(tmp_path, bytes_max=10**8))
    await first.cache.open()
    await first.ask()
    await first.cache.aclose()
    second = Scene(disk=DiskTier(tmp_path, bytes_max=10**8, read_timeout_s=10))
    await second.cache.open()
    second.clock.advance(TTL_S + ANEW_S + 1)
    second.fail()
    state, reply = await second.ask()
    assert (CacheState.STALE, b"1") == (state, reply.body)
    await second.cache.aclose()


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(min_value=0, max_value=TTL_S + ON_ERROR_S), st.booleans()), min_size=1, max_size=12)
)
def test_nothing_is_served_past_what_the_policy_allows(steps: list[tuple[float, bool]]) -> None:
    """Whatever the order of calls and outages: a hit is within its time, a stale answer within the time that fits its reason."""

    async def run() -> None:
        scene = Scene()
        good = scene.inner.answer
        for seconds, up in steps:
            scene.clock.advance(seconds)
            scene.inner.answer = good if up else lambda: refuse(EXHAUSTED, "no")
            state, reply = await scene.ask()
            if state is CacheState.HIT:
                assert reply.age_s < TTL_S
            elif state is CacheState.STALE:
                assert TTL_S <= reply.age_s < TTL_S + (ANEW_S if up else ON_ERROR_S)
            else:
                assert (200 if up else 502) == reply.status
            await scene.refreshes.settled()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "outcome", "kept"),
    [
        (400, Outcome.UPSTREAM_REFUSED, True),
        (404, Outcome.UPSTREAM_REFUSED, True),
        (413, Outcome.UPSTREAM_REFUSED, True),
        (422, Outcome.UPSTREAM_REFUSED, True),
        *((status, Outcome.UPSTREAM_REFUSED, False) for status in (401, 402, 403, 408, 409, 425, 429, 500, 503, 529)),
        (400, Outcome.EXHAUSTED, False),
        (400, Outcome.OK, False),
    ],
)
async def test_only_a_permanent_refusal_of_the_request_is_kept(status: int, outcome: Outcome, kept: bool) -> None:
    """It comes again from memory, marked, for as long as the policy says; nothing about keys, quotas or the upstream's state is kept."""
    scene = Scene(CachePolicy(negative_ttl_s=10))

    def answer() -> Reply:
        reply = complete_reply(b'{"error":{"code":"context_length_exceeded"}}', status=status)
        reply.outcome, reply.error_code = outcome, "upstream_refused"
        return reply

    scene.inner.answer = answer
    await scene.ask()
    state, reply = await scene.ask()
    assert (1 if kept else 2) == len(scene.inner.calls)
    if not kept:
        return
    assert (CacheState.HIT, status, outcome, "upstream_refused") == (
        state,
        reply.status,
        reply.outcome,
        reply.error_code,
    )
    assert [(b"content-type", b"application/json"), (b"x-heph-cache-detail", b"negative")] == reply.headers
    scene.clock.advance(10)
    await scene.ask()
    assert (2, 1) == (len(scene.inner.calls), scene.cache.negative_total)


async def test_a_refusal_of_a_model_that_stood_in_is_not_kept() -> None:
    """The model that was asked for may take the very request that its fallback refuses."""
    call = make_call(tenant=TenantPolicy("acme", cache=CachePolicy(negative_ttl_s=10)))
    call.cache_ttl_s = 10
    assert 10 == negative_ttl_s(call, _refused())
    call.fell_back = "general"
    assert 0 == negative_ttl_s(call, _refused())


async def test_refusals_are_not_kept_unless_the_policy_says_so() -> None:
    """By default each is asked anew, and a kept one is the tenant's own."""
    scene = Scene(CachePolicy())
    scene.inner.answer = _refused
    await scene.ask()
    await scene.ask()
    assert (2, 0) == (len(scene.inner.calls), len(scene.cache.memory))


async def test_who_wants_nothing_old_gets_no_kept_refusal() -> None:
    """`max-age` is about refusals as about answers."""
    scene = Scene(CachePolicy(negative_ttl_s=10))
    scene.inner.answer = _refused
    await scene.ask()
    scene.clock.advance(2)
    await scene.ask(cache_control=b"max-age=2")
    assert 2 == len(scene.inner.calls)
    await scene.ask(cache_control=b"max-age=2")
    assert 2 == len(scene.inner.calls)


async def test_a_kept_refusal_does_not_take_the_place_of_a_good_answer() -> None:
    """After it has expired, an outage is still served with the good answer from before."""
    scene = Scene(CachePolicy(ttl_s=TTL_S, stale_if_error_s=ON_ERROR_S, negative_ttl_s=10))
    await scene.ask()
    scene.clock.advance(TTL_S)
    scene.inner.answer = _refused
    assert 400 == (await scene.ask())[1].status
    scene.clock.advance(10)
    scene.fail()
    assert b"1" == (await scene.ask())[1].body


async def test_a_kept_refusal_is_about_the_very_request_and_the_snapshot() -> None:
    """A user whom the provider has blocked is refused alone, and so is what our credential had no access to until another snapshot came."""
    scene = Scene(CachePolicy(negative_ttl_s=10))
    scene.inner.answer = _refused
    runtimes = [Runtime(Snapshot(version=version, created_us=0), {}, {}) for version in (1, 2)]

    async def ask(user: str, runtime: Runtime) -> CacheState:
        call = make_call(b'{"model":"small","messages":[],"user":"%b"}' % user.encode(), tenant=scene.tenant)
        call.runtime = runtime
        await scene.cache.send(call)
        return call.cache

    asked = [("eve", 0), ("eve", 0), ("bob", 0), ("eve", 1), ("eve", 1)]
    states = [await ask(user, runtimes[at]) for user, at in asked]
    miss, hit = CacheState.MISS, CacheState.HIT
    assert [miss, hit, miss, miss, hit] == states
    scene.inner.answer = lambda: complete_reply(b"good")
    assert [miss, hit] == [await ask("ann", runtimes[0]), await ask("bob", runtimes[0])]

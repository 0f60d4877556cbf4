"""Tests of the cache between two turns of the event loop: what a call has looked up may be old when it goes on."""

from __future__ import annotations

import asyncio
import json

from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import CacheInvalidation, CachePolicy, TenantPolicy
from proxy.call import Call
from proxy.refusals import EXHAUSTED, refuse
from proxy.transports.cache import Cache
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_memory import MemoryTier
from tests.proxy.state_fakes import NOON_US, FakeClock, FakeInner, complete_reply, make_call, settle_down
from tests.proxy.transports.test_cache_items import Provider, Scene

ANEW = {b"cache-control": b"no-cache"}


class Below:
    """A tier below memory whose look-ups wait for the test."""

    degraded = False

    def __init__(self) -> None:
        self.entries: dict[bytes, CacheEntry] = {}
        self.gate = asyncio.Event()

    def open(self) -> None:
        """Nothing to open."""

    async def get(self, key: bytes) -> CacheEntry | None:
        """What was there when the look-up began."""
        entry = self.entries.get(key)
        await self.gate.wait()
        return entry

    def put(self, key: bytes, entry: CacheEntry) -> None:
        """Keeps it."""
        self.entries[key] = entry

    async def flush(self) -> None:
        """Nothing waits."""

    async def aclose(self) -> None:
        """Nothing is held."""


async def _scene() -> tuple[Cache, FakeInner, Below]:
    """A cache whose lower tier has an answer that memory lacks, a minute old."""
    inner, clock, below = FakeInner(), FakeClock(), Below()
    inner.answer = lambda: complete_reply(b'{"answer":"old"}')
    cache = Cache(
        inner, memory=MemoryTier(bytes_max=10**6), disk=None, redis=below, entry_bytes_max=10**5, now_us=clock.us
    )
    await cache.send(make_call(headers=ANEW))
    for key, _ in list(cache.memory.newest_first()):
        cache.memory.remove(key)
    clock.advance(60)
    inner.answer = lambda: complete_reply(b'{"answer":"new"}')
    return cache, inner, below


async def test_what_was_stored_during_a_look_below_is_newer_than_what_is_found_there() -> None:
    """The call that looked gets the newer answer, and so do all after it."""
    cache, inner, below = await _scene()
    call = make_call()
    looking = asyncio.create_task(cache.send(call))
    await settle_down()
    await cache.send(make_call(headers=ANEW))
    below.gate.set()
    after = cache.lookup(make_call())
    assert after is not None
    assert [b'{"answer":"new"}'] * 2 == [(await looking).body, after.body]
    later = cache.lookup(make_call())
    assert later is not None
    assert (b'{"answer":"new"}', CacheState.HIT, 2) == (later.body, call.cache, len(inner.calls))


async def test_what_is_brought_up_takes_no_newer_answer_s_place() -> None:
    """The look that a call without budget makes first leaves in memory what is there."""
    cache, _, below = await _scene()
    call = make_call()
    assert cache.lookup(call) is None
    deeper = cache.deeper(call)
    assert deeper is not None
    looking = asyncio.ensure_future(deeper())
    await settle_down()
    await cache.send(make_call(headers=ANEW))
    below.gate.set()
    await looking
    reply = cache.lookup(make_call())
    assert reply is not None
    assert b'{"answer":"new"}' == reply.body


async def test_an_answer_that_is_invalidated_before_it_comes_is_not_stored() -> None:
    """It was asked for before; what an identical call was told since stays."""
    inner, clock = FakeInner(gated=True), FakeClock()
    inner.answer = lambda: complete_reply(b'{"answer":"old"}')
    cache = Cache(inner, memory=MemoryTier(bytes_max=10**6), disk=None, entry_bytes_max=10**5, now_us=clock.us)
    slow = asyncio.create_task(cache.send(make_call()))
    await settle_down()
    cache.configure((CacheInvalidation("i", NOON_US + 1, 2**60),))
    clock.advance(1)
    later = make_call(headers=ANEW)
    later.started_us = clock.us()
    swift = Cache(FakeInner(), memory=cache.memory, disk=None, entry_bytes_max=10**5, now_us=clock.us)
    await swift.send(later)
    inner.gate.set()
    reply = await slow
    assert (b'{"answer":"old"}', 0) == (reply.body, reply.stored_ttl_s)
    hit = cache.lookup(make_call())
    assert hit is not None
    assert (b'{"answer":1}', 0) == (hit.body, cache.stored_total)


async def test_known_inputs_that_are_invalidated_meanwhile_are_asked_for_again() -> None:
    """The rule comes while the upstream is asked for the one input that was not known: nothing old is in the answer."""
    scene = Scene()
    await scene.ask(["known"])
    scene.provider.gate.clear()
    late = asyncio.create_task(scene.ask(["known", "new"]))
    await settle_down()
    scene.cache.configure((CacheInvalidation("i", NOON_US + 1, 2**60),))
    scene.provider.gate.set()
    call, reply = await late
    assert [["known"], ["new"], ["known", "new"]] == scene.provider.asked
    assert (200, 2) == (reply.status, len(json.loads(reply.body)["data"]))
    assert (CacheState.BYPASS, 0) == (call.cache, call.saved_nanousd)


def _embeds(*wanted: str, agent: str = "") -> Call:
    policy = TenantPolicy("acme", cache=CachePolicy(ttl_s=100, stale_if_error_s=1000))
    body = json.dumps({"model": "small", "input": wanted}).encode()
    call = make_call(body, operation="embeddings", tenant=policy)
    call.agent = agent
    return call


async def test_known_inputs_that_are_invalidated_meanwhile_are_no_stale_answer() -> None:
    """The same where the upstreams then fail, and what was missing is there as stale: the error is the answer."""
    scene = Scene()
    await scene.cache.send(_embeds("stale"))
    scene.clock.advance(200)
    await scene.cache.send(_embeds("known", agent="bot"))
    scene.provider.gate.clear()
    scene.provider.make = lambda _: refuse(EXHAUSTED, "down")
    scene.provider.answer = lambda: refuse(EXHAUSTED, "down")
    late = asyncio.create_task(scene.cache.send(_embeds("known", "stale")))
    await settle_down()
    scene.cache.configure((CacheInvalidation("i", NOON_US + 1, 2**60, agent="bot"),))
    scene.provider.gate.set()
    assert (502, 0) == ((await late).status, scene.cache.stale_if_error_total)


async def test_known_inputs_that_are_invalidated_during_a_look_below_are_asked_for() -> None:
    """The other one is found below: one is missing all the same."""
    below, provider, clock = Below(), Provider(), FakeClock()
    cache = Cache(
        provider, memory=MemoryTier(bytes_max=10**6), disk=None, redis=below, entry_bytes_max=10**5, now_us=clock.us
    )
    below.gate.set()
    await cache.send(_embeds("known", agent="bot"))
    await cache.send(_embeds("below"))
    (key, _), *_ = cache.memory.newest_first()
    cache.memory.remove(key)
    below.gate.clear()
    late = asyncio.create_task(cache.send(_embeds("known", "below")))
    await settle_down()
    cache.configure((CacheInvalidation("i", NOON_US + 1, 2**60, agent="bot"),))
    below.gate.set()
    assert 200 == (await late).status
    assert [["known"], ["below"], ["known"]] == provider.asked

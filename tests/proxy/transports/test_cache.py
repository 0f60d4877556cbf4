"""Tests of the cache as a transport: what is stored, for whom, for how long, and what a hit looks like."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import NO_TOKENS
from controlplane.contract.records import CacheState, Outcome
from controlplane.contract.snapshot import CacheInvalidation, CachePolicy, Route, TenantPolicy
from proxy.call import Call, Reply, StreamBroken
from proxy.dialects.operations import OPERATIONS
from proxy.transports.cache import Cache
from proxy.transports.cache_disk import DiskTier
from proxy.transports.cache_entry import OVERHEAD_BYTES
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.coalesce import Coalesce
from tests.proxy.state_fakes import (
    BODY,
    DEPLOYMENT,
    FakeClock,
    FakeInner,
    complete_reply,
    make_call,
    read_all,
    settle_down,
)

STREAM_BODY = b'{"model":"small","stream":true,"messages":[]}'
ANSWER_NANOUSD = 20  # of the fakes' tokens at the fakes' price


def _cache(
    inner: FakeInner | Coalesce,
    clock: FakeClock | None = None,
    *,
    disk: DiskTier | None = None,
    memory_bytes: int = 10**6,
) -> Cache:
    return Cache(
        inner,
        memory=MemoryTier(bytes_max=memory_bytes),
        disk=disk,
        entry_bytes_max=10_000,
        now_us=(clock or FakeClock()).us,
    )


async def _ask(cache: Cache, call: Call | None = None) -> tuple[Call, Reply, bytes]:
    call = call or make_call()
    reply = await cache.send(call)
    return call, reply, await read_all(reply)


def _streaming(*chunks: bytes, broken: StreamBroken | None = None) -> FakeInner:
    """An upstream whose streams say these chunks and end."""
    inner = FakeInner()
    inner.streaming = True

    class Ready(FakeInner):
        async def send(self, call: Call) -> Reply:
            reply = await inner.send(call)
            self.calls.append(call)
            inner.streams[-1].feed(*chunks)
            inner.streams[-1].end(broken)
            return reply

    return Ready()


async def test_the_second_identical_call_is_a_hit() -> None:
    """It gets the same bytes at once from memory, pays nothing, and says what it saved and how old the answer is."""
    inner, clock = FakeInner(), FakeClock()
    cache = _cache(inner, clock)
    first, first_reply, _ = await _ask(cache)
    clock.advance(30)
    second = make_call()
    reply = cache.lookup(second)
    assert reply is not None
    assert (CacheState.MISS, -1.0, 3600) == (first.cache, first_reply.age_s, first_reply.stored_ttl_s)
    assert (200, b'{"answer":1}', 30.0, 3600) == (reply.status, reply.body, reply.age_s, reply.stored_ttl_s)
    assert ("sim/m", "m", "stop", True) == (reply.deployment, reply.model, reply.finish_reason, reply.complete)
    assert (CacheState.HIT, ANSWER_NANOUSD) == (second.cache, second.saved_nanousd)
    assert (NO_TOKENS, NO_TOKENS, 0) == (second.tokens, reply.tokens, second.cost_nanousd)
    assert 1 == len(inner.calls)


async def test_nothing_of_the_first_call_s_identity_is_kept() -> None:
    """Of the upstream's headers only the content type is served again."""
    cache = _cache(FakeInner())
    _, fresh, _ = await _ask(cache)
    _, stored, _ = await _ask(cache)
    assert (b"x-request-id", b"req_secret") in fresh.headers
    assert [(b"content-type", b"application/json")] == stored.headers


async def test_a_stream_is_replayed_as_a_stream_in_few_writes() -> None:
    """The hit has the same bytes in the same protocol, in one block, and the time of its first token."""
    chunks = [b"data: %d\n\n" % number for number in range(100)]
    inner = _streaming(*chunks)
    cache = _cache(inner)
    first, _, first_bytes = await _ask(cache, make_call(STREAM_BODY))
    second, reply, second_bytes = await _ask(cache, make_call(STREAM_BODY))
    assert b"".join(chunks) == first_bytes == second_bytes
    assert [(b"content-type", b"text/event-stream")] == reply.headers
    assert (CacheState.MISS, CacheState.HIT, ANSWER_NANOUSD) == (first.cache, second.cache, second.saved_nanousd)
    assert second.first_token_us > 0
    third = cache.lookup(make_call(STREAM_BODY))
    assert third is not None
    assert third.stream is not None
    assert [b"".join(chunks), b"", b""] == [await third.stream.read() for _ in range(3)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["acme", "other", "acm", "e"]), st.sampled_from(["hi", "ho"])),
        min_size=1,
        max_size=12,
    )
)
def test_no_tenant_ever_gets_another_s_answer(asks: list[tuple[str, str]]) -> None:
    """With an upstream that answers each tenant and prompt differently, everybody always gets their own."""

    async def ask_all() -> None:
        inner = FakeInner()
        cache = _cache(inner)
        for tenant, prompt in asks:
            body = json.dumps({"model": "small", "messages": [prompt]}).encode()
            expected = f"{tenant} {prompt}".encode()
            inner.answer = lambda expected=expected: complete_reply(expected)  # type: ignore[misc]
            _, _, answer = await _ask(cache, make_call(body, tenant=TenantPolicy(tenant)))
            assert expected == answer
        assert len(set(asks)) == len(inner.calls)

    asyncio.run(ask_all())


async def test_an_entry_under_the_wrong_key_is_not_served() -> None:
    """Even if a key were to lie, the entry's own tenant is the second lock."""
    cache = _cache(FakeInner())
    mine, _, _ = await _ask(cache)
    theirs = make_call(tenant=TenantPolicy("other"))
    cache.lookup(theirs)
    entry = cache.memory.get(mine.cache_key)
    assert entry is not None
    cache.memory.put(theirs.cache_key, entry)
    assert cache.lookup(make_call(tenant=TenantPolicy("other"))) is None


@pytest.mark.parametrize(
    "reply",
    [
        lambda: complete_reply(status=201),
        lambda: complete_reply(status=400),
        lambda: complete_reply(status=500),
        lambda: complete_reply(complete=False),
        lambda: complete_reply(finish_reason=""),
        lambda: complete_reply(finish_reason="content_filter"),
        lambda: complete_reply(finish_reason="invented_later"),
        lambda: complete_reply(b"x" * 10_001),
        lambda: _with(complete_reply(), source="gateway"),
        lambda: _with(complete_reply(), outcome=Outcome.UPSTREAM_REFUSED),
    ],
)
async def test_what_is_not_a_whole_good_answer_is_not_stored(reply: object) -> None:
    """Errors, refusals, incomplete, filtered, unknown and too large answers reach their client and nobody else."""
    inner = FakeInner()
    inner.answer = reply  # type: ignore[assignment]
    cache = _cache(inner)
    await _ask(cache)
    await _ask(cache)
    assert (2, 0, 0) == (len(inner.calls), cache.stored_total, len(cache.memory))


def _with(reply: Reply, **attributes: object) -> Reply:
    for name, value in attributes.items():
        setattr(reply, name, value)
    return reply


@pytest.mark.parametrize(
    ("operation", "asked", "said", "kept"),
    [
        ("moderations", {"input": "a"}, {"results": [{"flagged": False}]}, True),
        ("moderations", {"input": "a"}, {"results": [{"flagged": False}], "error": None}, True),
        ("moderations", {"input": "a"}, {"results": [], "model": "m"}, False),
        ("moderations", {"input": "a"}, {"results": [{}], "error": {"message": "boom"}}, False),
        ("moderations", {"input": "a"}, {"error": {"message": "boom"}}, False),
        ("moderations", {"input": "a"}, "<html>back soon</html>", False),
        ("embeddings", {"input": [{"image": "a"}]}, {"data": [{"embedding": [1]}]}, True),
        ("embeddings", {"input": [{"image": "a"}]}, {"error": {"message": "boom"}}, False),
        ("chat", {"n": 2}, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, True),
        ("chat", {"n": 2}, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]}, False),
        ("chat", {"n": 2}, {"choices": [{"finish_reason": "stop"}, {"finish_reason": None}]}, False),
        ("chat", {}, {"choices": [{"text": '"finish_reason":"odd"', "finish_reason": "stop"}]}, True),
    ],
)
async def test_a_good_status_alone_is_no_answer(
    operation: str, asked: dict[str, object], said: object, *, kept: bool
) -> None:
    """A page or an error with status 200 is not stored, nor an answer of which one of several choices was filtered or cut."""
    inner = FakeInner()
    body = (said if isinstance(said, str) else json.dumps(said)).encode()
    inner.answer = lambda: complete_reply(body, finish_reason="stop" if operation == "chat" else "")
    cache = _cache(inner)
    document = {"model": "small"} | ({"messages": []} if operation == "chat" else {}) | asked
    for _ in range(2):
        assert body == (await _ask(cache, make_call(json.dumps(document).encode(), operation=operation)))[2]
    assert (1 if kept else 2) == len(inner.calls)


@pytest.mark.parametrize("reasons", [("stop", "stop"), ("content_filter", "stop"), ("stop",)])
async def test_a_stream_of_several_choices_is_stored_if_all_of_them_ended_well(reasons: tuple[str, ...]) -> None:
    """What its last choice ended with says nothing of the others."""
    events = [
        b"data: " + json.dumps({"choices": [{"index": at, "finish_reason": reason}]}).encode() + b"\n\n"
        for at, reason in enumerate(reasons)
    ]
    inner = _streaming(*events)
    cache = _cache(inner)
    for _ in range(2):
        await _ask(cache, make_call(b'{"model":"small","stream":true,"n":2,"messages":[]}'))
    assert (1 if reasons == ("stop", "stop") else 2) == len(inner.calls)


@pytest.mark.parametrize("reason", sorted(OPERATIONS["chat"].storable_reasons))
async def test_answers_that_would_come_again_are_stored(reason: str) -> None:
    """Tool calls and answers cut by the client's own ceiling are whole answers to their request."""
    inner = FakeInner()
    inner.answer = lambda: complete_reply(finish_reason=reason)
    cache = _cache(inner)
    await _ask(cache)
    _, reply, _ = await _ask(cache)
    assert (1, reason) == (len(inner.calls), reply.finish_reason)


async def test_a_broken_stream_is_not_stored() -> None:
    """Neither is one that its client did not read to the end, nor one that grew too large."""
    broken = _streaming(b"data: 1\n\n", broken=StreamBroken(Outcome.BROKEN_STREAM, "gone"))
    cache = _cache(broken)
    for _ in range(2):
        with pytest.raises(StreamBroken):
            await _ask(cache, make_call(STREAM_BODY))
    abandoned = _cache(_streaming(b"data: 1\n\n"))
    reply = await abandoned.send(make_call(STREAM_BODY))
    assert reply.stream is not None
    await reply.stream.read()
    reply.stream.close()
    large = _cache(_streaming(b"x" * 6000, b"y" * 6000))
    await _ask(large, make_call(STREAM_BODY))
    assert [0, 0, 0] == [each.stored_total for each in (cache, abandoned, large)]
    assert 1 == large.too_large_total


async def test_embeddings_are_stored_and_models_are_not() -> None:
    """An embedding has no finish reason; a list of models is not an answer to keep."""
    inner = FakeInner()
    body = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1]}],"model":"m"}'
    inner.answer = lambda: complete_reply(body, finish_reason="")
    cache = _cache(inner)
    for _ in range(2):
        await _ask(cache, make_call(b'{"model":"small","input":"a"}', operation="embeddings"))
    assert 1 == len(inner.calls)
    models = make_call()
    models.operation, models.view = "models", None
    await _ask(cache, models)
    assert (CacheState.BYPASS, b"") == (models.cache, models.cache_key)


@pytest.mark.parametrize(
    ("tenant", "route_ttl_s", "headers", "ttl_s"),
    [
        (CachePolicy(ttl_s=100), None, {}, 100),
        (CachePolicy(ttl_s=100), 50, {}, 50),
        (CachePolicy(ttl_s=100), 500, {}, 500),
        (CachePolicy(ttl_s=100), None, {b"x-heph-cache-ttl": b"7"}, 7),
        (CachePolicy(ttl_s=100), None, {b"x-heph-cache-ttl": b"700"}, 100),
        (CachePolicy(ttl_s=100), None, {b"x-heph-cache-ttl": b"0"}, 0),
        (CachePolicy(ttl_s=100), 0, {}, 0),
        (CachePolicy(ttl_s=0), None, {}, 0),
        (CachePolicy(enabled=False), 50, {}, 0),
        (CachePolicy(ttl_s=100), None, {b"cache-control": b"no-store"}, 0),
    ],
)
async def test_how_long_an_answer_is_kept(
    tenant: CachePolicy, route_ttl_s: int | None, headers: dict[bytes, bytes], ttl_s: int
) -> None:
    """The route's time, else the tenant's; the client may shorten it; zero, off and no-store leave no trace."""
    inner, clock = FakeInner(), FakeClock()
    cache = _cache(inner, clock)

    def call() -> Call:
        route = Route("small", (DEPLOYMENT,), cache_ttl_s=route_ttl_s)
        return make_call(tenant=TenantPolicy("acme", cache=tenant), route=route, headers=headers)

    first, _, _ = await _ask(cache, call())
    assert (ttl_s, ttl_s > 0) == (first.cache_ttl_s, bool(first.cache_key))
    if ttl_s == 0:
        assert (CacheState.BYPASS, 0) == (first.cache, len(cache.memory))
        assert cache.lookup(call()) is None
        return
    clock.advance(ttl_s - 0.001)
    assert cache.lookup(call()) is not None
    clock.advance(0.001)
    assert cache.lookup(call()) is None
    assert 0 == len(cache.memory)


async def test_no_cache_asks_anew_and_keeps_the_fresh_answer() -> None:
    """The client gets a fresh answer, and the next one gets that."""
    inner = FakeInner()
    cache = _cache(inner)
    numbers = itertools.count(1)
    inner.answer = lambda: complete_reply(b"%d" % next(numbers))
    await _ask(cache)
    fresh, _, answer = await _ask(cache, make_call(headers={b"cache-control": b"no-cache"}))
    assert (b"2", CacheState.BYPASS) == (answer, fresh.cache)
    assert b"2" == (await _ask(cache))[2]


async def test_max_age_refuses_an_older_answer() -> None:
    """An answer older than the client wants is passed over, but stays for others."""
    inner, clock = FakeInner(), FakeClock()
    cache = _cache(inner, clock)
    await _ask(cache)
    clock.advance(60)
    assert cache.lookup(make_call(headers={b"cache-control": b"max-age=60"})) is None
    assert cache.lookup(make_call(headers={b"cache-control": b"max-age=61"})) is not None
    assert cache.lookup(make_call()) is not None


@pytest.mark.parametrize("enabled", [True, False])
async def test_only_if_cached_never_goes_upstream(enabled: bool) -> None:
    """Without a stored answer it is refused as not_cached, with one it is a hit; also where caching is off."""
    inner = FakeInner()
    cache = _cache(inner)
    tenant = TenantPolicy("acme", cache=CachePolicy(enabled=enabled))
    headers = {b"cache-control": b"only-if-cached"}
    _, reply, _ = await _ask(cache, make_call(tenant=tenant, headers=headers))
    assert (504, Outcome.NOT_CACHED, 0) == (reply.status, reply.outcome, len(inner.calls))
    await _ask(cache, make_call(tenant=tenant))
    _, reply, _ = await _ask(cache, make_call(tenant=tenant, headers=headers))
    assert (200 if enabled else 504) == reply.status


async def test_an_answer_cut_at_the_tenant_s_ceiling_is_no_answer_under_another() -> None:
    """Where the body names no ceiling the tenant's is written into it, so what it was when the answer was asked for counts."""
    inner = FakeInner()
    cache = _cache(inner)
    states = []
    for ceiling in (100, 100, 200, None, 100):
        call = make_call()
        call.output_ceiling = ceiling
        states.append((await _ask(cache, call))[0].cache)
    miss, hit = CacheState.MISS, CacheState.HIT
    assert [miss, hit, miss, miss, hit] == states


async def test_a_body_without_a_key_goes_upstream() -> None:
    """What cannot be written again canonically is served, unstored."""
    inner = FakeInner()
    cache = _cache(inner)
    call = make_call()
    call.body = b'{"model":"small","messages":[1e999]}'
    await _ask(cache, call)
    assert (CacheState.BYPASS, b"", 1, 0) == (call.cache, call.cache_key, len(inner.calls), cache.stored_total)


async def test_an_entry_from_the_future_is_not_served() -> None:
    """After the clock was put back, an answer of unknown age is asked anew."""
    inner, clock = FakeInner(), FakeClock()
    cache = _cache(inner, clock)
    await _ask(cache)
    clock.advance(-3600)
    assert cache.lookup(make_call()) is None


async def test_what_leaves_memory_is_found_on_disk(tmp_path: Path) -> None:
    """An answer for which memory has no room is served from disk, and is back in memory afterwards."""
    inner = FakeInner()
    cache = _cache(inner, disk=DiskTier(tmp_path, bytes_max=10**8, read_timeout_s=10), memory_bytes=2500)
    await cache.open()
    bodies = [json.dumps({"model": "small", "messages": [number]}).encode() for number in range(5)]
    for body in bodies:
        await _ask(cache, make_call(body))
    assert cache.disk is not None
    await cache.disk.flush()
    call, reply, _ = await _ask(cache, make_call(bodies[0]))
    assert (CacheState.HIT, 5, 1, 0) == (
        call.cache,
        len(inner.calls),
        cache.store.hits_disk_total,
        cache.store.hits_memory_total,
    )
    assert b'{"answer":1}' == reply.body
    assert cache.lookup(make_call(bodies[0])) is not None
    await cache.aclose()


async def test_answers_survive_a_restart(tmp_path: Path) -> None:
    """What memory held at a clean stop is served by the next process, while its time lasts."""
    clock = FakeClock()
    first = _cache(_streaming(b"data: 1\n\n"), clock, disk=DiskTier(tmp_path, bytes_max=10**8))
    await first.open()
    await _ask(first, make_call(STREAM_BODY))
    await first.aclose()
    await first.aclose()
    inner = FakeInner()
    second = _cache(inner, clock, disk=DiskTier(tmp_path, bytes_max=10**8, read_timeout_s=10))
    await second.open()
    call, _, answer = await _ask(second, make_call(STREAM_BODY))
    assert (CacheState.HIT, b"data: 1\n\n", 0) == (call.cache, answer, len(inner.calls))
    clock.advance(3600)
    assert CacheState.MISS == (await _late(second)).cache
    await second.aclose()


async def _late(cache: Cache) -> Call:
    call = make_call(STREAM_BODY)
    await cache.send(call)
    return call


async def test_with_coalescing_below_one_flight_stores_one_answer() -> None:
    """Of calls that share a flight only the leader's passage stores; a call behind them is a hit."""
    inner = FakeInner(gated=True)
    coalesce = Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7)
    cache = _cache(coalesce)
    asking = [asyncio.create_task(_ask(cache)) for _ in range(4)]
    await settle_down()
    inner.gate.set()
    states = [(await task)[0].cache for task in asking]
    assert [CacheState.MISS, *[CacheState.COALESCED] * 3] == states
    assert (1, 1) == (len(inner.calls), cache.stored_total)
    assert CacheState.HIT == (await _ask(cache))[0].cache


async def test_streams_that_are_recorded_have_the_bound_of_all_flights() -> None:
    """Thousands at once, each within the bound of one answer, would else take what they like; who is beyond it is served and not stored."""
    inner = FakeInner()
    inner.streaming = True
    below = Coalesce(inner, calls_max=10, buffer_bytes_max=10**4, buffers_bytes_max=10**4)
    cache = _cache(below)
    bodies = [b'{"model":"small","stream":true,"messages":[%d]}' % number for number in range(3)]
    asking = [asyncio.create_task(_ask(cache, make_call(body))) for body in bodies]
    await settle_down()
    for _ in range(6):
        for stream in inner.streams:
            stream.feed(b"x" * 1000)
        await settle_down()
    assert below.buffered_bytes <= 10**4
    for stream in inner.streams:
        stream.end()
    assert [6000] * 3 == [len(said) for _, _, said in await asyncio.gather(*asking)]
    assert (3, True) == (cache.stored_total + cache.too_large_total, cache.too_large_total > 0)
    assert cache.memory.bytes_used < 10**4 + 3 * OVERHEAD_BYTES


async def test_a_fresh_answer_is_asked_for_alone() -> None:
    """A call with `no-cache` joins no flight of others."""
    inner = FakeInner(gated=True)
    cache = _cache(Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7))
    usual = asyncio.create_task(_ask(cache))
    fresh = asyncio.create_task(_ask(cache, make_call(headers={b"cache-control": b"no-cache"})))
    await settle_down()
    assert 2 == len(inner.calls)
    inner.gate.set()
    await asyncio.gather(usual, fresh)


async def test_the_pipeline_may_look_up_first_and_send_later() -> None:
    """`lookup` and then `send` is one look-up, not two."""
    inner = FakeInner()
    cache = _cache(inner)
    call = make_call(BODY)
    assert cache.lookup(call) is None
    await _ask(cache, call)
    assert (1, 1, 0) == (len(inner.calls), cache.misses_total, cache.store.hits_memory_total)
    await cache.aclose()
    assert 1 == inner.closed


async def test_what_an_identical_call_stored_since_the_look_up_is_not_asked_for_again() -> None:
    """A call that was looked up while another was in flight, and is sent on after that has ended, is a hit."""
    inner = FakeInner(gated=True)
    cache = _cache(Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7))
    first = asyncio.create_task(_ask(cache))
    await settle_down()
    late = make_call(BODY)
    assert cache.lookup(late) is None
    inner.gate.set()
    _, _, said = await first
    call, _, heard = await _ask(cache, late)
    assert (CacheState.HIT, said) == (call.cache, heard)
    assert (1, 1) == (len(inner.calls), cache.misses_total)


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
async def test_a_call_after_an_invalidation_joins_no_flight_from_before_it(operation: str) -> None:
    """It would get what it must not; those after it share as ever, and so do the calls of tenants that the rule is not about."""
    inner, clock = FakeInner(gated=True), FakeClock()
    cache = _cache(Coalesce(inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7), clock)
    body = BODY if operation == "chat" else b'{"model":"small","input":["a","b"]}'

    def ask(tenant: str, agent: str = "") -> asyncio.Task[tuple[Call, Reply, bytes]]:
        call = make_call(body, operation=operation, tenant=TenantPolicy(tenant))
        call.started_us, call.agent = clock.us(), agent
        return asyncio.create_task(_ask(cache, call))

    tasks = [ask("acme", "bot"), ask("other")]
    await settle_down()
    clock.advance(1)
    cache.configure((CacheInvalidation("i", clock.us(), 2**60, tenant="acme", agent="bot"),))
    tasks += [ask("acme"), ask("acme", "bot"), ask("other")]
    await settle_down()
    assert 3 == len(inner.calls)
    inner.gate.set()
    found = [(call.identity.tenant.id, call.cache) for call, _, _ in await asyncio.gather(*tasks) if call.identity]
    miss, shared = CacheState.MISS, CacheState.COALESCED
    assert [("acme", miss), ("other", miss), ("acme", miss), ("acme", shared), ("other", shared)] == found

"""Tests of the Redis tier against a real server: what is shared and with whom, and that a sick Redis never costs more than its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import TenantPolicy
from proxy.metrics import ProxyMetrics
from proxy.settings import ProxySecrets, Secret
from proxy.transports.cache import Cache
from proxy.transports.cache_entry import CacheEntry
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.cache_redis import RedisTier, watch_redis
from proxy.transports.cache_seal import KEY_PREFIX
from tests.proxy.fakes import World, answer, completion, replies, whole_stream
from tests.proxy.redis_server import RedisServer
from tests.proxy.state_fakes import FakeInner, complete_reply, make_call, read_all

KEY = b"k" * 20
WAIT_S = 20.0  # for what must happen; never waited in full
PEPPER = "ab" * 32


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Redis without a password."""
    started = await RedisServer(tmp_path).start()
    yield started
    started.kill()


def _tier(url: str, *, password: str | None = None, pepper: str = PEPPER, **settings: float) -> RedisTier:
    """A tier that is patient with a busy machine, unless a test says otherwise."""
    patient = {"redis": url, "redis_timeout_s": 5.0, "redis_connect_timeout_s": 5.0, "redis_pause_s": 0.02}
    secret = None if password is None else Secret(password)
    return RedisTier(
        msgspec.convert(patient | settings, ProxySettings),
        ProxySecrets(key_pepper=Secret(pepper), internal_token=Secret("t"), redis_password=secret),
    )


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0)


async def _opened(url: str, **settings: Any) -> RedisTier:  # Any: the keywords of `_tier`
    tier = _tier(url, **settings)
    tier.open()
    await _until(lambda: not tier.degraded)
    return tier


async def _tried(tier: RedisTier) -> None:
    """Opens a tier whose Redis cannot be used, and lets it try a few times."""
    tier.open()
    await _until(lambda: tier.errors_total >= 2)


@pytest.fixture
async def tier(server: RedisServer) -> AsyncIterator[RedisTier]:
    """A tier that is connected to an empty Redis."""
    opened = await _opened(server.url)
    yield opened
    await opened.aclose()


def _entry(name: str = "x", *, size: int = 10, age_s: float = 0.0) -> CacheEntry:
    created_us = time.time_ns() // 1000 - int(age_s * 1e6)
    return CacheEntry("acme", created_us, 3600, "application/json", body=name.encode() * size)


async def _written(tier: RedisTier, key: bytes, entry: CacheEntry) -> None:
    tier.put(key, entry)
    await tier.flush()


def _worker(inner: FakeInner, redis: RedisTier) -> Cache:
    """The cache of one worker: a memory of its own, and the Redis that all share."""
    return Cache(inner, memory=MemoryTier(bytes_max=10**6), disk=None, entry_bytes_max=10**6, redis=redis)


async def test_two_workers_share_an_answer(server: RedisServer) -> None:
    """What one worker brought, another serves as a hit; its own next hit comes from memory and asks Redis nothing."""
    first_inner, second_inner = FakeInner(), FakeInner()
    first, second = (
        _worker(first_inner, await _opened(server.url)),
        _worker(second_inner, await _opened(server.url)),
    )
    await first.send(make_call())
    assert first.redis is not None
    await first.redis.flush()
    call = make_call()
    reply = await second.send(call)
    assert (CacheState.HIT, 20, b'{"answer":1}') == (call.cache, call.saved_nanousd, reply.body)
    assert (1, 0, 1) == (len(first_inner.calls), len(second_inner.calls), second.store.hits_redis_total)
    assert second.lookup(make_call()) is not None
    assert (1, 1) == (second.store.hits_memory_total, second.store.hits_redis_total)
    await first.aclose()
    await second.aclose()


async def test_of_two_answers_that_wait_the_newer_one_is_written(server: RedisServer, tier: RedisTier) -> None:
    """One that comes before the one before it is written, or while it is being written, takes its place; nothing is counted twice."""
    other = await _opened(server.url)
    tier.put(KEY, _entry("a"))
    tier.put(KEY, _entry("b", size=20))
    await asyncio.sleep(0)  # it is on its way
    tier.put(KEY, newest := _entry("c"))
    await tier.flush()
    assert newest == await other.get(KEY)
    assert (2, 0, 0) == (tier.written_total, tier.dropped_total, tier._pending_bytes)
    await other.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_two_hosts_serve_each_other_s_answers(server: RedisServer, tmp_path: Path, *, stream: bool) -> None:
    """Over HTTP: what came through one proxy is a hit with the same bytes at another, and without Redis the other asks for itself."""
    hosts = [await World(tmp_path / name).start(redis=server.url, redis_timeout_s=5.0) for name in "ab"]
    policy = TenantPolicy(id="acme")
    answers = [replies(whole_stream("Hel", "lo") if stream else answer(completion())) for _ in hosts]
    upstreams = [await host.upstream(script) for host, script in zip(hosts, answers, strict=True)]
    for host in hosts:
        host.apply(tenant=policy)
    tiers = [host.worker.cache.redis for host in hosts]
    assert None not in tiers
    await _until(lambda: not any(tier.degraded for tier in tiers if tier))
    first = await hosts[0].chat(stream=stream)
    for tier in tiers:
        assert tier is not None
        await tier.flush()
    second = await hosts[1].chat(stream=stream)
    assert ("miss", "hit") == (first.headers["x-heph-cache"], second.headers["x-heph-cache"])
    assert ([1, 0], _content(first.text)) == ([len(up.received) for up in upstreams], _content(second.text))
    server.kill()
    third = await hosts[1].chat(stream=stream, n=1)
    assert (200, "miss", 1) == (third.status_code, third.headers["x-heph-cache"], len(upstreams[1].received))
    metrics = (await hosts[1].client.get("/metrics")).text
    assert 'heph_proxy_cache_redis_hits_total{worker="0"} 1.0' in metrics
    assert 'heph_proxy_cache_redis_degraded{worker="0"} 1.0' in metrics
    for host in hosts:
        await host.stop()


def _content(text: str) -> str:
    """A body without the comment of ours that ends a stream and tells its cost."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(":"))


async def test_a_stream_is_shared_with_its_blocks(server: RedisServer, tier: RedisTier) -> None:
    """A stored stream of several blocks comes back equal on another host."""
    entry = msgspec.structs.replace(_entry(), body=b"", blocks=(b"data: 1\n\n" * 9, b"data: [DONE]\n\n"), stream=True)
    await _written(tier, KEY, entry)
    other = await _opened(server.url)
    assert entry == await other.get(KEY)
    await other.aclose()


async def test_tenants_never_share(server: RedisServer) -> None:
    """The same request of another tenant is a miss, on the same worker and on another."""
    inner = FakeInner()
    tiers = [await _opened(server.url) for _ in range(2)]
    caches = [_worker(inner, tier) for tier in tiers]
    for tenant, number in (("acme", 0), ("other", 0), ("third", 1), ("acm", 1)):
        inner.answer = partial(complete_reply, tenant.encode())
        call = make_call(tenant=TenantPolicy(tenant))
        assert tenant.encode() == await read_all(await caches[number].send(call))
        assert CacheState.MISS is call.cache
        await tiers[number].flush()
    for cache in caches:
        await cache.aclose()


async def test_installations_never_share(server: RedisServer, tier: RedisTier) -> None:
    """Another installation with the same tenants on the same Redis has other keys, and cannot forge a value."""
    await _written(tier, KEY, _entry())
    other = await _opened(server.url, pepper="cd" * 32)
    assert await other.get(KEY) is None
    with server.client() as client:
        client.copy(tier._seals.name_of(KEY), other._seals.name_of(KEY))
    assert await other.get(KEY) is None
    assert (1, 1) == (other.misses_total, other.damaged_total)
    await other.aclose()


async def test_a_value_under_another_key_is_a_miss(server: RedisServer, tier: RedisTier) -> None:
    """Somebody who can write to Redis cannot make one answer the answer to another question."""
    await _written(tier, KEY, _entry())
    with server.client() as client:
        client.rename(tier._seals.name_of(KEY), tier._seals.name_of(b"other"))
    assert (None, 1) == (await tier.get(b"other"), tier.damaged_total)


async def test_keys_and_times_to_live(server: RedisServer, tier: RedisTier) -> None:
    """A key is the prefix and hex digits, and Redis forgets it when the entry expires, whatever its age when it was written."""
    await _written(tier, KEY, _entry(age_s=600))
    with server.client() as client:
        (name,) = client.keys()
        assert name.decode().startswith(KEY_PREFIX)
        assert 40 == len(bytes.fromhex(name.decode().removeprefix(KEY_PREFIX)).hex())
        assert 2_900_000 < client.pttl(name) <= 3_000_000


async def test_an_entry_that_expires_is_gone(tier: RedisTier) -> None:
    """Near the end of its life an entry is still there, and then not; one that is past it is never written."""
    await _written(tier, KEY, _entry(age_s=3600 + 1))
    assert (0, 1) == (tier.written_total, tier.dropped_total)
    await _written(tier, KEY, _entry(age_s=3600 - 0.3))
    assert 1 == tier.written_total
    async with asyncio.timeout(WAIT_S):
        while await tier.get(KEY) is not None:
            pass


async def test_a_large_entry_is_not_written(tier: RedisTier, server: RedisServer) -> None:
    """Above the bound nothing is sent, also when only the encoding is above it; both are counted."""
    small = await _opened(server.url, redis_entry_bytes_max=10_000)
    await _written(small, KEY, _entry(size=10_001))
    named = msgspec.structs.replace(_entry(), deployment="d" * 20_000)
    await _written(small, KEY, named)
    assert (2, 0, None) == (small.too_large_total, small.written_total, await small.get(KEY))
    await _written(tier, KEY, _entry(size=20_000))
    assert await tier.get(KEY) is not None
    assert (None, 1) == (await small.get(KEY), small.damaged_total)
    await small.aclose()


async def test_writes_that_wait_are_bounded(server: RedisServer) -> None:
    """When too much waits, the newest is dropped and counted, and the rest is written."""
    tier = await _opened(server.url, redis_pending_bytes_max=10_000)
    for number in range(20):
        tier.put(bytes([number]) * 20, _entry())
    await tier.flush()
    assert (20, True) == (tier.written_total + tier.dropped_total, 0 < tier.dropped_total < 20)
    await _written(tier, KEY, _entry())
    assert await tier.get(KEY) is not None
    await tier.aclose()


async def test_a_killed_redis_costs_nothing_and_is_used_again_when_it_is_back(server: RedisServer) -> None:
    """Calls go on without it, look-ups and writes are skipped and counted, and a new server is found by itself."""
    inner = FakeInner()
    cache = _worker(inner, await _opened(server.url))
    tier = cache.redis
    assert isinstance(tier, RedisTier)
    server.kill()
    await _until(lambda: tier.degraded)
    call = make_call()
    assert 200 == (await cache.send(call)).status
    assert (CacheState.MISS, 1, 1) == (call.cache, tier.skipped_total, tier.dropped_total)
    assert tier.errors_total >= 1
    await server.start()
    await _until(lambda: not tier.degraded)
    await _written(tier, KEY, _entry())
    assert await tier.get(KEY) is not None
    await cache.aclose()
    assert (True, None) == (tier.degraded, cache.redis)  # the tier is closed with its cache


async def test_a_frozen_redis_costs_the_deadline_a_few_times_and_then_nothing(server: RedisServer) -> None:
    """Each look-up waits for the deadline until the breaker opens; then none waits; thawed, it is used again."""
    tier = await _opened(server.url, redis_timeout_s=0.05, redis_connect_timeout_s=0.2, redis_failures_max=3)
    server.freeze()
    tries = 0
    while not tier.degraded and tries < 20:
        began = time.monotonic()
        assert await tier.get(KEY) is None
        assert time.monotonic() - began < 20.0  # the deadline, and much patience with a busy machine
        tries += 1
    assert (tries, True, 0) == (tier.errors_total, 3 <= tries < 20, tier.skipped_total)
    for _ in range(100):
        assert await tier.get(KEY) is None
    assert 100 == tier.skipped_total
    server.thaw()
    await _until(lambda: not tier.degraded)
    await tier.aclose()


async def test_only_failures_in_a_row_open_the_breaker(server: RedisServer) -> None:
    """A look-up that was answered in time, if only with nothing, starts the count anew."""
    tier = await _opened(server.url, redis_timeout_s=0.05, redis_failures_max=3, redis_pause_s=3600)
    hasty = tier._settings
    for _ in range(4):
        server.freeze()
        assert await tier.get(KEY) is None
        server.thaw()
        tier._settings = msgspec.structs.replace(hasty, redis_timeout_s=WAIT_S)  # a busy machine must not fail this one
        assert await tier.get(KEY) is None
        tier._settings = hasty
    assert (4, 4, False) == (tier.errors_total, tier.misses_total, tier.degraded)
    await tier.aclose()


async def test_a_late_answer_does_not_become_another_s(server: RedisServer) -> None:
    """An answer that comes after its deadline is thrown away: the next look-up gets its own."""
    tier = await _opened(server.url, redis_timeout_s=0.05, redis_failures_max=1000)
    await _written(tier, b"a" * 20, _entry("a"))
    await _written(tier, b"b" * 20, _entry("b"))
    server.freeze()
    assert [None] * 4 == [await tier.get(b"a" * 20) for _ in range(4)]
    server.thaw()

    async def found() -> CacheEntry:
        async with asyncio.timeout(WAIT_S):
            while (entry := await tier.get(b"b" * 20)) is None:
                pass
        return entry

    assert _entry("b").body == (await found()).body
    await tier.aclose()


async def test_our_own_stall_is_not_blamed_on_redis(server: RedisServer) -> None:
    """When the event loop stood still, the look-up is given up, but the breaker stays closed."""
    tier = await _opened(server.url, redis_timeout_s=0.05, redis_failures_max=1)
    server.freeze()  # no answer can arrive in time
    look_up = asyncio.ensure_future(tier.get(KEY))
    await asyncio.sleep(0)
    began = time.monotonic()
    while time.monotonic() - began < 0.3:
        pass
    assert await look_up is None
    assert (1, False) == (tier.errors_total, tier.degraded)
    server.thaw()
    await tier.aclose()


async def test_look_ups_under_way_are_bounded(server: RedisServer) -> None:
    """Above the bound a look-up is skipped at once and counted."""
    tier = await _opened(server.url, redis_timeout_s=0.05, redis_waiting_max=4, redis_failures_max=1000)
    server.freeze()
    await asyncio.gather(*(tier.get(bytes([number])) for number in range(10)))
    assert 6 == tier.busy_total
    server.thaw()
    await tier.aclose()


async def test_frozen_writes_are_given_up(server: RedisServer) -> None:
    """Nobody waits for a write; one that Redis does not take in time is dropped, and Redis is left alone."""
    tier = await _opened(server.url, redis_connect_timeout_s=0.1)
    server.freeze()
    tier.put(KEY, _entry())
    await tier.flush()
    assert (0, 1, True) == (tier.written_total, tier.dropped_total, tier.degraded)
    server.thaw()
    await tier.aclose()


async def test_closing_does_not_wait_for_a_frozen_redis(server: RedisServer) -> None:
    """What waits to be written is given up after the time of one connection."""
    tier = await _opened(server.url, redis_connect_timeout_s=0.1)
    server.freeze()
    tier.put(KEY, _entry(size=100_000))
    async with asyncio.timeout(WAIT_S):
        await tier.aclose()
        await tier.aclose()
    server.thaw()
    assert (None, True) == (await tier.get(KEY), tier.degraded)


async def test_the_password(tmp_path: Path) -> None:
    """The right one opens; a wrong one or none leaves the tier out, never raises, and its errors are counted."""
    server = await RedisServer(tmp_path, "--requirepass", "pass word").start()
    tier = await _opened(server.url, password="pass word")
    await _written(tier, KEY, _entry())
    assert await tier.get(KEY) is not None
    for wrong in ("wrong", None):
        out = _tier(server.url, password=wrong)
        await _tried(out)
        assert (True, None, 1) == (out.degraded, await out.get(KEY), out.skipped_total)
        await out.aclose()
    await tier.aclose()
    server.kill()


async def test_a_server_that_is_not_redis(tmp_path: Path) -> None:
    """Whatever answers at the address, the tier stays out and nothing raises."""
    for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b":x\r\n", b"*1\r\n" * 5000, b"$5\r\nab", b"+OK\r\n+OK\r\n" * 9):

        async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
            writer.write(said)
            await writer.drain()
            writer.close()

        listener = await asyncio.start_server(babble, "127.0.0.1", 0)
        tier = _tier(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        await _tried(tier)
        assert None is await tier.get(KEY)
        await tier.aclose()
        listener.close()


async def test_a_value_of_another_type_or_a_refusal_is_a_miss(server: RedisServer, tier: RedisTier) -> None:
    """A list under our key is damage; a write that Redis refuses for want of memory is an error; reading goes on."""
    with server.client() as client:
        client.rpush(tier._seals.name_of(KEY), "x")
        assert (None, 1, False) == (await tier.get(KEY), tier.damaged_total, tier.degraded)
        client.config_set("maxmemory", 1)
        client.config_set("maxmemory-policy", "noeviction")
        await _written(tier, b"other", _entry())
        assert (0, 1, 1, False) == (tier.written_total, tier.dropped_total, tier.errors_total, tier.degraded)


async def test_a_master_that_became_a_replica_is_looked_for_anew(server: RedisServer, tier: RedisTier) -> None:
    """Its connections stay and answer reads, but nothing would be stored for all any more."""
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        await _written(tier, KEY, _entry())
        assert (0, 1, True) == (tier.written_total, tier.dropped_total, tier.degraded)
        client.execute_command("REPLICAOF", "NO", "ONE")
        await _until(lambda: not tier.degraded)
        await _written(tier, KEY, _entry())
    assert await tier.get(KEY) is not None


async def test_a_damaged_value_is_a_miss(server: RedisServer, tier: RedisTier) -> None:
    """One bit that changed, wherever, is noticed and counted."""
    await _written(tier, KEY, _entry())
    name = tier._seals.name_of(KEY)
    with server.client() as client:
        good = client.get(name)
        for index in (0, 15, 16, 20, len(good) - 1):
            client.set(name, good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :])
            assert await tier.get(KEY) is None
        client.set(name, good[:10])
        assert await tier.get(KEY) is None
        client.set(name, good)
    assert 6 == tier.damaged_total
    assert await tier.get(KEY) is not None


def _run_both(server: RedisServer, work: Callable[[RedisTier], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        tier = await _opened(server.url)
        try:
            await work(tier)
        finally:
            await tier.aclose()

    asyncio.run(run())


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Redis for the property tests; Any: a generator fixture of pytest."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    asyncio.run(_started(server))
    yield server
    server.kill()


async def _started(server: RedisServer) -> None:
    await server.start()


@given(values=st.lists(st.binary(max_size=200), min_size=1, max_size=5), sealed=st.booleans())
def test_no_stored_bytes_ever_raise(shared_server: RedisServer, values: list[bytes], *, sealed: bool) -> None:
    """Any bytes under our key are a miss, also when they carry our own seal but are no entry."""

    async def look(tier: RedisTier) -> None:
        with shared_server.client() as client:
            for value in values:
                client.set(tier._seals.name_of(KEY), tier._seals._seal(KEY, value) + value if sealed else value)
                assert await tier.get(KEY) is None

    _run_both(shared_server, look)


@given(body=st.binary(max_size=5000), ttl_s=st.integers(1, 10**7), key=st.binary(min_size=1, max_size=64))
def test_every_entry_comes_back_equal(shared_server: RedisServer, body: bytes, ttl_s: int, key: bytes) -> None:
    """Whatever an answer's bytes are, another reader gets the same."""
    entry = msgspec.structs.replace(_entry(), body=body, ttl_s=ttl_s)

    async def round_trip(tier: RedisTier) -> None:
        await _written(tier, key, entry)
        assert entry == await tier.get(key)

    _run_both(shared_server, round_trip)


async def test_its_figures_are_metrics(server: RedisServer, tier: RedisTier) -> None:
    """Every counter and the degraded state are shown, and are there, as zero, without a Redis."""
    with_tier, without = ProxyMetrics("0"), ProxyMetrics("0")
    watch_redis(with_tier.watch, tier)
    watch_redis(without.watch, None)
    await tier.get(KEY)
    assert b'heph_proxy_cache_redis_misses_total{worker="0"} 1.0' in with_tier.render()
    assert b'heph_proxy_cache_redis_degraded{worker="0"} 0.0' in with_tier.render()
    assert b'heph_proxy_cache_redis_misses_total{worker="0"} 0.0' in without.render()
    server.kill()
    await _until(lambda: tier.degraded)
    assert b'heph_proxy_cache_redis_degraded{worker="0"} 1.0' in with_tier.render()


def test_a_bad_address_stops_the_start() -> None:
    """An address that cannot be read is an error when the tier is made, not when it is used."""
    with pytest.raises(ValueError, match="password"):
        _tier("redis://:secret@h/0")

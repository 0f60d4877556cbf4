"""Two hosts with one Redis are one proxy: limits, answers, calls in flight, keys and hints are shared, and Redis may be slow, die or fail over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest

from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import (
    BreakerPolicy,
    Budget,
    CacheInvalidation,
    CachePolicy,
    TenantPolicy,
    Window,
    encode_snapshot,
)
from tests.proxy.control_plane_fake import Asked, control_plane
from tests.proxy.fakes import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    Received,
    Script,
    ScriptedUpstream,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    until,
    usage_event,
)
from tests.proxy.redis_groups import RedisCluster, RedisSentinel
from tests.proxy.redis_server import RedisServer
from tests.proxy.redis_slow import SlowWay

TOKENS = 12  # of each answer
WORST = 100  # tokens that one call may need: its body and its ceiling
LIMIT = 1_800
COST_NANOUSD = 15_000
POCKET = TenantPolicy("acme", budgets=(Budget("pocket", Window.TOTAL, tokens=LIMIT),), cache=CachePolicy(enabled=False))
GOOD = replies(answer(completion()))
REFUSED_S = 0.5


Urls = tuple[str, str]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer | RedisCluster]]:
    """One server and one cluster for all tests."""
    made: dict[str, RedisServer | RedisCluster] = {
        "server": RedisServer(tmp_path_factory.mktemp("server")),
        "cluster": RedisCluster(tmp_path_factory.mktemp("cluster")),
    }
    try:
        for group in made.values():
            asyncio.run(_started(group))
        yield made
    finally:
        for group in made.values():
            group.kill()


async def _started(group: RedisServer | RedisCluster) -> None:
    await group.start()


def emptied(group: RedisServer | RedisCluster) -> Urls:
    """Addresses for the one and for the other host; nothing is in it."""
    nodes = group.nodes if isinstance(group, RedisCluster) else [group]
    for node in nodes:
        node.client().flushall()
    return (group.url(0), group.url(1)) if isinstance(group, RedisCluster) else (group.url, group.url)


@pytest.fixture(params=["server", "cluster"])
def urls(request: pytest.FixtureRequest, groups: dict[str, RedisServer | RedisCluster]) -> Urls:
    """A server for both, or each by another node of a cluster."""
    return emptied(groups[request.param])


@pytest.fixture
def plain(groups: dict[str, RedisServer | RedisCluster]) -> Urls:
    """One server, where it makes no difference."""
    return emptied(groups["server"])


@dataclass
class Hosts:
    """Two proxies that have nothing in common but Redis, an upstream and what they were told; and how their calls ended."""

    worlds: list[World]
    upstream: ScriptedUpstream
    served: Counter[int] = field(default_factory=Counter)

    def apply(self, tenant: TenantPolicy, *, breaker: BreakerPolicy | None = None) -> None:
        """The same to both."""
        for world in self.worlds:
            url = f"http://127.0.0.1:{self.upstream.port}/v1"
            world.apply(tenant=tenant, urls=(url,), breaker=breaker, route={"attempts_max": 1})

    async def call(self, count: int) -> None:
        """So many calls at once, one here, one there; none takes long, whatever happens to Redis."""
        calls = [self.worlds[number % 2].chat(max_tokens=3) for number in range(count)]
        async with asyncio.timeout(20.0):
            for response in await asyncio.gather(*calls):
                self.served[response.status_code] += 1

    async def spend_all(self) -> None:
        """Calls until nobody has had anything for a while, in which the hosts have asked each other several times for what is left."""
        clock = asyncio.get_running_loop().time
        refused_since = clock()
        async with asyncio.timeout(60.0):
            while clock() - refused_since < REFUSED_S:
                before = self.served[200]
                await self.call(10)
                if self.served[200] > before:
                    refused_since = clock()

    @property
    def spent(self) -> int:
        """Tokens, as both ledgers have them."""
        return sum(world.worker.ledger.tokens for world in self.worlds)

    async def ready(self) -> None:
        """Until both use Redis for everything."""
        for world in self.worlds:
            await until(partial(_uses_redis, world))
            assert world.worker.shared is not None
            await world.worker.shared.ready()

    async def degraded(self) -> list[str]:
        """What each says that it lacks."""
        return [(await world.client.get("/readyz")).json().get("degraded", "") for world in self.worlds]


@contextlib.asynccontextmanager
async def hosts_of(
    folder: Path, urls: Urls, settings: dict[str, object] | None = None, *, script: Script = GOOD
) -> AsyncIterator[Hosts]:
    """Two of them, each with a directory of its own, that have reached Redis."""
    upstream = await ScriptedUpstream(script).start()
    worlds = [World(folder / name) for name in ("here", "there")]
    hosts = Hosts(worlds, upstream)
    try:
        for world, url in zip(worlds, urls, strict=True):
            await world.start(**{"hosts": 2, "redis": url, "redis_timeout_s": 0.5} | (settings or {}))
        await hosts.ready()
        yield hosts
    finally:
        for world in worlds:
            if hasattr(world, "client"):
                await world.stop()
        await upstream.stop()


async def test_two_hosts_spend_one_budget(tmp_path: Path, urls: Urls) -> None:
    """All of it is let in, whoever is asked, and not a token more; each host's ledger has what it served."""
    async with hosts_of(tmp_path, urls) as hosts:
        hosts.apply(POCKET)
        await hosts.spend_all()
        assert {200, 429} == set(hosts.served)
        assert hosts.served[200] * TOKENS == hosts.spent
        assert LIMIT - WORST < hosts.spent <= LIMIT


async def test_an_answer_brought_by_one_host_is_a_hit_at_the_other(tmp_path: Path, urls: Urls) -> None:
    """It costs nothing there, and the upstream is asked once."""
    async with hosts_of(tmp_path, urls) as hosts:
        hosts.apply(TenantPolicy("acme"))
        here, there = hosts.worlds
        assert "miss" == (await here.chat()).headers["x-heph-cache"]
        assert here.worker.cache.redis is not None
        await here.worker.cache.redis.flush()
        hit = await there.chat()
        assert ("hit", completion()) == (hit.headers["x-heph-cache"], hit.content)
        assert 1 == len(hosts.upstream.received)
        assert [(CacheState.HIT, 0)] == [(record.cache, record.cost_nanousd) for record in there.records()]


@pytest.mark.parametrize("stream", [False, True])
async def test_identical_calls_on_both_hosts_are_one_upstream_call(tmp_path: Path, urls: Urls, stream: bool) -> None:
    """Ten calls, five here, five there, streamed or not: one answer for all, and its bill is there once."""
    go_on = asyncio.Event()

    async def script(wire: Wire, _: Received) -> None:
        if stream:
            await wire.send(STREAM_HEAD + chunk(event() + event("Hel")))
        await go_on.wait()
        end = event("lo") + event("", delta={}, finish_reason="stop") + usage_event() + DONE
        await wire.send(chunk(end) + STREAM_END if stream else answer(completion()))

    async with hosts_of(tmp_path, urls, script=script) as hosts:
        hosts.apply(TenantPolicy("acme"))
        calls = [asyncio.create_task(hosts.worlds[number % 2].chat(stream=stream)) for number in range(10)]
        workers = [world.worker for world in hosts.worlds]
        await until(lambda: 9 == sum(one.coalesce.joined_total + one.flights.followed_total for one in workers))
        go_on.set()
        responses = await asyncio.gather(*calls)
        assert 1 == len(hosts.upstream.received)
        texts = {"".join(line for line in one.text.splitlines() if not line.startswith(":")) for one in responses}
        assert ({200}, 1) == ({one.status_code for one in responses}, len(texts))
        for world in hosts.worlds:
            await world.until_idle()
        records = [record for world in hosts.worlds for record in world.records()]
        assert {CacheState.MISS: 1, CacheState.COALESCED: 9} == Counter(record.cache for record in records)
        assert COST_NANOUSD == sum(record.cost_nanousd for record in records)


async def test_an_invalidation_reaches_answers_in_flight_on_the_other_host(tmp_path: Path, plain: Urls) -> None:
    """Who asks after it, on whatever host, gets nothing that was asked for before it, neither while that comes nor just after."""
    go_on = asyncio.Event()
    words = iter(("old", "new", "newer"))

    async def script(wire: Wire, _: Received) -> None:
        said = next(words)
        if said == "old":
            await go_on.wait()
        await wire.send(answer(completion(said)))

    async with hosts_of(tmp_path, plain, script=script) as hosts:
        hosts.apply(TenantPolicy("acme"))
        here, there = hosts.worlds
        old = asyncio.create_task(here.chat())
        await until(lambda: 1 == len(hosts.upstream.received))
        for at, host in enumerate((there, here)):
            rule = CacheInvalidation("i", time.time_ns() // 1000, 2**60, tenant="acme")
            for world in hosts.worlds:
                assert world.worker.app.runtime is not None
                snapshot = world.worker.app.runtime.snapshot
                world.worker.apply(msgspec.structs.replace(snapshot, version=9 + at, invalidations=(rule,)))
            fresh = await host.chat()
            assert ("miss", completion(("new", "newer")[at])) == (fresh.headers["x-heph-cache"], fresh.content)
            go_on.set()
            assert completion("old") == (await old).content


async def test_a_breaker_that_opens_here_makes_the_other_host_sceptical(tmp_path: Path, plain: Urls) -> None:
    """Three failures open it here; there one is enough, once the word has come."""
    async with hosts_of(tmp_path, plain, script=fails(500)) as hosts:
        policy = BreakerPolicy(requests_min=1_000, failures_in_row=3)
        hosts.apply(TenantPolicy("acme", cache=CachePolicy(enabled=False)), breaker=policy)
        here, there = hosts.worlds
        for _ in range(3):
            await here.chat()
        assert there.worker.hints is not None
        await until(lambda: there.worker.hints is not None and there.worker.hints.taken_total)
        assert [] == [status for status in there.worker.breaker.statuses() if status.state == "open"]
        await there.chat()
        assert ["open"] == [status.state for status in there.worker.breaker.statuses()]
        assert 4 == len(hosts.upstream.received)


async def test_a_revoked_key_is_refused_by_both_hosts(tmp_path: Path, plain: Urls) -> None:
    """Each learns it from the control plane within its poll; nothing of what the key had asked is given to it any more."""
    async with control_plane() as plane:
        documents: list[bytes] = []
        plane.answer = lambda asked: _snapshot(asked, documents)
        async with hosts_of(tmp_path, plain, {"control_plane_url": plane.url}) as hosts:
            hosts.apply(TenantPolicy("acme"))
            for world in hosts.worlds:
                assert 200 == (await world.chat()).status_code
            runtime = hosts.worlds[0].worker.app.runtime
            assert runtime is not None
            now_us = time.time_ns() // 1000
            documents.append(
                encode_snapshot(msgspec.structs.replace(runtime.snapshot, version=9, keys=(), created_us=now_us))
            )
            for world in hosts.worlds:
                await until(partial(getattr, world.worker.snapshots, "current"))
                assert 401 == (await world.chat()).status_code


def _snapshot(asked: Asked, documents: list[bytes]) -> tuple[int, bytes]:
    """The last document, to who has it not."""
    if "/snapshot" not in asked.path:
        return 200, b""
    return (200, documents[-1]) if documents and "have=9" not in asked.query else (304, b"")


@dataclass
class Trouble:
    """Something that happens to Redis, and how it ends."""

    url: str
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def trouble_of(kind: str, folder: Path) -> AsyncIterator[Trouble]:
    """A Redis with a way to get it into trouble."""
    place = folder / "redis"
    place.mkdir()
    if kind == "failover":
        group = RedisSentinel(place, replicated=True)
        try:
            await group.start()

            async def die() -> None:
                group.master.kill()

            yield Trouble(group.url, die, group.fail_over)
        finally:
            group.kill()
        return
    server = await RedisServer(place).start()
    way = await SlowWay(server).start()
    try:

        async def slow() -> None:
            way.delay_s = 2.0

        async def fast() -> None:
            way.delay_s = 0.0

        async def killed() -> None:
            server.kill()

        async def started() -> None:
            await server.start()

        yield Trouble(way.url, slow, fast) if kind == "slow" else Trouble(server.url, killed, started)
    finally:
        await way.stop()
        server.kill()


def _uses_redis(world: World) -> bool:
    shared, stored = world.worker.shared, world.worker.cache.redis
    return shared is not None and stored is not None and not shared.degraded and not stored.degraded


def _on_its_own(world: World) -> bool:
    """Whether Redis is out for this host, and no slice that it has may be used."""
    worker = world.worker
    assert worker.shared is not None
    assert worker.lending is not None
    return worker.shared.degraded and not any(lease.is_valid() for lease in worker.lending.leases.active.values())


@pytest.mark.parametrize("kind", ["slow", "killed", "failover"])
async def test_calls_go_on_through_trouble_and_nothing_is_spent_twice(tmp_path: Path, kind: str) -> None:
    """Redis answers too late, loses its memory, or is replaced by its replica: no call hangs, each host goes on with its part and says
    so, and afterwards exactly the rest of the budget is let in.
    """
    settings: dict[str, object] = {
        "redis_timeout_s": 0.5,
        "redis_pause_s": 0.05,
        "redis_failures_max": 1,
        "quota_lease_s": 0.5,
    }
    async with trouble_of(kind, tmp_path) as trouble, hosts_of(tmp_path, (trouble.url, trouble.url), settings) as hosts:
        hosts.apply(POCKET)
        await hosts.call(20)
        await trouble.begin()
        await hosts.call(4)
        for world in hosts.worlds:
            await until(partial(_on_its_own, world))
        await hosts.call(6)
        assert {200} == set(hosts.served)
        assert all("Redis does not answer" in said for said in await hosts.degraded())
        await trouble.end()
        await hosts.ready()
        async with asyncio.timeout(30.0):
            while any(await hosts.degraded()):
                await hosts.call(2)
        assert hosts.spent < LIMIT
        await hosts.spend_all()
        assert {200, 429} == set(hosts.served)
        assert hosts.served[200] * TOKENS == hosts.spent
        assert LIMIT - WORST < hosts.spent <= LIMIT


async def test_hosts_that_hear_nothing_of_each_other_spend_their_parts(tmp_path: Path) -> None:
    """Redis is gone before the first call: each lets in half of the budget, and both together never more than all of it."""
    server = await RedisServer(tmp_path).start()
    settings: dict[str, object] = {"redis_pause_s": 0.05, "redis_failures_max": 1, "quota_lease_s": 0.5}
    try:
        async with hosts_of(tmp_path, (server.url, server.url), settings) as hosts:
            server.kill()
            hosts.apply(POCKET)
            await hosts.call(4)  # of which each host hears that Redis is gone
            for world in hosts.worlds:
                await until(partial(_on_its_own, world))
            await hosts.spend_all()
            assert {200, 429} == set(hosts.served)
            assert all(LIMIT // 2 - WORST < world.worker.ledger.tokens <= LIMIT // 2 for world in hosts.worlds)
    finally:
        server.kill()


async def test_flights_on_a_slow_redis_are_each_host_s_own(tmp_path: Path) -> None:
    """Nobody waits for another host longer than for one answer of Redis, and then not at all: each host asks once."""
    settings: dict[str, object] = {"redis_timeout_s": 0.5, "redis_pause_s": 0.05, "redis_failures_max": 1}
    async with (
        trouble_of("slow", tmp_path) as trouble,
        hosts_of(tmp_path, (trouble.url, trouble.url), settings) as hosts,
    ):
        hosts.apply(TenantPolicy("acme"))
        await trouble.begin()
        async with asyncio.timeout(20.0):
            calls = [hosts.worlds[number % 2].chat() for number in range(10)]
            responses: list[httpx.Response] = await asyncio.gather(*calls)
        assert {200} == {response.status_code for response in responses}
        assert 2 == len(hosts.upstream.received)

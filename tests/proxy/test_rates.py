"""Tests of a rate that workers share through a real Redis, under a clock that the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import TenantPolicy
from proxy.leases import Leases
from proxy.metrics import ProxyMetrics
from proxy.quotas.account import Line, Share
from proxy.quotas.bucket import Stock
from proxy.rates import HOLD_S, Rates
from proxy.settings import ProxySecrets, Secret
from proxy.shared import SharedState
from proxy.stages.admit import Admit
from tests.proxy.redis_server import RedisServer
from tests.proxy.stages.test_admit import call_of
from tests.proxy.state_fakes import FakeClock
from tests.proxy.test_leases import Link

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("t"))
_tags = iter(range(10**9))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; each uses keys of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    server.kill()


class Door:
    """One worker's admit stage with its shared rate and slots."""

    def __init__(self, link: Link, clock: FakeClock, share: Share) -> None:
        self.link = link
        self.rates = Rates(link, share=share, monotonic=clock.s, redis_now_ms=lambda: clock.now_us // 1000)  # type: ignore[arg-type]  # the door with a tap
        self.leases = Leases(
            link,  # type: ignore[arg-type]  # the same
            worker=f"w{share.worker}",
            share=share,
            lease_s=10.0,
            wait_s=0.001,
            monotonic=clock.s,
            now_us=clock.us,
            redis_now_ms=lambda: clock.now_us // 1000,
        )
        self.stage = Admit(ProxyMetrics("0"), share=share, lenders=self, monotonic=clock.s, now_us=clock.us)

    def lend(self, line: Line) -> None:
        """As `Lending` does it."""
        self.leases.lend(line)

    async def refill(self, short: tuple[tuple[Line, int], ...]) -> None:
        """As `Lending` does it."""
        await self.leases.refill(short)

    def stock(self, tenant: str, limit: int) -> Stock:
        """As `Lending` does it."""
        return self.rates.stock(tenant, limit)

    async def restock(self, stock: Stock) -> None:
        """As `Lending` does it."""
        await self.rates.restock(stock)

    async def passes(self, tenant: TenantPolicy) -> bool:
        """One call, as the pipeline treats it; it ends at once."""
        call = call_of(tenant)
        reply = self.stage.enter(call)
        while reply is not None and call.shortage is not None:
            wait, call.shortage = call.shortage, None
            await wait()
            reply = self.stage.enter(call)
        self.stage.leave(call)
        return reply is None


@asynccontextmanager
async def doors(server: RedisServer, clock: FakeClock, count: int) -> AsyncIterator[list[Door]]:
    """So many workers at one Redis."""
    shared = SharedState(ProxySettings(redis=server.url, redis_timeout_s=2.0, redis_pause_s=0.02), SECRETS)
    tag = b"rate%d:" % next(_tags)
    made = [Door(Link(shared, tag), clock, Share(number, count)) for number in range(count)]
    shared.open()
    try:
        async with asyncio.timeout(20.0):
            await shared.ready()
        yield made
    finally:
        await shared.aclose()


async def test_one_worker_may_use_the_whole_rate(server: RedisServer) -> None:
    """A minute's worth at once, then as fast as the bucket fills, whoever of the workers is asked."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 3) as workers:
        assert 60 == sum([await workers[0].passes(tenant) for _ in range(100)])
        clock.advance(10)
        assert 10 == sum([await workers[number % 3].passes(tenant) for number in range(30)])


async def test_what_is_not_used_goes_back(server: RedisServer) -> None:
    """Requests that a worker took ahead and does not use are another's after a moment."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 2) as (one, other):
        for _ in range(10):
            assert await one.passes(tenant)
        for _ in range(2):
            clock.advance(HOLD_S / 2)
            await one.rates.keep()
        assert 52 == sum([await other.passes(tenant) for _ in range(100)])
        assert not await one.passes(tenant)  # what it gave back it does not have any more


async def test_most_calls_do_not_wait_for_redis(server: RedisServer) -> None:
    """The stock follows the rate, so Redis is asked a few times a second and not for each call."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60_000)
    async with doors(server, clock, 1) as (door,):
        for _ in range(1000):
            assert await door.passes(tenant)
            clock.advance(0.002)
            await door.rates.keep()
        assert door.link.reports < 60


async def test_without_redis_the_parts_sum_to_the_rate(server: RedisServer) -> None:
    """Cut off, each worker fills its own part: never the rate times the workers; back again, the whole is shared anew, less what each has let in."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 2) as workers:
        assert 60 == sum([await workers[number % 2].passes(tenant) for number in range(200)])
        for door in workers:
            door.link.degraded = True
        clock.advance(30)
        assert 30 == sum([await workers[number % 2].passes(tenant) for number in range(200)])
        assert [True, True] == [next(iter(door.rates._rates.values())).degraded for door in workers]
        for door in workers:
            door.link.degraded = False
            await door.rates.keep()
        assert 0 == sum([await workers[number % 2].passes(tenant) for number in range(200)])
        clock.advance(2)
        assert 2 == sum([await workers[number % 2].passes(tenant) for number in range(200)])


async def test_who_has_never_heard_of_redis_has_its_part_of_the_whole_rate(server: RedisServer) -> None:
    """The first calls of a fresh worker are not refused because Redis is absent or slow; nor do all workers pass the rate together."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 2) as workers:
        for door in workers:
            door.link.loses_answers = True
        assert await workers[0].passes(tenant)
        assert 59 == sum([await workers[number % 2].passes(tenant) for number in range(200)])


async def test_what_was_let_in_without_redis_counts_when_it_is_back(server: RedisServer) -> None:
    """However often Redis goes and comes, no moment has more than one rate and one stock for all workers together."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=600)
    async with doors(server, clock, 2) as workers:
        passed = sum([await door.passes(tenant) for door in workers for _ in range(5)])
        for outage in range(4):
            for door in workers:
                door.link.degraded = True
            clock.advance(1)
            passed += sum([await workers[number % 2].passes(tenant) for number in range(800)])
            for door in workers:
                door.link.degraded = False
                await door.rates.keep()
            clock.advance(1)
            passed += sum([await workers[number % 2].passes(tenant) for number in range(800)])
            assert passed <= 600 + 10 * (2 * (outage + 1) + HOLD_S)
        clock.advance(60)
        assert 500 <= sum([await workers[0].passes(tenant) for _ in range(800)]) <= 610


async def test_a_long_outage_leaves_no_debt_that_was_paid_long_ago(server: RedisServer) -> None:
    """Half the rate for ten minutes without Redis is half the rate: when it is back nobody is refused for it."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 2) as workers:
        for door in workers:
            assert await door.passes(tenant)
            door.link.degraded = True
        for _ in range(150):
            clock.advance(4)
            assert [True, True] == [await door.passes(tenant) for door in workers]
        for door in workers:
            door.link.degraded = False
            await door.rates.keep()
        for _ in range(15):
            clock.advance(4)
            assert [True, True] == [await door.passes(tenant) for door in workers]


async def test_a_level_that_somebody_fills_lets_no_worker_pass_the_whole_rate(server: RedisServer) -> None:
    """Whatever is written into the bucket, and whatever words it holds: each worker takes what a bucket of its own would give."""
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=60)
    async with doors(server, clock, 2) as workers:
        assert await workers[0].passes(tenant)
        (key,) = server.client().keys(workers[0].link.prefix + b"r:*")
        passed = [0, 0]
        for number in range(200):
            server.client().hset(key, mapping={"level": "60" if number % 3 else "999999999", "at": "0"})
            passed[number % 2] += await workers[number % 2].passes(tenant)
        assert all(50 <= count <= 61 for count in passed)
        assert 1 <= workers[0].rates.grants_cut_total
        clock.advance(10)
        server.client().hset(key, mapping={"level": "nonsense", "at": "nan"})
        assert sum([await workers[0].passes(tenant) for _ in range(100)]) <= 12


async def test_slots_are_shared_too(server: RedisServer) -> None:
    """A limit of calls at once that is smaller than the number of workers is reached by any of them, and not passed."""
    clock = FakeClock()
    tenant = TenantPolicy("t", concurrency=1)
    async with doors(server, clock, 3) as workers:
        for door in workers:
            assert await door.passes(tenant)
            await door.leases.aclose()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 300),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.floats(0, 5)), max_size=25),
)
def test_no_schedule_lets_more_in_than_is_stated(
    server: RedisServer, limit: int, steps: list[tuple[int, int, float]]
) -> None:
    """Between any two moments at most limit + limit / 60 * (t + HOLD_S) pass, at all workers together."""
    asyncio.run(_schedule(server, limit, steps))


async def _schedule(server: RedisServer, limit: int, steps: list[tuple[int, int, float]]) -> None:
    clock = FakeClock()
    tenant = TenantPolicy("t", requests_per_minute=limit)
    async with doors(server, clock, 3) as workers:
        passed: list[float] = []
        for number, calls, wait_s in steps:
            door = workers[number]
            for _ in range(calls):
                if await door.passes(tenant):
                    passed.append(clock.s())
            if calls % 2:
                await door.rates.keep()
            clock.advance(wait_s)
            for _ in range(calls % 3):  # the second time nobody has asked for anything, and what is held goes back
                for one in workers:
                    await one.rates.keep()
        for first, start in enumerate(passed):
            for last in range(first, len(passed)):
                bound = limit + limit / 60 * (passed[last] - start + HOLD_S)
                assert last - first + 1 <= bound + 1e-6

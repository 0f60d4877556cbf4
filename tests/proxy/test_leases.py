"""Tests of shared limits: workers that lease slices from a real Redis, under clocks that the tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.snapshot import Budget, Quota, QuotaAction, QuotaScope, TenantPolicy, Window
from proxy.leases import Leases, LineLease
from proxy.ledger import Ledger, LedgerState, Reservation
from proxy.quotas.account import TOKENS, Line, Share
from proxy.quotas.plan import Who
from proxy.settings import ProxySecrets, Secret
from proxy.shared import Answer, Script, SharedState, SharedUnavailable
from proxy.stages.reserve import Reserve
from tests.proxy.redis_server import RedisServer
from tests.proxy.state_fakes import NOON_US, FakeClock, make_call, make_record

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("t"))
LEASE_S = 10.0
WHO = Who("k", "a", "u", "s", "m", {})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; each uses keys of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    asyncio.run(_start(server))
    yield server
    server.kill()


async def _start(server: RedisServer) -> None:
    await server.start()


class Link:
    """One worker's connection to the real Redis, which the test can cut."""

    def __init__(self, shared: SharedState, tag: bytes) -> None:
        self._shared = shared
        self.prefix = shared.prefix + tag
        self.secret = shared.secret
        self.degraded = False
        self.loses_answers = False
        self.subscribe = shared.subscribe
        self.reports = 0

    async def run(self, script: Script, keys: Sequence[bytes], *args: bytes | int) -> Answer:
        """As the door does it, unless it is cut."""
        if self.degraded:
            raise SharedUnavailable("cut")
        self.reports += 1
        answer = await self._shared.run(script, keys, *args)
        if self.loses_answers:
            raise SharedUnavailable("lost on its way back")
        return answer

    async def publish(self, channel: bytes, data: bytes) -> None:
        """As the door does it, unless it is cut."""
        if self.degraded:
            raise SharedUnavailable("cut")
        await self._shared.publish(channel, data)


class Worker:
    """A ledger with its leases, and the calls in flight."""

    def __init__(self, fleet: Fleet, number: int, state: LedgerState | None = None) -> None:
        self.fleet = fleet
        self.link = Link(fleet.shared, fleet.tag)
        self.ledger = Ledger(share=Share(number, fleet.workers))
        if state is not None:
            self.ledger.restore(state)
        self.ledger.configure((fleet.policy,), now_us=fleet.clock.now_us)
        self.leases = Leases(
            self.link,  # type: ignore[arg-type]  # the door with a tap
            worker=f"prx_{number}",
            share=Share(number, fleet.workers),
            lease_s=LEASE_S,
            wait_s=fleet.wait_s,
            monotonic=fleet.clock.s,
            now_us=fleet.clock.us,
            redis_now_ms=lambda: fleet.clock.now_us // 1000,
        )
        self.ledger.lend(self.leases.lend)
        self.open: list[Reservation] = []
        self.keeper: asyncio.Task[None] | None = None

    async def die(self) -> None:
        """Says nothing any more."""
        self.link.degraded = True
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)

    async def take(self, amount: int, who: Who = WHO) -> bool:
        """One call, as the reserve stage and the pipeline treat it: at once, else once more after a refill."""
        if self._try(amount, who):
            return True
        if not self.ledger.short:
            return False
        await self.leases.refill(self.ledger.short)
        return self._try(amount, who)

    def take_at_once(self, amount: int) -> bool:
        """One call that does not wait."""
        return self._try(amount, WHO)

    def end(self, amount: int = -1) -> None:
        """The oldest call ends, with what it held or with less."""
        held = self.open.pop(0)
        self.ledger.release(held)
        tokens = held.tokens if amount < 0 else min(amount, held.tokens)
        self.ledger.book(make_record(tokens=tokens, at_us=self.fleet.clock.now_us))

    def settled(self, window: Window = Window.TOTAL) -> int:
        """Tokens."""
        return self.ledger.settled("acme", window, now_us=self.fleet.clock.now_us).tokens

    def used(self) -> int:
        """Settled and held."""
        return self.settled() + self.ledger.reserved("acme")[0]

    def slices(self) -> int:
        """What it may still use of what it has leased, held included."""
        return sum(
            max(0, lease.line.cap - lease.line.settled(self.fleet.clock.now_us))
            for lease in self.leases.active.values()
            if isinstance(lease, LineLease) and lease.is_valid()
        )

    def _try(self, amount: int, who: Who) -> bool:
        held = self.ledger.reserve(
            self.fleet.policy, tokens=amount, nanousd=amount, now_us=self.fleet.clock.now_us, who=who
        )
        if isinstance(held, Reservation):
            self.open.append(held)
        return isinstance(held, Reservation)


class Fleet:
    """Some workers under one policy."""

    def __init__(self, shared: SharedState, policy: TenantPolicy, workers: int, tag: bytes, *, keepers: bool) -> None:
        self.shared = shared
        self.policy = policy
        self.workers = workers
        self.tag = tag
        self.wait_s = 2.0 if keepers else 0.001
        self.clock = FakeClock(NOON_US + 1)
        self.members = [Worker(self, number) for number in range(workers)]

    async def keep(self) -> None:
        """What the keepers of all workers do in one tick."""
        for worker in self.members:
            worker.leases._review()
            await worker.leases.keep()

    async def listening(self) -> None:
        """Lets the keepers run beside the test, so that they hear what is asked back."""
        async with asyncio.timeout(20.0):
            await self.shared.ready()


_tags = iter(range(10**9))


@asynccontextmanager
async def fleet_of(
    server: RedisServer, policy: TenantPolicy, workers: int = 2, *, keepers: bool = True
) -> AsyncIterator[Fleet]:
    """Workers that have reached Redis, with keepers that wake when they are asked."""
    config = ProxySettings(redis=server.url, redis_timeout_s=2.0, redis_pause_s=0.02)
    shared = SharedState(config, SECRETS)
    fleet = Fleet(shared, policy, workers, b"%d:" % next(_tags), keepers=keepers)
    shared.open()
    if keepers:
        for worker in fleet.members:
            worker.keeper = asyncio.create_task(worker.leases.run())
    try:
        await fleet.listening()
        yield fleet
    finally:
        for worker in fleet.members:
            await worker.die()
        await shared.aclose()


def _total(limit: int) -> TenantPolicy:
    return TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, tokens=limit),))


async def test_workers_together_reach_the_limit_and_never_pass_it(server: RedisServer) -> None:
    """Three workers take turns until each is refused: all of the limit was let in, whoever asked for it."""
    async with fleet_of(server, _total(100), workers=3) as fleet:
        taken = 0
        for number in range(300):
            taken += await fleet.members[number % 3].take(1)
        assert 100 == taken == sum(worker.used() for worker in fleet.members)


async def test_one_busy_worker_gets_the_whole_limit(server: RedisServer) -> None:
    """A worker whose siblings are idle is not held to its part."""
    async with fleet_of(server, _total(100), workers=4) as fleet:
        assert all([await fleet.members[0].take(10) for _ in range(10)])
        assert not await fleet.members[0].take(1)


async def test_nobody_is_refused_while_another_holds_what_it_does_not_use(server: RedisServer) -> None:
    """A slice that lies idle is given back when a sibling lacks it, within one bounded wait."""
    async with fleet_of(server, _total(1000)) as fleet:
        hoarder, poor = fleet.members
        assert await hoarder.take(400)
        hoarder.end(0)  # it cost nothing in the end
        assert hoarder.slices() >= 400
        assert await poor.take(1000)
        assert (0, 1000) == (hoarder.slices(), poor.used())
        assert 1 == poor.leases.asked_back_total
        assert not await hoarder.take(1)


async def test_two_who_both_lack_do_not_keep_it_from_each_other(server: RedisServer) -> None:
    """Each holds half of what is left, and each waits for more than that: one of them gets it."""
    async with fleet_of(server, _total(100)) as fleet:
        one, other = fleet.members
        assert [True, True] == [await worker.take(50) for worker in fleet.members]
        for worker in fleet.members:
            worker.end(0)
        assert [50, 50] == [one.slices(), other.slices()]
        assert [False, True] == sorted(await asyncio.gather(one.take(80), other.take(80)))
        assert 80 == one.used() + other.used()


async def test_of_many_who_wait_those_pass_for_whom_there_is_room(server: RedisServer) -> None:
    """Nobody is refused because all who wait together would be too much."""
    async with fleet_of(server, _total(100)) as fleet:
        worker, other = fleet.members
        assert await other.take(40)
        passed = await asyncio.gather(*(worker.take(25) for _ in range(5)))
        assert (2, 50) == (sum(passed), worker.used())
        assert [0, 0] == [
            lease.promised + lease.waiting for each in fleet.members for lease in each.leases.active.values()
        ]


async def test_steady_use_does_not_wait(server: RedisServer) -> None:
    """Once its rate is known, a worker's slice is made larger ahead of need: of many calls hardly one waits for Redis."""
    async with fleet_of(server, _total(1_000_000)) as fleet:
        worker = fleet.members[0]
        waited = 0
        for _ in range(500):
            if not worker.take_at_once(10):
                waited += 1
                assert await worker.take(10)
            worker.end()
            fleet.clock.advance(0.01)
            await worker.leases.keep()
        assert waited <= 5
        assert worker.link.reports < 60


async def test_an_idle_slice_goes_back_by_itself(server: RedisServer) -> None:
    """Two ticks without a call, and Redis has what was settled and nothing leased."""
    async with fleet_of(server, _total(1000)) as fleet:
        worker, other = fleet.members
        for _ in range(10):
            assert await worker.take(10)
            worker.end()
            fleet.clock.advance(0.01)
        fleet.clock.advance(1.0)
        await fleet.keep()
        await fleet.keep()
        assert 0 == worker.slices()
        await fleet.keep()
        assert {} == worker.leases.active
        assert await other.take(900)
        assert not await other.take(1)


async def test_a_slice_that_has_ended_is_not_used(server: RedisServer) -> None:
    """It ends for its worker before it ends for the others, so that the two never use the same tokens."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        sleeper, other = fleet.members
        assert await sleeper.take(50)
        sleeper.end(0)
        assert sleeper.take_at_once(1)
        sleeper.end(0)
        fleet.clock.advance(LEASE_S - 0.1)
        assert not sleeper.take_at_once(1)
        assert not await other.take(100)
        fleet.clock.advance(0.2)
        assert await other.take(100)
        assert not await sleeper.take(1)


async def test_what_is_given_up_is_given_up_before_it_is_said(server: RedisServer) -> None:
    """A call that comes while a slice is on its way back finds no slice, and one that comes while it is renewed finds it whole."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        worker, _ = fleet.members
        assert await worker.take(40)
        worker.end(0)
        (lease,) = worker.leases.active.values()
        renewed = asyncio.create_task(lease.report(ahead=False))
        await asyncio.sleep(0)
        assert worker.take_at_once(30)
        await renewed
        assert worker.take_at_once(10)
        worker.end(0)
        returned = asyncio.create_task(lease.report(ahead=False, shrink=True))
        await asyncio.sleep(0)
        assert not worker.take_at_once(1)
        await returned
        assert not worker.take_at_once(1)


async def test_slots_of_a_dead_worker_come_back_when_its_lease_ends(server: RedisServer) -> None:
    """Calls at once are leased too: what a killed worker held is free again after the lease, not before."""
    policy = TenantPolicy("acme", quotas=(Quota("c", QuotaScope.AGENT, concurrency=4),))
    async with fleet_of(server, policy) as fleet:
        dead, living = fleet.members
        assert all([await dead.take(1) for _ in range(4)])
        assert not await living.take(1)
        await dead.die()
        fleet.clock.advance(LEASE_S - 0.1)
        assert not await living.take(1)
        fleet.clock.advance(0.2)
        assert all([await living.take(1) for _ in range(4)])
        assert not await living.take(1)


async def test_calls_longer_than_a_lease_keep_their_slots(server: RedisServer) -> None:
    """A lease is renewed as long as its worker lives."""
    policy = TenantPolicy("acme", quotas=(Quota("c", QuotaScope.AGENT, concurrency=2),))
    async with fleet_of(server, policy) as fleet:
        holder, other = fleet.members
        assert await holder.take(1)
        assert await holder.take(1)
        for _ in range(40):
            fleet.clock.advance(1.0)
            await fleet.keep()
            assert not await other.take(1)
        holder.end()
        holder.end()
        await fleet.keep()
        assert await other.take(1)


async def test_without_redis_each_goes_on_with_its_part_of_what_was_left(server: RedisServer) -> None:
    """Cut off, a slice is used until it ends; then each worker takes its part of what it knew to be left, and no more."""
    async with fleet_of(server, _total(100)) as fleet:
        one, other = fleet.members
        for worker, amount in ((one, 30), (other, 10)):
            assert await worker.take(amount)
            worker.end()
        await fleet.keep()
        for worker in fleet.members:
            assert await worker.take(1)
            worker.end()
            worker.link.degraded = True
        fleet.clock.advance(LEASE_S)
        taken = [sum([await worker.take(1) for _ in range(100)]) for worker in fleet.members]
        assert all(0 < count <= 35 for count in taken)
        assert sum(worker.used() for worker in fleet.members) <= 100
        assert 1 == one.leases.degraded


async def test_without_redis_from_the_start_each_has_its_share_of_the_limit(server: RedisServer) -> None:
    """Never limit times workers: the parts sum to the limit."""
    async with fleet_of(server, _total(101), workers=3) as fleet:
        for worker in fleet.members:
            worker.link.degraded = True
        assert [34, 34, 33] == [sum([await worker.take(1) for _ in range(110)]) for worker in fleet.members]


async def test_a_redis_that_comes_and_goes_gives_no_part_twice(server: RedisServer) -> None:
    """A part is of what was known to be left; who hears nothing new in between gets no part of the rest besides."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        for worker in fleet.members:
            assert await worker.take(1)
            worker.end()
        for _ in range(4):
            fleet.clock.advance(LEASE_S)
            await fleet.keep()
        fleet.clock.advance(LEASE_S)
        for worker in fleet.members:
            worker.link.degraded = True
            while worker.take_at_once(1):
                worker.end()
            worker.link.degraded, worker.link.loses_answers = False, True
            while await worker.take(1):
                worker.end()
        assert sum(worker.used() for worker in fleet.members) <= 100


async def test_a_limit_that_is_lowered_while_redis_is_out_holds_at_once(server: RedisServer) -> None:
    """A worker on its own goes on with its part of the new limit, and with no more of a raised one."""
    async with fleet_of(server, _total(100)) as fleet:
        worker = fleet.members[0]
        worker.link.degraded = True
        assert await worker.take(10)
        for limit, left in ((40, 10), (10, 0), (60, 10)):
            fleet.policy = _total(limit)
            worker.ledger.configure((fleet.policy,), now_us=fleet.clock.now_us)
            assert left == sum([await worker.take(1) for _ in range(60)])


async def test_a_slice_of_a_limit_that_was_lowered_meanwhile_is_not_used(server: RedisServer) -> None:
    """The report was under way when the limit changed; what it brings is of the old one."""
    async with fleet_of(server, _total(1000), keepers=False) as fleet:
        worker = fleet.members[0]
        assert await worker.take(10)
        worker.end()
        (lease,) = worker.leases.active.values()
        lease.waiting = 500
        report = asyncio.create_task(lease.report())
        await asyncio.sleep(0)
        lease.waiting = 0
        fleet.policy = _total(20)
        worker.ledger.configure((fleet.policy,), now_us=fleet.clock.now_us)
        await report
        assert not worker.take_at_once(11)
        assert await worker.take(10)
        assert not await worker.take(1)


async def test_a_call_that_waits_while_a_limit_changes_is_not_refused_for_that(server: RedisServer) -> None:
    """What came was a slice of the old limit, so it waits for one of the new one."""
    async with fleet_of(server, _total(1000), keepers=False) as fleet:
        worker = fleet.members[0]
        call = asyncio.create_task(worker.take(10))
        for _ in range(2):
            await asyncio.sleep(0)
        assert 1 == worker.link.reports  # and no answer yet
        fleet.policy = _total(2000)
        worker.ledger.configure((fleet.policy,), now_us=fleet.clock.now_us)
        assert await call


async def test_back_in_shared_mode_what_was_spent_meanwhile_counts_once(server: RedisServer) -> None:
    """After an outage the settled counts of all workers are told, and exactly the rest of the limit is let in."""
    async with fleet_of(server, _total(100)) as fleet:
        for worker in fleet.members:
            assert await worker.take(10)
            worker.end()
            worker.link.degraded = True
        fleet.clock.advance(LEASE_S)
        for worker in fleet.members:
            assert await worker.take(5)
            worker.end()
            worker.link.degraded = False
        for worker in fleet.members:
            await worker.take(1)
        assert 0 == sum(worker.leases.degraded for worker in fleet.members)
        rest = 0
        for number in range(200):
            rest += await fleet.members[number % 2].take(1)
        assert 100 == sum(worker.used() for worker in fleet.members)


async def test_an_answer_that_is_lost_costs_nothing(server: RedisServer) -> None:
    """A report that was heard but not answered is said again with the same counts; nothing is counted twice."""
    async with fleet_of(server, _total(100)) as fleet:
        worker, other = fleet.members
        assert await worker.take(10)
        worker.end()
        worker.link.loses_answers = True
        for _ in range(3):
            await worker.leases.refill(tuple((line, 50) for line in _lines(worker)))
        worker.link.loses_answers = False
        fleet.clock.advance(1.0)
        await worker.leases.refill(tuple((line, 1) for line in _lines(worker)))
        await fleet.keep()
        await fleet.keep()
        assert await other.take(90)
        assert not await other.take(1)


async def test_a_redis_that_lost_its_memory_hears_the_counts_again(server: RedisServer) -> None:
    """Whoever knew the total says it with the next report, so that nobody starts from zero."""
    async with fleet_of(server, _total(100)) as fleet:
        one, other = fleet.members
        for worker in fleet.members:
            assert await worker.take(30)
            worker.end()
        fleet.clock.advance(LEASE_S)
        for _ in range(2):
            await fleet.keep()
        assert await one.take(1)
        one.end()
        server.client().flushall()
        fleet.clock.advance(LEASE_S)
        assert not await one.take(50)  # 39 are left, and it has heard of all
        assert not await other.take(40)
        assert await other.take(39)


async def test_a_restarted_worker_goes_on_with_its_own_count(server: RedisServer) -> None:
    """What its checkpoint says replaces its row; what it had leased in its earlier life is given up."""
    async with fleet_of(server, _total(100)) as fleet:
        worker, other = fleet.members
        assert await worker.take(40)
        worker.end()
        assert await worker.take(20)  # in flight when it dies
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(worker.ledger.state()), type=LedgerState)
        await worker.die()
        again = fleet.members[0] = Worker(fleet, 0, state)
        await fleet.keep()
        assert 40 == again.settled()
        assert await other.take(60)
        assert not await other.take(1)


async def test_each_window_and_each_instance_has_its_own_slices(server: RedisServer) -> None:
    """A minute that ends takes its leases with it; agents do not share."""
    policy = TenantPolicy("acme", quotas=(Quota("q", QuotaScope.AGENT, window=Window.MINUTE, tokens=10),))
    async with fleet_of(server, policy) as fleet:
        one, other = fleet.members
        assert await one.take(6)
        assert await other.take(4)
        assert not await one.take(1)
        assert await one.take(10, WHO._replace(agent="b"))
        for worker in fleet.members:
            while worker.open:
                worker.end()
        fleet.clock.advance(60)
        assert await other.take(10)
        assert not await one.take(1)


async def test_a_limit_too_large_for_exact_numbers_in_lua_is_still_never_passed(server: RedisServer) -> None:
    """A budget of a billion dollars in nano-USD is counted in coarser steps, rounded against the spender."""
    limit = 10**18 - 1
    policy = TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, nanousd=limit),))
    async with fleet_of(server, policy) as fleet:
        third = limit // 3
        assert [True, True, False] == [await fleet.members[number % 2].take(third + 1) for number in range(3)]
        assert await fleet.members[0].take(third - 100_000)


async def test_a_stop_gives_everything_back(server: RedisServer) -> None:
    """A worker that is stopped leaves its count and no slice."""
    async with fleet_of(server, _total(100)) as fleet:
        worker, other = fleet.members
        for _ in range(5):
            assert await worker.take(2)
            worker.end()
            fleet.clock.advance(0.01)
        await worker.leases.aclose()
        assert await other.take(90)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["take", "take", "take", "rush", "end", "end", "wait", "keep", "die", "cut", "mend", "strand"]),
        st.integers(1, 30),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(0, 120), steps=STEPS)
def test_any_schedule_stays_within_the_stated_bound(
    server: RedisServer, limit: int, steps: list[tuple[int, str, int]]
) -> None:
    """Workers that serve, die, are cut off and come back: never more than the limit, the slices of those that were lost, and the
    parts of those that were on their own; exactly the limit when nobody was.
    """
    asyncio.run(_schedule(server, limit, steps))


async def _rush(fleet: Fleet, number: int, amount: int) -> None:
    """Calls that come while reports are on their way, to a worker that still has a slice and to one whose slice is given back."""
    worker, other = fleet.members[number], fleet.members[(number + 1) % 3]
    if worker.link.degraded or other.link.degraded:
        return
    for lease in worker.leases.active.values():
        worker.leases.ask(lease)
    kept = asyncio.create_task(worker.leases.keep())
    taken = asyncio.create_task(other.take(amount))
    for _ in range(20):
        worker.take_at_once(1)
        await asyncio.sleep(0)
    await asyncio.gather(kept, taken)


async def _schedule(server: RedisServer, limit: int, steps: list[tuple[int, str, int]]) -> None:
    async with fleet_of(server, _total(limit), workers=3, keepers=False) as fleet:
        lost = 0  # slices of workers that died or were cut off
        alone = 0  # parts of workers that were on their own
        for number, what, amount in steps:
            worker = fleet.members[number]
            if what == "take":
                alone += await _take(worker, amount)
            elif what == "rush":
                await _rush(fleet, number, amount)
            elif what == "end" and worker.open:
                worker.end(amount)
            elif what == "wait":
                await _pass(fleet, amount / 3)
            elif what == "keep":
                await fleet.keep()
            elif what == "die":
                lost += worker.slices()
                state = msgspec.msgpack.decode(msgspec.msgpack.encode(worker.ledger.state()), type=LedgerState)
                fleet.members[number] = Worker(fleet, number, state)
                fleet.members[number].link.degraded = worker.link.degraded
            elif what == "cut" and not worker.link.degraded:
                lost += worker.slices()
                worker.link.degraded = True
            elif what == "strand" and not worker.link.degraded:  # for longer than a lease, with calls before and after
                alone += await _take(worker, amount)
                lost += worker.slices()
                worker.link.degraded = True
                await _pass(fleet, LEASE_S)
                alone += await _take(worker, amount)
            elif what == "mend":
                worker.link.degraded = False
            assert sum(one.used() for one in fleet.members) <= limit + lost + alone


async def _pass(fleet: Fleet, seconds: float) -> None:
    """Time passes, and the keepers of those who live and reach Redis renew what they have."""
    while seconds > 0:
        fleet.clock.advance(min(seconds, LEASE_S / 4))
        seconds -= LEASE_S / 4
        await fleet.keep()


async def _take(worker: Worker, amount: int) -> int:
    """One call; what it may have let in because the worker is on its own from now on, at most the worker's part."""
    before, was_alone, had = worker.used(), worker.leases.degraded, worker.slices()
    await worker.take(amount)
    if was_alone or not worker.leases.degraded:
        return 0
    part = sum(max(0, line.cap - before) for line in _lines(worker))
    assert part <= max(had, worker.leases.share.of(worker.fleet.policy.budgets[0].tokens or 0))
    return part


def _lines(worker: Worker) -> list[Line]:
    return [line for account in worker.ledger.accounts() for line in account.lines.values()]


async def test_who_has_waited_for_a_soft_quota_still_waits_for_a_hard_one(server: RedisServer) -> None:
    """Others have taken the slice of the hard one meanwhile; the limit is far away, and so is a refusal."""
    soft = Quota("soft", QuotaScope.TENANT, Window.DAY, requests=1_000, action=QuotaAction.SOFT)
    policy = TenantPolicy("acme", budgets=(Budget("b", Window.TOTAL, tokens=100_000),), quotas=(soft,))
    async with fleet_of(server, policy, keepers=False) as fleet:
        worker = fleet.members[0]
        stage = Reserve(worker.ledger, image_tokens_max=1, refill=worker.leases.refill, now_us=fleet.clock.us)
        hard = next(line for line in _lines(worker) if line.unit == TOKENS)
        await worker.leases.refill(((hard, 2_000),))
        call = make_call(tenant=policy)
        waits: list[bool] = []
        while stage.enter(call) is not None:
            waits.append(worker.ledger.short[0][0] is hard)
            while worker.take_at_once(20):
                pass
            shortage, call.shortage = call.shortage, None
            assert shortage is not None
            await shortage()
        assert [False, True] == waits

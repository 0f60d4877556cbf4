"""Tests of bills that workers share over a real Redis: the parts sum to the bill, whoever comes, leaves or dies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import encode
from redis import Redis

from controlplane.contract.pricing import Tokens
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptRecord, CacheState
from controlplane.contract.snapshot import CachePolicy, CoalesceCost, TenantPolicy
from proxy.call import Call, Reply, StreamBroken
from proxy.runtime import KeyIdentity
from proxy.savings import split_attempt
from proxy.shared import SharedState
from proxy.transports.flight_bill import _CLOSE
from proxy.transports.flight_fields import bill_of, opened_fields, parts_of
from proxy.transports.flight_words import Bill, Seals
from tests.proxy.fakes import until
from tests.proxy.redis_groups import RedisCluster
from tests.proxy.redis_server import RedisServer
from tests.proxy.redis_slow import SlowWay
from tests.proxy.state_fakes import FakeInner, FakeStream, complete_reply, settle_down, stream_reply
from tests.proxy.transports.test_coalesce import Client
from tests.proxy.transports.test_coalesce_shared import SECRETS, Host

COUNT_S = 0.1
LEASE_S = 0.4
BILL_NANOUSD = 97
BASE = 128  # each upstream call costs as many times the one before, so that a sum tells them apart
ASKED_MAX = 8  # upstream calls whose sum still fits
SPLIT = TenantPolicy("acme", cache=CachePolicy(coalesce_cost=CoalesceCost.SPLIT))


class BilledStream(FakeStream):
    """A stream whose price is known when it ends, or is given up."""

    def __init__(self, call: Call, bill: AttemptRecord) -> None:
        super().__init__()
        self.call, self.bill, self.charged = call, bill, False

    def charge(self) -> None:
        """Once, as a try ends."""
        if not self.charged:
            self.charged = True
            self.call.attempts.append(self.bill)

    async def read(self) -> bytes:
        """The next chunk."""
        try:
            chunk = await super().read()
        except StreamBroken:
            self.charge()
            raise
        if not chunk:
            self.charge()
        return chunk

    def close(self) -> None:
        """What was used so far is paid."""
        self.charge()
        super().close()


class BilledInner(FakeInner):
    """An upstream that sends bills. asked: how many calls all of them have had."""

    def __init__(self, asked: Iterator[int]) -> None:
        super().__init__(gated=True)
        self.asked = asked
        self.numbers: list[int] = []

    async def send(self, call: Call) -> Reply:
        """The answer, and what it costs."""
        number = next(self.asked)
        self.numbers.append(number)
        nanousd = BILL_NANOUSD * BASE**number
        bill = AttemptRecord(f"{number}", "sim", "m", 1, 2, tokens=Tokens(input=10), cost_nanousd=nanousd)
        self.calls.append(call)
        await self.gate.wait()
        if not self.streaming:
            call.attempts.append(bill)
            return self.answer()
        stream = BilledStream(call, bill)
        self.streams.append(stream)
        stream.reply = stream_reply(stream)
        return stream.reply


class Worker(Host):
    """One whose tenant splits its bills, and that can be killed."""

    def __init__(
        self, url: str, asked: Iterator[int], *, redis_timeout_s: float, count_s: float, lease_s: float
    ) -> None:
        super().__init__(None)
        shared = SharedState(ProxySettings(redis=url, redis_timeout_s=redis_timeout_s, redis_pause_s=0.05), SECRETS)
        self.upstream = BilledInner(asked)
        self.join(shared, self.upstream, lease_s=lease_s, count_after_s=count_s)
        self.dead = False
        self.clients: list[Payer] = []

    async def kill(self) -> None:
        """Nothing of it is heard any more."""
        self.dead = True
        assert self.shared is not None
        await self.shared.aclose()
        for client in self.clients:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in self.clients), return_exceptions=True)
        await self.flights.aclose()

    def call(self, *, reads: bool = True) -> Payer:
        """One more call."""
        client = Payer(self)
        self.clients.append(client)
        if reads:
            client.read_freely()
        return client

    @property
    def counted(self) -> int:
        """What this worker knows that nobody booked."""
        return self.flights.bills.orphaned_nanousd - self.flights.bills.returned_nanousd


class Payer(Client):
    """A client whose call is booked when it is settled, unless its worker died before."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.settles = True
        super().__init__(worker.coalesce)
        assert self.call.identity is not None
        self.call.identity = KeyIdentity(SPLIT, self.call.identity.key, None)

    async def serve(self) -> None:
        """The serving task, and the settlement."""
        await super().serve()
        if self.settles and not self.worker.dead:
            self.call.settled = True

    @property
    def booked(self) -> int:
        """On the ledger."""
        return sum(one.cost_nanousd for one in self.call.attempts) if self.call.settled else 0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of its own."""
    server = await RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
async def workers(server: RedisServer) -> AsyncIterator[list[Worker]]:
    """Three workers whose upstreams stream."""
    made = await _open([server.url] * 3)
    yield made
    await _close(made)


async def _open(
    urls: list[str], *, redis_timeout_s: float = 5.0, count_s: float = COUNT_S, lease_s: float = LEASE_S
) -> list[Worker]:
    """urls: each one's way to Redis."""
    asked = itertools.count()
    made = [Worker(url, asked, redis_timeout_s=redis_timeout_s, count_s=count_s, lease_s=lease_s) for url in urls]
    for worker in made:
        await worker.open()
        worker.inner.streaming = True
        worker.inner.gate.set()
    return made


async def _close(workers: list[Worker]) -> None:
    for worker in workers:
        if not worker.dead:
            await worker.close()


async def _flight(workers: list[Worker], *counts: int) -> tuple[FakeStream, list[Payer]]:
    """A stream that so many calls of each worker share, the first worker's in the lead, and Redis knows of all of them."""
    clients = [workers[0].call()]
    await until(lambda: workers[0].inner.streams)
    (stream,) = workers[0].inner.streams
    stream.feed(b"one")
    for worker, count in zip(workers, counts, strict=False):
        clients += [worker.call() for _ in range(count - (worker is workers[0]))]
    await until(lambda: all(client.got for client in clients))
    seated = dict(zip(workers[1:], counts[1:], strict=False))
    await until(
        lambda: all([seat.told for seat in one.flights.bills._seats.values()] == [seated[one]] for one in seated)
    )
    return stream, clients


async def _done(workers: list[Worker]) -> None:
    await until(lambda: all(not one.flights.bills.open for one in workers if not one.dead))


@pytest.mark.parametrize("streaming", [True, False])
async def test_all_calls_of_all_workers_pay_equal_parts(workers: list[Worker], streaming: bool) -> None:
    """Six calls on three workers: their parts sum to the bill and differ by no more than the smallest coin; what each saved fits."""
    if streaming:
        stream, clients = await _flight(workers, 3, 2, 1)
        stream.end()
    else:
        for worker in workers:
            worker.inner.streaming = False
        workers[0].inner.gate.clear()
        clients = [workers[0].call()]
        await until(lambda: workers[0].inner.calls)
        clients += [worker.call() for worker, count in zip(workers, (2, 2, 1), strict=True) for _ in range(count)]
        await until(lambda: [2, 1] == [sum(s.told for s in w.flights.bills._seats.values()) for w in workers[1:]])
        await until(lambda: 2 == workers[0].flights.followers(b"key"))
        workers[0].inner.gate.set()
    await until(lambda: all(client.call.settled for client in clients))
    assert [16] * 5 + [17] == sorted(client.booked for client in clients)
    assert BILL_NANOUSD == sum(client.booked for client in clients)
    assert 10 == sum(attempt.tokens.input for client in clients for attempt in client.call.attempts)
    assert [CacheState.MISS] + [CacheState.COALESCED] * 5 == [client.call.cache for client in clients]
    assert BILL_NANOUSD - clients[0].booked == clients[0].call.saved_nanousd
    await _done(workers)
    assert [0, 0, 0] == [worker.counted for worker in workers]
    assert 1 == sum(len(worker.inner.calls) for worker in workers)


async def test_a_cluster_keeps_bills_too(tmp_path: Path) -> None:
    """Seats and bill are one key on one node, whichever node each worker was told of."""
    cluster = await RedisCluster(tmp_path).start()
    workers = await _open([cluster.url(0), cluster.url(1), cluster.url(0)])
    stream, clients = await _flight(workers, 1, 1, 1)
    stream.end()
    await until(lambda: all(client.call.settled for client in clients))
    await _done(workers)
    assert [33, 32, 32] == [client.booked for client in clients]
    assert [0, 0, 0] == [worker.counted for worker in workers]
    await _close(workers)
    cluster.kill()


async def test_who_leaves_before_the_close_pays_nothing(workers: list[Worker]) -> None:
    """A call, and all calls of a worker, that are gone when the upstream ends: the others pay."""
    stream, clients = await _flight(workers, 2, 2, 1)
    clients[3].leave()
    clients[4].leave()
    await until(lambda: [1] == [seat.told for seat in workers[1].flights.bills._seats.values()])
    await until(lambda: not workers[2].flights.bills.open)
    stream.end()
    await until(lambda: all(client.task.done() for client in clients))
    assert [33, 32, 32, 0, 0] == [client.booked for client in clients]
    await _done(workers)
    assert [0, 0, 0] == [worker.counted for worker in workers]


async def test_who_comes_after_the_close_pays_nothing(workers: list[Worker]) -> None:
    """The answer can be followed for a moment more, the bill cannot be joined, nor is it paid twice by one worker."""
    stream, clients = await _flight(workers, 1, 1)
    stream.end()
    await until(lambda: all(client.call.settled for client in clients))
    for worker in workers[1:]:
        late = worker.call()
        await until(lambda late=late: late.ended)  # type: ignore[misc]  # mypy cannot tell a default's type
        assert (0, [b"one"]) == (late.booked, late.got)
    assert [49, 48] == [client.booked for client in clients]
    assert 1 == sum(len(worker.inner.calls) for worker in workers)


async def test_a_worker_that_has_died_before_the_close_has_no_part(workers: list[Worker]) -> None:
    """Its seat is a lease: when that has run out, those who live pay everything."""
    stream, clients = await _flight(workers, 1, 1, 1)
    await workers[1].kill()
    clock = asyncio.get_running_loop().time
    killed = clock()
    await until(lambda: clock() > killed + LEASE_S * 1.5)
    stream.end()
    await until(lambda: all(client.task.done() for client in clients))
    await _done(workers)
    assert ([49, 0, 48], [0, 0, 0]) == ([one.booked for one in clients], [one.counted for one in workers])


async def test_the_part_of_a_worker_that_dies_after_the_close_is_counted(workers: list[Worker]) -> None:
    """Its calls were not settled, so nobody books them; one of the others, and only one, counts what they would have paid."""
    stream, clients = await _flight(workers, 1, 1, 1)
    clients[1].settles = False
    stream.end()
    await until(lambda: all(client.ended for client in clients))
    await workers[1].kill()
    await _done(workers)
    assert [33, 0, 32] == [client.booked for client in clients]
    assert 32 == sum(worker.counted for worker in workers)
    assert 1 == sum(worker.flights.bills.orphaned_total for worker in workers)


async def test_the_part_of_a_leader_that_dies_after_the_close_is_counted(workers: list[Worker]) -> None:
    """The followers heard what they owe, and one of them counts what the leader owed."""
    stream, clients = await _flight(workers, 1, 1, 1)
    clients[0].settles = False
    stream.end()
    await until(lambda: all(client.ended for client in clients))
    await workers[0].kill()
    await _done(workers)
    assert ([0, 32, 32], 33) == ([client.booked for client in clients], sum(worker.counted for worker in workers))


async def test_a_leader_that_dies_before_the_close_leaves_nothing_to_pay(workers: list[Worker]) -> None:
    """As a killed call never was settled, nobody else pays for it, and nothing is counted."""
    _, clients = await _flight(workers, 1, 1, 1)
    await workers[0].kill()
    await until(lambda: all(client.ended for client in clients))
    await _done(workers)
    assert ([0, 0, 0], [0, 0, 0]) == ([client.booked for client in clients], [one.counted for one in workers])


async def test_a_part_that_is_booked_late_is_returned(workers: list[Worker]) -> None:
    """A client that reads slowly keeps its worker's part open; counted meanwhile, it is taken back when it is booked."""
    stream, clients = await _flight(workers, 1, 1)
    slow = workers[1].call(reads=False)
    await until(lambda: [2] == [seat.told for seat in workers[1].flights.bills._seats.values()])
    stream.end()
    await until(lambda: workers[0].counted + workers[1].counted)
    assert [32, 33, 0] == [client.booked for client in (*clients, slow)]
    slow.read_freely()
    await _done(workers)
    assert [32, 33, 32] == [client.booked for client in (*clients, slow)]
    assert (32, 0) == (sum(one.flights.bills.orphaned_nanousd for one in workers), sum(one.counted for one in workers))


@pytest.mark.parametrize("stops", [False, True])
async def test_a_close_of_which_nothing_is_heard_is_void(server: RedisServer, stops: bool) -> None:
    """Redis has closed the flight but does not say so in time, or the leader stops while it waits: it pays everything, the others nothing."""
    way = await SlowWay(server).start()
    workers = await _open([way.url, server.url, server.url], redis_timeout_s=30.0 if stops else 0.2, count_s=2.0)
    stream, clients = await _flight(workers, 1, 1)
    redis = server.client()
    redis.script_load(_CLOSE.text)
    way.delay_s = 5.0
    stream.end()
    await until(lambda: any(redis.hexists(key, "!bill") for key in redis.keys("*bill:*")))
    if stops:
        clients[0].task.cancel()
    await until(lambda: clients[0].call.settled)
    way.delay_s = 0.0
    await until(lambda: clients[1].call.settled)
    await _done(workers)
    assert [BILL_NANOUSD, 0] == [client.booked for client in clients]
    assert (not stops, [0, 0, 0]) == (workers[0].flights.bills.unsplit_total, [worker.counted for worker in workers])
    await _close(workers)
    await way.stop()


async def test_without_redis_the_leader_s_worker_pays(server: RedisServer, workers: list[Worker]) -> None:
    """It is gone when the answer ends: nobody waits for it, and the others, who hear no more, end as broken and pay nothing."""
    stream, clients = await _flight(workers, 1, 1)
    server.kill()
    stream.end()
    await until(lambda: all(client.ended for client in clients))
    assert ["complete", "broken"] == [client.ended for client in clients]
    assert [BILL_NANOUSD, 0] == [client.booked for client in clients]


@pytest.mark.parametrize("known", [True, False])
async def test_a_bill_that_was_put_into_redis_is_not_the_leader_s(
    server: RedisServer, workers: list[Worker], known: bool
) -> None:
    """Somebody writes a bill of nothing before the leader does, in its own name or another: it pays what its upstream asked, alone."""
    stream, clients = await _flight(workers, 1, 1)
    redis = server.client()
    (key,) = redis.keys("*bill:*")
    leader, seat = workers[0].flights._name if known else b"nobody", workers[1].flights._name
    redis.hset(key, mapping={"!bill": encode(Bill((), ((leader, 1),))), seat: b"1"})
    stream.end()
    await until(lambda: all(client.call.settled for client in clients))
    assert [BILL_NANOUSD, 0] == [client.booked for client in clients]
    assert ["complete", "complete"] == [client.ended for client in clients]


async def test_an_answer_too_large_to_be_shared_is_not_split(workers: list[Worker]) -> None:
    """Nobody else gets it, so nobody else pays for it; who waited for it asks and pays for itself."""
    for worker in workers:
        worker.inner.streaming = False
        worker.inner.answer = lambda: complete_reply(bytes(10**6 + 1))
    workers[0].inner.gate.clear()
    clients = [workers[0].call()]
    await until(lambda: workers[0].inner.calls)
    clients.append(workers[1].call())
    await until(lambda: [1] == [seat.told for seat in workers[1].flights.bills._seats.values()])
    await until(lambda: 1 == workers[0].flights.followers(b"key"))
    workers[0].inner.gate.set()
    await until(lambda: all(client.call.settled for client in clients))
    assert [BILL_NANOUSD, BASE * BILL_NANOUSD] == [client.booked for client in clients]
    await _done(workers)
    assert [0, 0, 0] == [worker.counted for worker in workers]


@given(st.integers(0, 10**12), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_parts_of_parts_sum_to_the_bill(nanousd: int, counts: list[int]) -> None:
    """Over workers, then over the calls of each: nothing is lost, and no two calls pay amounts further apart than one nano-USD."""
    bill = Bill(
        (AttemptRecord("d", "u", "m", 1, 2, cost_nanousd=nanousd),),
        tuple((b"%d" % number, count) for number, count in enumerate(counts)),
    )
    parts = parts_of(bill)
    calls = [one.cost_nanousd for (inbox, count) in bill.shares for one in split_attempt(parts[inbox][0], [1] * count)]
    assert (nanousd, sum(counts)) == (sum(calls), len(calls))
    assert max(calls) - min(calls) <= 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["call", "call", "call", "leave", "end", "run", "kill"]), st.integers(0, 7)),
    min_size=4, max_size=16,
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_interleaving_is_paid_exactly(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Calls come, leave and end, workers are killed: for each upstream call, what is booked and what is counted sum to its bill."""

    async def run() -> None:
        server = await RedisServer(tmp_path_factory.mktemp("redis")).start()
        workers = await _open([server.url] * 3)
        try:
            await _play(workers, steps, server.client())
            _check(workers, server)
        finally:
            await _close(workers)
            server.kill()

    asyncio.run(run())


async def _play(workers: list[Worker], steps: list[tuple[str, int]], redis: Redis) -> None:
    for step, at in steps:
        worker = workers[at % 3]
        clients = [client for one in workers if not one.dead for client in one.clients if not client.ended]
        if step == "call" and not worker.dead and sum(len(one.clients) for one in workers) < ASKED_MAX:
            worker.call()
        elif step == "leave" and clients:
            clients[at % len(clients)].leave()
        elif step == "end":
            _end(workers)
        elif step == "kill" and sum(one.dead for one in workers) < 2 and at < 3 and not worker.dead:
            await worker.kill()
        for _ in range(at + 1):
            await settle_down()
            redis.ping()  # whatever it was told before, it has done now
    live = [one for one in workers if not one.dead]
    async with asyncio.timeout(60.0):
        while not all(client.task.done() for one in live for client in one.clients):
            _end(live)
            await asyncio.sleep(0)
    await _done(workers)


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        for stream in worker.inner.streams:
            stream.end()


def _check(workers: list[Worker], server: RedisServer) -> None:
    """What nobody has booked is counted, to the nano-USD; but for what nobody knows who lives."""
    redis = server.client()
    keys: list[bytes] = redis.keys("*bill:*")  # type: ignore[assignment]  # redis-py's types
    told: list[dict[bytes, bytes]] = [redis.hgetall(key) for key in keys]  # type: ignore[misc]  # the same
    flat = [list(itertools.chain(*fields.items())) for fields in told]
    hashes = [opened_fields(Seals(b"pepper"), key, [*one]).texts for key, one in zip(keys, flat, strict=True)]
    closed = {int(bill.attempts[0].deployment): (bill, fields) for fields in hashes if (bill := bill_of(fields))}
    counted, unknown = sum(one.counted for one in workers), 0
    for number in itertools.chain.from_iterable(one.upstream.numbers for one in workers):
        bill, fields = closed.get(number, (None, {}))
        payers = dict(bill.shares) if bill is not None else {}
        missing, known = BILL_NANOUSD * BASE**number, False
        for one in workers:
            inbox = one.flights._name
            if one.dead and inbox in payers:  # what it settled in its last moment, and did not say, is counted
                missing -= int(fields.get(b"$" + inbox, b"0"))
            else:
                booked = (part for client in one.clients if client.call.settled for part in client.call.attempts)
                missing -= sum(part.cost_nanousd for part in booked if part.deployment == str(number))
            known |= not one.dead and (number in one.upstream.numbers or inbox in payers)
        assert missing >= 0
        counted -= missing if known else 0
        unknown += 0 if known else missing
    assert 0 <= counted <= unknown

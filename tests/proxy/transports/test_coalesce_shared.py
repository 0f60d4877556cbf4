"""Tests of flights shared by workers over a real Redis: one upstream call, whoever leads, leaves or dies."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, AttemptRecord, CacheState, Outcome
from proxy.call import Call, StreamBroken
from proxy.refusals import EXHAUSTED, UNAVAILABLE, refuse
from proxy.settings import ProxySecrets, Secret
from proxy.shared import SharedState
from proxy.transports.coalesce import Coalesce
from proxy.transports.coalesce_shared import AT_ONCE, SharedFlights
from tests.proxy.fakes import until
from tests.proxy.redis_server import RedisServer
from tests.proxy.state_fakes import FakeInner, FakeStream, make_call, settle_down
from tests.proxy.transports.test_coalesce import ANSWER_NANOUSD, Client

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("token"))
DEADLINE_S = 30.0
LEASE_S = 0.4


class Host:
    """A worker's part: local flights above shared ones above an upstream."""

    def __init__(self, url: str | None, *, lease_s: float = LEASE_S, secret: bytes = b"pepper") -> None:
        self.shared = None
        if url is not None:
            self.shared = SharedState(ProxySettings(redis=url, redis_timeout_s=5.0, redis_pause_s=0.05), SECRETS)
        self.join(self.shared, FakeInner(gated=True), lease_s=lease_s, secret=secret)

    def join(
        self,
        shared: SharedState | None,
        inner: FakeInner,
        *,
        lease_s: float = LEASE_S,
        secret: bytes = b"pepper",
        count_after_s: float | None = None,
    ) -> None:
        """Its parts, joined as a worker joins them."""
        self.shared, self.inner = shared, inner
        self.flights = SharedFlights(
            inner,
            shared,
            secret=secret,
            lease_s=lease_s,
            buffer_bytes_max=10**6,
            flights_max=100,
            count_after_s=count_after_s,
        )
        self.coalesce = Coalesce(
            self.flights, calls_max=100, buffer_bytes_max=10**6, buffers_bytes_max=10**7,
            elsewhere=self.flights.followers, recount=self.flights.bills.recount,
        )  # fmt: skip
        self.flights.on_left, self.flights.bills.members = self.coalesce.left_elsewhere, self.coalesce.sharers
        self.flights.on_followed = self.coalesce.followed_elsewhere

    async def open(self) -> Host:
        """Connected."""
        if self.shared is not None:
            self.shared.open()
            async with asyncio.timeout(DEADLINE_S):
                await self.shared.ready()
        return self

    async def close(self) -> None:
        """Gone."""
        await self.coalesce.aclose()
        if self.shared is not None:
            await self.shared.aclose()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of its own."""
    server = await RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
async def hosts(server: RedisServer) -> AsyncIterator[tuple[Host, Host]]:
    """Two workers."""
    pair = (await Host(server.url).open(), await Host(server.url).open())
    yield pair
    for host in pair:
        await host.close()


async def _lead(host: Host) -> Client:
    """A call that has gone upstream."""
    client = Client(host.coalesce)
    client.read_freely()
    await until(lambda: host.inner.calls)
    return client


async def _follow(leader: Host, host: Host, key: bytes = b"key") -> Client:
    """A call that the leader's worker knows of."""
    client = Client(host.coalesce, key=key)
    client.read_freely()
    await until(lambda: leader.flights.followers(key))
    return client


async def test_two_workers_ask_once(hosts: tuple[Host, Host]) -> None:
    """The second worker's calls get the first one's answer, pay nothing and say what they saved."""
    one, two = hosts
    leader = await _lead(one)
    followers = [await _follow(one, two), Client(two.coalesce)]
    await settle_down()
    one.inner.gate.set()
    await until(lambda: all(client.ended for client in (leader, *followers)))
    assert [[b'{"answer":1}']] * 3 == [client.got for client in (leader, *followers)]
    assert ([], 1) == (two.inner.calls, len(one.inner.calls))
    assert [CacheState.MISS, CacheState.COALESCED, CacheState.COALESCED] == [
        client.call.cache for client in (leader, *followers)
    ]
    assert [0, ANSWER_NANOUSD, ANSWER_NANOUSD] == [client.call.saved_nanousd for client in (leader, *followers)]
    assert (1, 1, 0) == (one.flights.led_total, two.flights.followed_total, two.flights.led_total)


async def test_a_follower_gets_the_stream_so_far_and_what_comes(hosts: tuple[Host, Host]) -> None:
    """Joining in the middle misses nothing; the end says what is known of the whole."""
    one, two = hosts
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    stream.feed(b"one", b"two")
    await until(lambda: len(leader.got) == 2)
    late = await _follow(one, two)
    await until(lambda: late.got == [b"one", b"two"])
    stream.feed(b"three")
    stream.end()
    await until(lambda: leader.ended and late.ended)
    assert [b"one", b"two", b"three"] == leader.got == late.got
    assert late.reply is not None
    assert (True, "stop", ANSWER_NANOUSD) == (late.reply.complete, late.reply.finish_reason, late.call.saved_nanousd)
    assert [] == two.inner.calls


@pytest.mark.parametrize("begun", [False, True])
async def test_a_follower_does_not_wait_for_a_slow_client_of_the_leader_s_worker(
    hosts: tuple[Host, Host], *, begun: bool
) -> None:
    """It has the whole answer before that client has taken anything; the slow one gets all of it too, in its own time."""
    one, two = hosts
    one.inner.streaming = True
    leader = Client(one.coalesce)
    await until(lambda: one.inner.calls)
    if begun:
        one.inner.gate.set()
        await until(lambda: leader.reply is not None)
    follower = await _follow(one, two)
    one.inner.gate.set()
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    chunks = [b"%d" % number for number in range(20)]
    for chunk in chunks:
        stream.feed(chunk)
        await settle_down()
    stream.end()
    await until(lambda: follower.ended)
    assert (chunks, "complete", []) == (follower.got, follower.ended, leader.got)
    leader.read_freely()
    await until(lambda: leader.ended)
    assert (chunks, "complete") == (leader.got, leader.ended)
    figures = (one.coalesce.members, one.coalesce.flights, one.coalesce.buffered_bytes)
    assert (0, 0, 0) == figures


async def test_a_client_too_slow_for_the_buffer_loses_its_stream_and_no_follower_does(server: RedisServer) -> None:
    """What it would have to be kept for it is more than one answer may take; its task reads on, for the others and for the bill."""
    one, two = Host(server.url), await Host(server.url).open()
    one.coalesce._buffer_bytes_max = 5_000
    await one.open()
    one.inner.streaming = True
    one.inner.gate.set()
    leader = Client(one.coalesce)
    await until(lambda: one.inner.streams)
    follower = await _follow(one, two)
    (stream,) = one.inner.streams
    for _ in range(20):
        stream.feed(b"x" * 1_000)
        await settle_down()
        assert one.coalesce.buffered_bytes <= 6_000
    await until(lambda: 20 == len(follower.got))
    leader.read_freely()
    stream.end()
    await until(lambda: follower.ended and leader.ended)
    assert ("complete", "broken", 1) == (follower.ended, leader.ended, one.coalesce.ejected_total)
    for host in (one, two):
        await host.close()


async def test_an_answer_that_has_just_ended_is_still_shared(hosts: tuple[Host, Host]) -> None:
    """A worker that looked into the cache a moment before need not ask again."""
    one, two = hosts
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: leader.ended)
    late = Client(two.coalesce)
    await until(lambda: late.ended)
    assert ([b'{"answer":1}'], []) == (late.got, two.inner.calls)


async def test_the_call_goes_on_for_another_worker_when_the_leader_s_client_leaves(hosts: tuple[Host, Host]) -> None:
    """It is cancelled only when nobody anywhere wants it."""
    one, two = hosts
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    stream.feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got)
    assert not leader.leave()
    stream.feed(b"two")
    await until(lambda: follower.got == [b"one", b"two"])
    assert follower.leave()
    await until(lambda: leader.ended)
    assert ("cancelled", True, True) == (leader.ended, leader.call.aborted, stream.closed > 0)


async def test_the_call_is_given_up_when_the_worker_that_follows_dies(hosts: tuple[Host, Host]) -> None:
    """It says no word any more: soon it is counted out, and what nobody wants is cancelled."""
    one, two = hosts
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    stream.feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got)
    assert not leader.leave()
    assert two.shared is not None
    await two.shared.aclose()  # from here on nothing of it is heard
    async with asyncio.timeout(10 * LEASE_S):
        await until(lambda: leader.ended)
    assert ("cancelled", True, True) == (leader.ended, leader.call.aborted, stream.closed > 0)
    assert (0, 1) == (one.flights.followers(b"key"), one.flights.counted_out_total)


@pytest.mark.parametrize("pieces", [0, 40])
async def test_a_worker_that_follows_for_long_is_not_counted_out(hosts: tuple[Host, Host], pieces: int) -> None:
    """Whether the upstream says nothing for many leases or a lot, those who live say so."""
    one, two = hosts
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    stream.feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got)
    assert not leader.leave()
    began = time.monotonic()
    for piece in range(1, 41):
        await until(lambda at=began + piece * LEASE_S / 10: time.monotonic() >= at)  # type: ignore[misc]
        stream.feed(*[b"more"] * (pieces > 0))
    stream.end()
    await until(lambda: follower.ended)
    assert ("complete", 1 + pieces, 0) == (follower.ended, len(follower.got), one.flights.counted_out_total)


async def test_a_worker_that_follows_many_flights_is_counted_out_of_none(server: RedisServer) -> None:
    """It says that it stays in all of them, though it may not ask Redis for so many things at once."""
    one, two = [await Host(server.url).open() for _ in range(2)]
    one.inner.streaming = True
    one.inner.gate.set()
    followers: list[Client] = []
    for number in range(2 * AT_ONCE):
        Client(one.coalesce, key=b"key%d" % number).read_freely()
        await until(lambda at=number: len(one.inner.streams) > at)  # type: ignore[misc]
        followers.append(await _follow(one, two, b"key%d" % number))
    assert two.shared is not None
    two.shared._settings = msgspec.structs.replace(two.shared._settings, redis_waiting_max=AT_ONCE)
    began = time.monotonic()
    for piece in range(41):
        await until(lambda at=began + piece * LEASE_S / 10: time.monotonic() >= at)  # type: ignore[misc]
        for stream in one.inner.streams:
            stream.feed(b"more")
    for stream in one.inner.streams:
        stream.end()
    await until(lambda: all(follower.ended for follower in followers))
    assert (0, {("complete", 41)}) == (
        one.flights.counted_out_total,
        {(follower.ended, len(follower.got)) for follower in followers},
    )
    for host in (one, two):
        await host.close()


async def test_a_dead_leader_s_flight_is_taken_over(hosts: tuple[Host, Host], server: RedisServer) -> None:
    """Nobody answers under the lease: when it runs out the follower claims it and asks upstream itself."""
    _, two = hosts
    assert two.shared is not None
    tag = two.flights._seals.tag_of(b"key")
    server.client().set(two.shared.prefix + b"flight:{" + tag + b"}", b"dead/token/", px=300)
    two.inner.gate.set()
    client = Client(two.coalesce)
    await until(lambda: client.ended)
    assert ("complete", [b'{"answer":1}'], CacheState.MISS) == (client.ended, client.got, client.call.cache)
    assert (1, 1) == (two.flights.taken_over_total, len(two.inner.calls))


async def test_a_leader_that_dies_in_the_middle_breaks_the_stream(hosts: tuple[Host, Host]) -> None:
    """What a client has had cannot be continued by anybody else, so it is told, and the next call asks anew."""
    one, two = hosts
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    one.inner.streams[0].feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got)
    assert one.shared is not None
    await one.shared.aclose()  # it neither renews its lease nor says a word
    await until(lambda: follower.ended)
    assert ("broken", [b"one"]) == (follower.ended, follower.got)
    assert isinstance(follower.broken, StreamBroken)
    assert Outcome.BROKEN_STREAM is follower.broken.outcome
    two.inner.gate.set()
    again = Client(two.coalesce)
    await until(lambda: again.ended)
    assert ("complete", CacheState.MISS) == (again.ended, again.call.cache)
    leader.task.cancel()


async def test_a_leader_that_fails_leaves_its_followers_to_themselves(hosts: tuple[Host, Host]) -> None:
    """A bug or a shutdown there is no answer here: the follower asks upstream itself, at once."""
    one, two = hosts
    leader = await _lead(one)
    two.inner.gate.set()
    follower = await _follow(one, two)
    leader.task.cancel()
    await until(lambda: follower.ended)
    assert ("complete", [b'{"answer":1}'], 1) == (follower.ended, follower.got, len(two.inner.calls))


@pytest.mark.parametrize(("asked", "calls"), [(True, 0), (False, 1)])
async def test_a_refusal_is_shared_if_upstreams_were_asked(hosts: tuple[Host, Host], asked: bool, calls: int) -> None:
    """All upstreams failed: nobody else need find that out. All breakers here are open: those there may not be."""
    one, two = hosts
    one.inner.answer = lambda: refuse(EXHAUSTED, "all failed") if asked else refuse(UNAVAILABLE, "all are open")
    leader = await _lead(one)
    two.inner.gate.set()
    if asked:
        leader.call.attempts.append(AttemptRecord("sim/m", "sim", "m", 1, 2, error=AttemptError.STATUS_5XX))
    follower = await _follow(one, two)
    one.inner.gate.set()
    await until(lambda: leader.ended and follower.ended)
    assert leader.reply is not None
    assert follower.reply is not None
    assert (502 if asked else 503, 502 if asked else 200) == (leader.reply.status, follower.reply.status)
    assert calls == len(two.inner.calls)


@pytest.mark.parametrize("configured", [False, True])
async def test_without_redis_each_worker_shares_its_own(server: RedisServer, configured: bool) -> None:
    """No Redis, or one that is gone: local flights as ever, and nobody waits."""
    host = await Host(server.url if configured else None).open()
    server.kill()
    clients = [Client(host.coalesce) for _ in range(3)]
    await until(lambda: host.inner.calls)
    host.inner.gate.set()
    await until(lambda: all(client.ended for client in clients))
    assert (1, 0) == (len(host.inner.calls), host.flights.led_total)
    await host.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_redis_dies_in_the_middle(hosts: tuple[Host, Host], server: RedisServer, begun: bool) -> None:
    """The leader notices nothing; a follower that has had nothing asks for itself, another's stream breaks."""
    one, two = hosts
    one.inner.streaming = two.inner.streaming = True
    one.inner.gate.set()
    two.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    if begun:
        one.inner.streams[0].feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got == [b"one"] * begun)
    server.kill()
    if not begun:
        await until(lambda: two.inner.streams)
        two.inner.streams[0].feed(b"mine")
        two.inner.streams[0].end()
    await until(lambda: follower.ended)
    one.inner.streams[0].feed(b"two")
    one.inner.streams[0].end()
    await until(lambda: leader.ended)
    assert ("broken", [b"one"]) if begun else ("complete", [b"mine"]) == (follower.ended, follower.got)
    assert ("complete", [b"one"] * begun + [b"two"]) == (leader.ended, leader.got)


async def test_a_redis_that_forgot_everything_is_told_who_leads(hosts: tuple[Host, Host], server: RedisServer) -> None:
    """As after a failover in which leases were lost: the stream goes on, and a third call still joins."""
    one, two = hosts
    assert one.shared is not None
    one.inner.streaming = True
    one.inner.gate.set()
    leader = await _lead(one)
    await until(lambda: one.inner.streams)
    (stream,) = one.inner.streams
    stream.feed(b"one")
    follower = await _follow(one, two)
    await until(lambda: follower.got)
    redis = server.client()
    redis.flushall()
    lease = one.shared.prefix + b"flight:{" + one.flights._seals.tag_of(b"key") + b"}"
    await until(lambda: redis.exists(lease))
    clock = asyncio.get_running_loop().time
    flushed = clock()
    await until(lambda: clock() > flushed + two.flights.silence_s * 2)
    stream.feed(b"two")
    stream.end()
    await until(lambda: leader.ended and follower.ended)
    assert ([b"one", b"two"], [b"one", b"two"], []) == (leader.got, follower.got, two.inner.calls)


async def test_who_hears_nothing_neither_leads_nor_follows(server: RedisServer) -> None:
    """As long as messages do not arrive, though commands are answered, each call asks for itself at once."""
    host = Host(server.url)
    assert host.shared is not None
    host.shared.open()
    await until(lambda: not host.shared.degraded)  # type: ignore[union-attr]  # asserted above
    host.shared.subscribe(b"heph:not-confirmed", lambda _: None)
    host.inner.gate.set()
    client = Client(host.coalesce)
    await until(lambda: client.ended)
    assert (1, 0) == (len(host.inner.calls), host.flights.led_total)
    await host.close()


async def test_another_installation_shares_nothing(server: RedisServer) -> None:
    """Under another secret flights have other names, and what is said there is not heard."""
    one, two = await Host(server.url).open(), await Host(server.url, secret=b"other").open()
    for host in (one, two):
        host.inner.gate.set()
        client = Client(host.coalesce)
        await client.task
    assert (1, 1) == (len(one.inner.calls), len(two.inner.calls))
    assert two.shared is not None
    await two.shared.publish(one.flights._channel(one.flights._name), b"hello")
    await until(lambda: one.flights.unheard_total)
    for host in (one, two):
        await host.close()


async def test_one_worker_asks_a_stale_answer_anew(hosts: tuple[Host, Host]) -> None:
    """The first to want it does, the others leave it to that one for a while."""
    one, two = hosts
    assert not await one.flights.is_refreshed_elsewhere(b"key")
    assert await two.flights.is_refreshed_elsewhere(b"key")
    assert not await two.flights.is_refreshed_elsewhere(b"another")


async def test_a_call_that_does_not_share_costs_no_round_trip(hosts: tuple[Host, Host]) -> None:
    """Without a key, or past the cache, nothing is claimed."""
    one, _ = hosts
    one.inner.gate.set()
    for key, state in ((b"", CacheState.MISS), (b"key", CacheState.BYPASS)):
        call: Call = make_call()
        call.cache_key, call.cache = key, state
        await one.coalesce.send(call)
    assert (2, 0) == (len(one.inner.calls), one.flights.led_total)


async def _interleave(server: RedisServer, steps: list[tuple[str, int]]) -> None:
    hosts = (await Host(server.url).open(), await Host(server.url).open())
    for host in hosts:
        host.inner.streaming = True
        host.inner.gate.set()
    clients: list[Client] = []
    fed: dict[int, list[bytes]] = {}
    number = itertools.count()
    try:
        for step, at in steps:
            if step == "call":
                clients.append(Client(hosts[at % 2].coalesce))
                clients[-1].read_freely()
            elif step == "leave" and clients and not (client := clients[at % len(clients)]).ended:
                client.leave()
            elif step == "feed":
                for stream in _open_streams(hosts):
                    stream.feed(chunk := b"%d" % next(number))
                    fed.setdefault(id(stream), []).append(chunk)
            await settle_down()
        async with asyncio.timeout(DEADLINE_S):
            while not all(client.task.done() for client in clients):
                await asyncio.sleep(0)
                for stream in _open_streams(hosts):
                    fed.setdefault(id(stream), [])
                    stream.end()
        stayed = [client for client in clients if not client.call.client_gone]
        assert ["complete"] * len(stayed) == [client.ended for client in stayed]
        assert all(client.got in fed.values() for client in stayed)
        for host in hosts:
            assert (0, 0, 0) == (host.coalesce.members, host.coalesce.followers, host.coalesce.buffered_bytes)
    finally:
        for host in hosts:
            await host.close()


def _open_streams(hosts: tuple[Host, Host]) -> list[FakeStream]:
    return [stream for host in hosts for stream in host.inner.streams if not stream.ended]


STEPS = st.lists(st.tuples(st.sampled_from(["call", "call", "leave", "feed"]), st.integers(0, 7)), max_size=14)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_interleaving_of_two_workers_calls(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Whoever comes, reads and leaves when: everybody who stays has one upstream's whole answer, and nothing is left behind."""

    async def run() -> None:
        server = await RedisServer(tmp_path_factory.mktemp("redis")).start()
        try:
            await _interleave(server, steps)
        finally:
            server.kill()

    asyncio.run(run())

"""Tests of flights between workers whose commands and words overtake each other; over a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.transports.coalesce_shared import _CLAIM, _RENEW
from proxy.transports.flight_words import Attach, Detach, Seals
from tests.proxy.fakes import until
from tests.proxy.redis_gated import GatedWay
from tests.proxy.redis_server import RedisServer
from tests.proxy.transports.test_coalesce import Client
from tests.proxy.transports.test_coalesce_shared import Host

SEALS = Seals(b"pepper")
LEASE_S = 3.0  # renewed after a third of it


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of its own, which knows the scripts."""
    server = await RedisServer(tmp_path).start()
    for script in (_CLAIM, _RENEW):
        server.client().script_load(script.text)
    yield server
    server.kill()


@pytest.fixture
async def way(server: RedisServer) -> AsyncIterator[GatedWay]:
    """One worker's way to it."""
    way = await GatedWay(server).start()
    yield way
    await way.stop()


def _lease(host: Host) -> bytes:
    assert host.shared is not None
    return host.shared.prefix + b"flight:{" + SEALS.tag_of(b"key") + b"}"


async def test_who_leads_by_redis_can_be_followed_before_it_knows(server: RedisServer, way: GatedWay) -> None:
    """The lease is there, its answer is still on the way, and another worker has seen it: that one waits for this one's answer."""
    one, two = await Host(way.url).open(), await Host(server.url).open()
    way.answers = _CLAIM.sha.encode()
    two.inner.gate.set()
    leader = Client(one.coalesce)
    await until(lambda: way.held)
    follower = Client(two.coalesce)
    await until(lambda: one.shared is not None and one.shared.messages_total)
    way.gate.set()
    await until(lambda: one.inner.calls)
    one.inner.gate.set()
    await until(lambda: leader.ended and follower.ended)
    assert [[b'{"answer":1}']] * 2 == [leader.got, follower.got]
    assert (1, 0, 0) == (len(one.inner.calls), len(two.inner.calls), two.flights.taken_over_total)
    for host in (one, two):
        await host.close()


async def test_who_follows_one_that_never_learns_that_it_leads_is_told(server: RedisServer, way: GatedWay) -> None:
    """The call that has claimed the flight is cancelled before it hears of it: its follower asks for itself, at once."""
    one, two = await Host(way.url, lease_s=LEASE_S).open(), await Host(server.url, lease_s=LEASE_S).open()
    way.answers = _CLAIM.sha.encode()
    two.inner.gate.set()
    leader = Client(one.coalesce)
    await until(lambda: way.held)
    follower = Client(two.coalesce)
    await until(lambda: one.shared is not None and one.shared.messages_total)
    leader.task.cancel()
    await until(lambda: follower.ended)
    assert ("complete", 1) == (follower.ended, len(two.inner.calls))
    way.gate.set()
    for host in (one, two):
        await host.close()


async def test_flights_that_are_being_claimed_count(server: RedisServer, way: GatedWay) -> None:
    """The bound holds also for calls that come while Redis is asked for the first of them."""
    host = Host(way.url)
    host.flights._flights_max = 1
    await host.open()
    way.answers = _CLAIM.sha.encode()
    clients = [Client(host.coalesce, key=key) for key in (b"key", b"other")]
    await until(lambda: way.held and host.inner.calls)
    assert ([clients[1].call], 1) == (host.inner.calls, host.flights.full_total)
    way.gate.set()
    host.inner.gate.set()
    await until(lambda: all(client.ended for client in clients))
    assert (1, 1) == (host.flights.led_total, host.flights.full_total)
    await host.close()


async def test_a_lease_that_is_renewed_after_its_end_is_given_back(server: RedisServer, way: GatedWay) -> None:
    """The renewal was on the way when the flight ended, and would keep all workers from sharing the next one."""
    host = await Host(way.url, lease_s=LEASE_S).open()
    redis = server.client()
    way.requests = _RENEW.sha.encode()
    client = Client(host.coalesce)
    await until(lambda: way.held)
    assert client.leave()
    await until(lambda: not redis.exists(_lease(host)))
    before = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    way.gate.set()
    clock = asyncio.get_running_loop().time
    opened_s = clock()
    await until(lambda: redis.info("commandstats")["cmdstat_evalsha"]["calls"] > before)
    await until(lambda: not redis.exists(_lease(host)))
    assert clock() - opened_s < LEASE_S / 2
    await host.close()


async def test_a_lease_whose_renewal_is_slow_keeps_no_other_from_being_renewed(
    server: RedisServer, way: GatedWay
) -> None:
    """Each is asked for by itself, several at once."""
    host = await Host(way.url).open()
    way.requests = _RENEW.sha.encode()
    clients = [Client(host.coalesce, key=b"%d" % number) for number in range(3)]
    await until(lambda: 3 == way.held)
    assert host.shared is not None
    assert 0 == host.shared.errors_total  # none had to be given up first
    way.gate.set()
    host.inner.gate.set()
    await until(lambda: all(client.ended for client in clients))
    await host.close()


async def test_a_word_of_one_that_left_does_not_end_what_came_after_it(server: RedisServer) -> None:
    """A worker leaves a flight and follows it again; its words arrive in the other order."""
    host = await Host(server.url).open()
    assert host.shared is not None
    redis, channel, tag = server.client(), host.flights._channel(host.flights._name), SEALS.tag_of(b"key")
    client = Client(host.coalesce)
    await until(lambda: host.inner.calls)
    held = redis.get(_lease(host))
    assert isinstance(held, bytes)
    _, token, _ = held.split(b"/")

    async def say(word: Attach | Detach) -> int:
        heard = host.shared.messages_total  # type: ignore[union-attr]  # asserted above
        redis.publish(channel, SEALS.sealed(channel, word))
        await until(lambda: host.shared.messages_total > heard)  # type: ignore[union-attr]  # the same
        return host.flights.followers(b"key")

    assert 1 == await say(Attach(tag, token, b"them", number=2))
    assert 1 == await say(Detach(tag, token, b"them", number=1))
    assert 0 == await say(Detach(tag, token, b"them", number=2))
    assert client.leave()
    await host.close()


async def test_followers_of_an_answer_that_has_ended_keep_no_other_call_alive(server: RedisServer) -> None:
    """It can still be followed for a moment; a later call for the same is nobody's but its client's."""
    host = await Host(server.url).open()
    assert host.shared is not None
    redis, channel, tag = server.client(), host.flights._channel(host.flights._name), SEALS.tag_of(b"key")
    host.inner.gate.set()
    first = Client(host.coalesce)
    await until(lambda: first.ended)
    held = redis.get(_lease(host))
    assert isinstance(held, bytes)
    redis.publish(channel, SEALS.sealed(channel, Attach(tag, held.split(b"/")[1], b"them")))
    await until(lambda: host.flights._led[tag].followers)
    host.inner.gate.clear()
    second = Client(host.coalesce)
    await until(lambda: 2 == len(host.inner.calls))
    assert second.leave()
    await until(lambda: second.ended)
    await host.close()

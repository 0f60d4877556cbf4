"""Tests of shared limits under somebody who may write to Redis: rows that are forged, moved, taken away and put back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any  # redis-py's answers depend on the command

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.sealed_rows import ROWS_MAX
from proxy.shared import Answer, Script
from tests.proxy.redis_server import RedisServer
from tests.proxy.test_leases import LEASE_S, Fleet, Worker, _total, fleet_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; each uses keys of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    asyncio.run(_start(server))
    yield server
    server.kill()


async def _start(server: RedisServer) -> None:
    await server.start()


class Attacker:
    """Somebody with every right in Redis, and without the pepper."""

    def __init__(self, server: RedisServer, fleet: Fleet) -> None:
        self._redis = server.client()
        (self.key,) = self._redis.keys(fleet.shared.prefix + fleet.tag + b"s:*")
        self._saved = self.rows()

    def rows(self) -> dict[bytes, bytes]:
        """All rows of the one ceiling."""
        rows: Any = self._redis.hgetall(self.key)
        return dict(rows)

    def write(self, name: bytes, text: bytes) -> None:
        """Puts a row there."""
        self._redis.hset(self.key, name, text)

    def change(self, name: bytes, field: int, value: bytes) -> None:
        """Changes one word of a row."""
        words = self.rows()[name].split(b" ")
        words[field] = value
        self.write(name, b" ".join(words))

    def replace(self, rows: dict[bytes, bytes]) -> None:
        """Puts the whole hash back as it once was."""
        self._redis.delete(self.key)
        if rows:
            self._redis.hset(self.key, items=[word for row in rows.items() for word in row])

    def strike(self, what: str, number: int, amount: int) -> None:
        """One attack on the row of one worker, or on all."""
        rows, name = self.rows(), b"prx_%d" % number
        if what == "save":
            self._saved = rows
        elif what == "back":
            self.replace(self._saved)
        elif what == "flush":
            self.replace({})
        elif what == "drop":
            self.replace({key: row for key, row in rows.items() if key != name})
        elif what == "shrink" and name in rows:
            self.change(name, amount % 8, b"0")
        elif what == "swap" and name in rows:
            self.write(b"prx_%d" % ((number + 1) % 3), rows[name])
        elif what == "star":
            self.write(b"*", b"%d" % (amount * 10))


def _spent(fleet: Fleet) -> int:
    return sum(worker.used() for worker in fleet.members)


async def _spend(worker: Worker, amount: int) -> int:
    """One by one, as far as it is let."""
    taken = sum([await worker.take(1) for _ in range(amount)])
    while worker.open:
        worker.end()
    return taken


async def _acquainted(fleet: Fleet) -> None:
    """Every worker has heard of every other, and no slice is out."""
    for _ in range(2):
        for worker in fleet.members:
            assert 1 == await _spend(worker, 1)
    await _quiet(fleet)


async def _exhaust(fleet: Fleet) -> None:
    """Uses up all that is left, once every slice that was out has ended."""
    for amount in (5, 5, 5, 5, 200, 200):
        for worker in fleet.members:
            await _spend(worker, amount)
            await _quiet(fleet)


async def _quiet(fleet: Fleet) -> None:
    """Everybody reports what it has spent, and gives back what it had."""
    for _ in range(8):
        await fleet.keep()
        fleet.clock.advance(LEASE_S / 4)


@pytest.mark.parametrize("field", [0, 1, 2, 3, 4, 5])
async def test_a_changed_row_is_refused_and_put_right(server: RedisServer, field: int) -> None:
    """Whichever sealed word is changed: the answer is refused and counted, the worker has its part, and then all of the rest is there."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        one, other = fleet.members
        await _acquainted(fleet)
        assert 56 == await _spend(other, 56)
        await _quiet(fleet)
        await _spend(one, 1)
        await _quiet(fleet)
        Attacker(server, fleet).change(b"prx_1", field, b"7")
        taken = await _spend(one, 100)
        assert 1 <= one.leases.seals.rows_forged_total
        assert taken <= 39 // 2 + 1  # its part of what it knew to be left
        await _exhaust(fleet)
        assert 100 == _spent(fleet)
        assert 0 == one.leases.degraded


async def test_a_slice_below_what_is_sealed_is_refused(server: RedisServer) -> None:
    """What was left of the slice before is sealed, so a sibling's slice cannot be made nothing."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        one, other = fleet.members
        await _acquainted(fleet)
        assert await other.take(50)
        fleet.clock.advance(1)
        for lease in other.leases.active.values():
            await lease.report()
        Attacker(server, fleet).change(b"prx_1", 6, b"0")
        await _spend(one, 100)
        assert 1 <= one.leases.seals.rows_forged_total
        assert 50 == one.used()  # its part of what was left when it heard of the other last


async def test_a_slice_is_not_over_before_its_worker_said_so(server: RedisServer) -> None:
    """The end of a lease is Redis' word; one that is moved to the past makes nobody's slice larger."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        one, other = fleet.members
        await _acquainted(fleet)
        assert await other.take(90)
        Attacker(server, fleet).change(b"prx_1", 7, b"0")
        assert 6 >= await _spend(one, 100)
        assert 100 >= _spent(fleet)
        assert 1 <= one.leases.seals.grants_cut_total


async def test_rows_that_vanish_or_go_back_count_as_they_were_heard_of_last(server: RedisServer) -> None:
    """Before every report the hash is gone, or as it was at the beginning: nobody spends what a sibling has spent."""
    for old in (True, False):
        async with fleet_of(server, _total(100), keepers=False) as fleet:
            await _acquainted(fleet)
            attacker = Attacker(server, fleet)
            first = attacker.rows() if old else {}
            for number in range(120):
                worker = fleet.members[number % 2]
                await worker.take(1)
                while worker.open:
                    worker.end()
                await fleet.keep()  # each hears of the other
                if number % 5 == 4:
                    attacker.replace(first)
            assert 100 >= _spent(fleet)
            assert 1 <= sum(worker.leases.seals.rows_restored_total for worker in fleet.members)


async def test_an_idle_workers_row_is_put_back_by_those_who_know_it(server: RedisServer) -> None:
    """Who has nothing more to say is not forgotten: a third, that never heard of it, finds what it had spent."""
    async with fleet_of(server, _total(100), workers=3, keepers=False) as fleet:
        idle, knows, new = fleet.members
        assert 80 == await _spend(idle, 80)
        await _quiet(fleet)
        assert 1 == await _spend(knows, 1)
        attacker = Attacker(server, fleet)
        attacker.replace({})
        await idle.die()
        for _ in range(4):
            await _spend(knows, 1)
            await _quiet(fleet)
        assert {b"prx_0", b"prx_1", b"*"} == attacker.rows().keys()
        left = 100 - _spent(fleet)
        assert left < 20
        assert not await new.take(left + 1)
        assert await new.take(left)


async def test_a_number_of_its_own_that_it_never_reached_stops_no_worker(server: RedisServer) -> None:
    """A row in a worker's own place with the largest number is taken away, under this limit and without harm to others."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        one, _ = fleet.members
        await _acquainted(fleet)
        attacker = Attacker(server, fleet)
        for number in (b"9" * 16, b"9" * 70):
            attacker.change(b"prx_0", 0, number)
            assert await one.take(30)
            assert 0 == one.leases.degraded
        assert 2 == one.leases.seals.rows_forged_total


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"*", b"99999999999"),
        (b"*", b"inf"),
        (b"*", b"9" * 400),
        (b"prx_9", b""),
        (b"prx_9", b"1 9999999 0 0 0 ff 0 0"),
        (b"prx_9", b"1 -5 0 0 0 ff 0 0"),
        (b"prx_9", b"9" * 300),
        (b"\xff\x00", b"x y z"),
    ],
)
async def test_a_row_of_anything_is_gone_with_the_next_report(server: RedisServer, name: bytes, text: bytes) -> None:
    """Words of no meaning, and totals that were never reached, hold up nobody for longer than one report."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        await _acquainted(fleet)
        attacker = Attacker(server, fleet)
        attacker.write(name, text)
        await _exhaust(fleet)
        assert 100 == _spent(fleet)
        assert text != attacker.rows().get(name)
        assert 1 == sum(worker.leases.seals.rows_forged_total for worker in fleet.members)


async def test_a_hash_of_too_many_rows_begins_anew(server: RedisServer) -> None:
    """What a thousand workers did not write is not read."""
    async with fleet_of(server, _total(100), keepers=False) as fleet:
        await _acquainted(fleet)
        attacker = Attacker(server, fleet)
        attacker.replace({b"prx_%d" % number: b"0" for number in range(ROWS_MAX + 1)})
        await _exhaust(fleet)
        assert 100 == _spent(fleet)
        assert 3 == len(attacker.rows())


async def test_a_row_is_good_for_its_worker_ceiling_and_window_alone(server: RedisServer) -> None:
    """A row copied to another name, or from another limit, is forged."""
    async with fleet_of(server, _total(100), keepers=False) as fleet, fleet_of(server, _total(100)) as elsewhere:
        await _acquainted(fleet)
        await _acquainted(elsewhere)
        here, there = Attacker(server, fleet), Attacker(server, elsewhere)
        here.write(b"prx_7", here.rows()[b"prx_1"])
        await fleet.members[0].take(1)
        await _quiet(fleet)
        await fleet.members[0].take(1)
        here.write(b"prx_1", there.rows()[b"prx_1"])
        await fleet.members[0].take(50)
        assert 2 == fleet.members[0].leases.seals.rows_forged_total


class Liar:
    """A Redis that grants whatever is worth most."""

    def __init__(self, worker: Worker) -> None:
        self._run: Callable[..., Any] = worker.link.run
        worker.link.run = self.run  # type: ignore[method-assign]  # the server's side of the wire, not ours

    async def run(self, script: Script, keys: Sequence[bytes], *args: bytes | int) -> Answer:
        """The true answer with another slice."""
        answer: Answer = await self._run(script, keys, *args)
        return [2**60, *answer[1:]] if isinstance(answer, list) else answer


async def test_a_redis_that_grants_anything_grants_nobody_more_than_the_limit(server: RedisServer) -> None:
    """What the sealed rows leave is what a worker uses, whatever it is told."""
    async with fleet_of(server, _total(100), workers=3, keepers=False) as fleet:
        for worker in fleet.members:
            Liar(worker)
        await _exhaust(fleet)
        assert 100 == _spent(fleet)


ATTACKS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(
            ["take", "take", "take", "end", "wait", "save", "back", "flush", "drop", "shrink", "swap", "star"]
        ),
        st.integers(1, 30),
    ),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=ATTACKS)
def test_nobody_passes_the_limit_alone_whatever_is_done_to_redis(
    server: RedisServer, steps: list[tuple[int, str, int]]
) -> None:
    """Under any schedule of calls and attacks no worker uses more than the limit, and when the attacks end all of them agree again."""
    asyncio.run(_siege(server, steps))


async def _siege(server: RedisServer, steps: list[tuple[int, str, int]]) -> None:
    async with fleet_of(server, _total(100), workers=3, keepers=False) as fleet:
        await _acquainted(fleet)
        attacker = Attacker(server, fleet)
        for number, what, amount in steps:
            worker = fleet.members[number]
            if what == "take":
                await worker.take(amount)
            elif what == "end" and worker.open:
                worker.end(amount)
            elif what == "wait":
                fleet.clock.advance(amount / 3)
                await fleet.keep()
            else:
                attacker.strike(what, number, amount)
            assert all(one.used() <= 100 for one in fleet.members)
        for one in fleet.members:
            while one.open:
                one.end()
        await _quiet(fleet)
        spent = _spent(fleet)
        await _exhaust(fleet)
        assert max(100, spent) == _spent(fleet)
        assert 0 == sum(one.leases.degraded for one in fleet.members)

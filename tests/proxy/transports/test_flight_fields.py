"""Tests of what stands in a flight's hash: who can write to Redis and does not know the secret moves no cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from controlplane.contract.records import AttemptRecord
from proxy.shared import Answer
from proxy.transports.flight_fields import (
    BILL,
    FIELDS_MAX,
    PAID,
    bill_of,
    offer_text,
    opened_fields,
    opened_number,
    sealed_field,
    seat_text,
)
from proxy.transports.flight_words import Seals
from tests.proxy.fakes import until
from tests.proxy.redis_server import RedisServer
from tests.proxy.transports.test_flight_bill import BILL_NANOUSD, Payer, Worker, _close, _done, _flight, _open

SEALS = Seals(b"pepper")
FAR_MS = 10**14
RENEWED_S = 60.0  # a lease so long that no worker puts its seat right while a test goes on
SPLIT_BY_TWO = [49, 48]
LEADER_ALONE = [BILL_NANOUSD, 0]


@dataclass
class Scene:
    """A flight that one worker leads and another follows; a third has followed it and left. left: the third's seat, as it was."""

    redis: Redis
    key: bytes
    leader: bytes
    follower: bytes
    gone: bytes
    left: bytes

    def put(self, name: bytes, value: bytes) -> None:
        """Writes a field."""
        self.redis.hset(self.key, name, value)

    def seat(self) -> bytes:
        """The follower's, as it is."""
        value = self.redis.hget(self.key, self.follower)
        assert isinstance(value, bytes)
        return value


def _alter(scene: Scene) -> None:
    """More calls under the seal of fewer."""
    seal, text = scene.seat()[:16], scene.seat()[16:]
    scene.put(scene.follower, seal + b"999" + text[1:])


def _crowd(scene: Scene) -> None:
    """More fields than workers can have written."""
    scene.redis.hset(scene.key, mapping={b"%d" % number: b"1" for number in range(FIELDS_MAX)})


def _other_flight(scene: Scene) -> bytes:
    return scene.key[:-1] + (b"0" if scene.key[-1:] != b"0" else b"1")


FORGERIES: dict[str, tuple[Callable[[Scene], object], list[int], bool]] = {
    # what is done, what leader and follower book, whether it is counted as forged
    "nothing": (lambda _: None, SPLIT_BY_TWO, False),
    "plain": (lambda s: s.put(b"00deadbeef000000", b"1000:99999999999999"), SPLIT_BY_TWO, True),
    "empty": (lambda s: s.put(b"00deadbeef000000", b""), SPLIT_BY_TWO, True),
    "under another secret": (
        lambda s: s.put(s.gone, sealed_field(Seals(b"guess"), s.key, s.gone, seat_text(1000, FAR_MS))),
        SPLIT_BY_TWO,
        True,
    ),
    "another worker's": (lambda s: s.put(s.gone, s.seat()), SPLIT_BY_TWO, True),
    "of a worker that nobody is": (
        lambda s: s.put(b"00deadbeef000000", sealed_field(SEALS, s.key, b"00deadbeef000000", seat_text(9, FAR_MS))),
        SPLIT_BY_TWO,
        False,
    ),
    "put back after its worker has left": (lambda s: s.put(s.gone, s.left), SPLIT_BY_TWO, False),
    "altered": (_alter, LEADER_ALONE, True),
    "from another flight": (
        lambda s: s.put(s.follower, sealed_field(SEALS, _other_flight(s), s.follower, seat_text(1000, FAR_MS))),
        LEADER_ALONE,
        True,
    ),
    "run out": (
        lambda s: s.put(s.follower, sealed_field(SEALS, s.key, s.follower, seat_text(1000, 1))), LEADER_ALONE, False
    ),
    "taken away": (lambda s: s.redis.hdel(s.key, s.follower), LEADER_ALONE, False),
    "a crowd": (_crowd, LEADER_ALONE, False),
    "a bill of nothing": (
        lambda s: s.put(
            BILL,
            sealed_field(
                SEALS, _other_flight(s), BILL, offer_text((), leader=s.leader, count=1, followers=[s.follower], now_ms=1)
            ),
        ),
        LEADER_ALONE,
        True,
    ),
    "already counted": (lambda s: s.put(b"!taken", b"me"), LEADER_ALONE, False),
}  # fmt: skip


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of its own."""
    server = await RedisServer(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
async def workers(server: RedisServer) -> AsyncIterator[list[Worker]]:
    """Three workers whose upstreams stream, and that do not look after their seats while a test goes on."""
    made = await _open([server.url] * 3, lease_s=RENEWED_S)
    yield made
    await _close(made)


async def _scene(server: RedisServer, workers: list[Worker]) -> tuple[Scene, Callable[[], None], list[Payer]]:
    """The scene, what ends the answer, and the two clients that are left."""
    stream, clients = await _flight(workers, 1, 1, 1)
    redis = server.client()
    (key,) = redis.keys("*bill:*")
    leader, follower, gone = (worker.flights._name for worker in workers)
    left = redis.hget(key, gone)
    assert isinstance(left, bytes)
    assert isinstance(key, bytes)
    clients.pop().leave()
    await until(lambda: not redis.hexists(key, gone) and 1 == workers[0].flights.followers(b"key"))
    return Scene(redis, key, leader, follower, gone, left), stream.end, clients


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_moves_no_cost(server: RedisServer, workers: list[Worker], name: str) -> None:
    """Whatever somebody writes among the seats, all of the bill is booked by those who follow and lead; nothing is left to nobody."""
    forge, booked, counted = FORGERIES[name]
    scene, end, clients = await _scene(server, workers)
    forge(scene)
    end()
    await until(lambda: all(client.call.settled for client in clients))
    await _done(workers)
    assert booked == [client.booked for client in clients]
    assert [0, 0, 0] == [worker.counted for worker in workers]
    assert counted == bool(sum(worker.flights.bills.forged_total for worker in workers))


async def test_a_worker_cannot_be_said_to_have_booked(server: RedisServer, workers: list[Worker]) -> None:
    """What a worker that dies owed is counted, though somebody wrote that it was booked."""
    scene, end, clients = await _scene(server, workers)
    forged = sealed_field(Seals(b"guess"), scene.key, PAID + scene.follower, b"48")
    scene.put(PAID + scene.follower, forged)
    clients[1].settles = False
    end()
    await until(lambda: all(client.ended for client in clients))
    await workers[1].kill()
    await _done(workers)
    assert ([49, 0], 48) == ([client.booked for client in clients], sum(worker.counted for worker in workers))
    assert 0 == opened_number(SEALS, scene.key, PAID + scene.follower, forged)


def test_a_bill_names_who_may_pay() -> None:
    """Seats of others, seats that have run out, and fields that are none count for nothing; without a bill there is none."""
    attempt = AttemptRecord("d", "u", "m", 1, 2, cost_nanousd=9)
    text = offer_text([attempt], leader=b"me", count=2, followers=[b"two", b"one", b"late", b"none"], now_ms=1000)
    seats = {
        b"one": seat_text(3, 1000),
        b"two": seat_text(1, 2000),
        b"late": seat_text(5, 999),
        b"x": seat_text(7, 2000),
    }
    bill = bill_of({BILL: text} | seats)
    assert bill is not None
    assert ((attempt,), ((b"me", 2), (b"one", 3), (b"two", 1))) == (bill.attempts, bill.shares)
    assert [None, None] == [bill_of(seats), bill_of({BILL: b"x"})]


def test_answers_that_are_no_hash_have_no_fields() -> None:
    """Redis says something else: nothing is read of it."""
    answers: list[Answer] = [None, -1, [1, [b"a"]]]
    assert [({}, 0)] * 3 == [opened_fields(SEALS, b"key", answer) for answer in answers]

"""Places at a deployment: who waits, who goes elsewhere, who is refused, and in which order places are given."""

from __future__ import annotations

import asyncio
import time

import pytest

from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.routing import Concurrency, Priority
from controlplane.contract.snapshot import BreakerPolicy, CachePolicy, TenantPolicy
from proxy.call import Reply
from proxy.load import Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate
from proxy.transports.attempt import Attempt
from proxy.transports.concurrency import ConcurrencyTransport
from tests.proxy.fakes import (
    Received,
    Script,
    Wire,
    World,
    answer,
    completion,
    fails,
    replies,
    sends_then_hangs,
    until,
    whole_stream,
)
from tests.proxy.state_fakes import DEPLOYMENT, UPSTREAM, make_call, settle_down

GOOD = replies(answer(completion()))
HIGH = TenantPolicy(id="acme", cache=CachePolicy(enabled=False), priority_max=Priority.HIGH)


class Doors:
    """An upstream that answers one call for each time it is told to."""

    def __init__(self, data: bytes = answer(completion())) -> None:
        self._data = data
        self._permits = asyncio.Semaphore(0)
        self.served: list[str] = []

    async def script(self, wire: Wire, request: Received) -> None:
        """Waits for its turn."""
        await self._permits.acquire()
        self.served.append(str(request.document["user"]))
        await wire.send(self._data)

    def open(self, calls: int = 1) -> None:
        """Lets so many calls be answered."""
        for _ in range(calls):
            self._permits.release()


def limited(
    world: World, policy: dict[str, object] | None = None, *, places: int = 1, tenant: TenantPolicy | None = None
) -> None:
    """One route whose deployments have so many places each."""
    concurrency = {"max": places, "adaptive": False} | (policy or {})
    world.apply(deployment={"concurrency": concurrency}, tenant=tenant or HIGH)


def asks(world: World, name: str, priority: str = "", **headers: str) -> asyncio.Task[tuple[str, int, str]]:
    """One call in the background: who it is, status and deployment."""

    async def ask() -> tuple[str, int, str]:
        sent = ({"x-heph-priority": priority} if priority else {}) | headers
        response = await world.chat(headers=sent, user=name)
        return name, response.status_code, response.headers.get("x-heph-deployment", "")

    return asyncio.create_task(ask())


async def waiting(world: World, calls: int) -> None:
    """Until so many calls wait for a place."""
    text = ""
    while f'heph_proxy_places_waiting{{worker="0"}} {calls}.0' not in text:
        text = (await world.client.get("/metrics")).text


async def test_no_more_calls_at_once_than_places(world: World) -> None:
    """The others wait, and all are served in the end."""
    doors = Doors()
    upstream = await world.upstream(doors.script)
    limited(world, places=2)
    calls = [asks(world, f"c{n}") for n in range(6)]
    await waiting(world, 4)
    assert 2 == len(upstream.received)
    doors.open(6)
    assert [200] * 6 == [status for _, status, _ in await asyncio.gather(*calls)]


async def test_places_are_given_by_priority_and_then_by_arrival(world: World) -> None:
    """A high one overtakes those that wait; equals keep their order."""
    doors = Doors()
    await world.upstream(doors.script)
    limited(world)
    calls = [asks(world, "first")]
    await until(lambda: world.upstreams[0].received)
    for n, (name, priority) in enumerate(
        [("l1", "low"), ("n1", "normal"), ("n2", ""), ("h1", "high"), ("x1", "nonsense")]
    ):
        calls.append(asks(world, name, priority))
        await waiting(world, n + 1)
    for _ in calls:
        doors.open()
    await asyncio.gather(*calls)
    assert ["first", "h1", "n1", "n2", "x1", "l1"] == doors.served


async def test_a_label_grants_no_more_than_the_tenant_has(world: World) -> None:
    """`high` is normal where the tenant's best is normal."""
    doors = Doors()
    await world.upstream(doors.script)
    limited(world, tenant=TenantPolicy(id="acme", cache=CachePolicy(enabled=False)))
    calls = [asks(world, "first")]
    await until(lambda: world.upstreams[0].received)
    for n, (name, priority) in enumerate([("n1", "normal"), ("h1", "high")]):
        calls.append(asks(world, name, priority))
        await waiting(world, n + 1)
    doors.open(3)
    await asyncio.gather(*calls)
    assert ["first", "n1", "h1"] == doors.served


async def test_the_lowest_priority_is_refused_first(world: World) -> None:
    """A low one may fill half of the queue, and leaves it for a better one; 503 with `retry-after`, and counted."""
    doors = Doors()
    await world.upstream(doors.script)
    limited(world, {"queue_max": 2})
    calls = [asks(world, "first")]
    await until(lambda: world.upstreams[0].received)
    low = asks(world, "l1", "low")
    await waiting(world, 1)
    response = await world.chat(headers={"x-heph-priority": "low"}, user="l2")
    assert (503, "overloaded", "true", "gateway") == (
        response.status_code,
        response.json()["error"]["code"],
        response.headers["x-should-retry"],
        response.headers["x-heph-error-source"],
    )
    assert int(response.headers["retry-after"]) >= 1
    calls.append(asks(world, "n1"))
    await waiting(world, 2)
    calls.append(asks(world, "n2"))
    assert ("l1", 503, "") == await low  # it has made room
    assert ("n3", 503, "") == await asks(world, "n3")
    doors.open(3)
    assert [200] * 3 == [status for _, status, _ in await asyncio.gather(*calls)]
    text = (await world.client.get("/metrics")).text
    assert 'heph_proxy_shed_calls_total{priority="low",worker="0"} 2.0' in text
    assert 'heph_proxy_shed_calls_total{priority="normal",worker="0"} 1.0' in text
    assert {Outcome.OK, Outcome.UNAVAILABLE} == {record.outcome for record in world.records()}
    assert not any(record.attempts for record in world.records() if record.outcome is Outcome.UNAVAILABLE)


async def test_who_finds_all_places_taken_goes_elsewhere_first(world: World) -> None:
    """Another deployment with room is better than a queue; when there is none, the first one's queue it is."""
    doors, others = Doors(), Doors()
    await world.upstream(doors.script)
    await world.upstream(others.script)
    limited(world)
    calls = [asks(world, "a")]
    await until(lambda: world.upstreams[0].received)
    calls.append(asks(world, "b"))
    await until(lambda: world.upstreams[1].received)
    calls.append(asks(world, "c"))
    await waiting(world, 1)
    others.open(2)
    doors.open(2)
    served = {name: deployment for name, _, deployment in await asyncio.gather(*calls)}
    assert ("u0/m", "u1/m") == (served["a"], served["b"])


async def test_who_is_busy_is_waited_for_where_the_others_have_failed(world: World) -> None:
    """Whichever of them comes first: a call is not lost to a sick deployment while a healthy one is merely full."""
    doors = Doors()
    await world.upstream(doors.script)
    sick = await world.upstream(fails(500))
    limited(world)
    calls = [asks(world, "a")]
    await until(lambda: world.upstreams[0].received)
    calls.append(asks(world, "b"))
    await waiting(world, 1)
    assert 1 == len(sick.received)
    doors.open(2)
    assert [200, 200] == [status for _, status, _ in await asyncio.gather(*calls)]
    assert 1 == len(sick.received)


async def test_a_rule_that_ends_a_call_ends_it_after_a_wait_too(world: World) -> None:
    """Who was waited for and failed in a way after which nothing is to be tried is the last: nobody is asked once more."""
    doors = Doors()

    async def then_fails(wire: Wire, request: Received) -> None:
        await (doors.script if len(busy.received) == 1 else fails(503))(wire, request)

    busy = await world.upstream(then_fails)
    sick = await world.upstream(fails(429))
    rules = {"status_429": {"on": "any"}, "status_5xx": {"on": "none"}}
    world.apply(
        deployment={"concurrency": {"max": 1, "adaptive": False}},
        tenant=HIGH,
        route={"attempts_max": 4, "retries": rules},
    )
    calls = [asks(world, "a")]
    await until(lambda: busy.received)
    calls.append(asks(world, "b"))
    await waiting(world, 1)
    doors.open(1)
    assert [200, 502] == [status for _, status, _ in await asyncio.gather(*calls)]
    assert (2, 1) == (len(busy.received), len(sick.received))


@pytest.mark.parametrize(
    ("policy", "headers", "status", "code"),
    [({"queue_s": 0.05}, {}, 503, "overloaded"), ({}, {"x-heph-timeout-ms": "50"}, 504, "timed_out")],
)
async def test_nobody_waits_past_the_queues_time_or_the_deadline(
    world: World, policy: dict[str, object], headers: dict[str, str], status: int, code: str
) -> None:
    """Refused while it waits, and without a try on its record."""
    await world.upstream(sends_then_hangs(b""))
    limited(world, policy)
    first = asks(world, "first")
    await until(lambda: world.upstreams[0].received)
    response = await world.chat(headers=headers)
    assert (status, code) == (response.status_code, response.json()["error"]["code"])
    assert () == world.records()[0].attempts
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize(
    "script",
    [GOOD, fails(500), replies(whole_stream("Hi")), sends_then_hangs(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")],
)
async def test_a_place_is_given_back_however_the_try_ends(world: World, script: Script) -> None:
    """Answered, failed, streamed, abandoned: all places are free in the end."""
    await world.upstream(script)
    world.apply(
        deployment={"concurrency": {"max": 2, "adaptive": False}},
        route={"attempts_max": 1},
        breaker=BreakerPolicy(requests_min=1_000, failures_in_row=1_000),
        upstream={"idle_timeout_s": 0.05},
    )
    await asyncio.gather(*(world.chat(stream=n % 2 == 1) for n in range(6)))
    await world.until_idle()
    assert 0 == world.worker.loads.places_taken()


async def test_a_client_that_leaves_the_queue_takes_no_place(world: World) -> None:
    """The next in line gets it."""
    doors = Doors()
    await world.upstream(doors.script)
    limited(world)
    first = asks(world, "first")
    await until(lambda: world.upstreams[0].received)
    gone, stays = asks(world, "gone"), asks(world, "stays")
    await waiting(world, 2)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await waiting(world, 1)
    doors.open(2)
    assert [200, 200] == [status for _, status, _ in await asyncio.gather(first, stays)]
    await world.until_idle()
    assert 0 == world.worker.loads.places_taken()


async def test_an_open_breaker_takes_no_place(world: World) -> None:
    """A call that is not let through gives its place back."""
    await world.upstream(fails(500))
    world.apply(
        deployment={"concurrency": {"max": 2, "adaptive": False}},
        route={"attempts_max": 1},
        breaker=BreakerPolicy(failures_in_row=1, open_s=60.0),
    )
    assert [502, 503, 503, 503] == [(await world.chat()).status_code for _ in range(4)]
    assert 0 == world.worker.loads.places_taken()


class Stays:
    """Tries that last until the test ends them."""

    def __init__(self) -> None:
        self.began: list[Attempt] = []
        self.gate = asyncio.Event()

    async def send(self, attempt: Attempt) -> Reply:
        """One try."""
        self.began.append(attempt)
        await self.gate.wait()
        attempt.finish(AttemptError.NONE)
        return Reply(200, [])

    async def aclose(self) -> None:
        """Nothing to close."""


async def test_the_place_of_one_that_left_a_full_queue_is_free_at_once() -> None:
    """A call that comes in the turn in which the worst one's client leaves takes its place in the queue, whatever its own rank."""
    for rank in ("normal", "low"):
        inner, loads, metrics = Stays(), Loads(), ProxyMetrics("0")
        concurrency = ConcurrencyTransport(inner, loads, metrics)
        loads.configure({DEPLOYMENT.id: Concurrency(max=1, adaptive=False, queue_max=1)})

        def tries(
            priority: str, concurrency: ConcurrencyTransport = concurrency, metrics: ProxyMetrics = metrics
        ) -> asyncio.Task[Reply]:
            call = make_call()
            call.priority, call.deadline = priority, time.monotonic() + 60.0
            candidate = Candidate(DEPLOYMENT, UPSTREAM, None, measured=True)
            attempt = Attempt(call, candidate, metrics=metrics, tokens_per_s=100.0)
            attempt.patient = True
            return asyncio.create_task(concurrency.send(attempt))

        first, left = tries("normal"), tries("low")
        await settle_down()
        assert 1 == concurrency.waiting
        comes = tries(rank)
        left.cancel()
        await settle_down()
        assert (1, True, False) == (concurrency.waiting, left.cancelled(), comes.done())
        inner.gate.set()
        assert [200, 200] == [(await one).status for one in (first, comes)]
        assert (0, 2, 0.0) == (concurrency.waiting, len(inner.began), loads.places_taken())

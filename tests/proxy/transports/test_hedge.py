"""Hedged calls over real sockets: one answer, two tries on the record, and only where a second one is worth it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controlplane.contract.pricing import Price
from controlplane.contract.records import AttemptError, CostState, Outcome
from controlplane.contract.snapshot import BreakerPolicy, Budget, CachePolicy, TenantPolicy, Window
from tests.proxy.fakes import (
    STREAM_HEAD,
    Received,
    Script,
    Wire,
    World,
    answer,
    chunk,
    completion,
    event,
    fails,
    replies,
    sends_then_hangs,
    until,
    whole_stream,
)

GOOD = replies(answer(completion()))
BEGUN = STREAM_HEAD + chunk(event())  # a role, no content yet
RELAXED = BreakerPolicy(requests_min=1_000, failures_in_row=1_000)


def gated(gate: asyncio.Event, data: bytes) -> Script:
    """A script that answers when the gate opens."""

    async def script(wire: Wire, _: Received) -> None:
        await gate.wait()
        await wire.send(data)

    return script


async def hedged(world: World, *scripts: Script, **hedge: object) -> None:
    """Two deployments and a route that hedges, its budget ample unless the test says otherwise."""
    for script in scripts:
        await world.upstream(script)
    world.apply(route={"hedge": {"after_ms": 30, "budget_ratio": 1.0} | hedge}, breaker=RELAXED)


async def metric(world: World, name: str) -> float:
    """A counter of hedges by result."""
    text = (await world.client.get("/metrics")).text
    found = [line for line in text.splitlines() if line.startswith(f'heph_proxy_hedges_total{{result="{name}"')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_try_answers_where_the_first_is_silent(world: World, stream: bool) -> None:
    """One reply, two tries: the loser is cancelled at its upstream, both are on the record, and both are paid."""
    good = replies(whole_stream("Hi")) if stream else GOOD
    await hedged(world, sends_then_hangs(BEGUN if stream else b""), good)
    response = await world.chat(stream=stream)
    assert (200, "u1/m", "2") == (
        response.status_code,
        response.headers["x-heph-deployment"],
        response.headers["x-heph-attempts"],
    )
    assert response.text.count('"role":"assistant"') == 1 if stream else response.json()["id"]
    async with asyncio.timeout(5):
        await world.upstreams[0].client_left.wait()
    (record,) = world.records()
    by_name = {attempt.deployment: attempt for attempt in record.attempts}
    assert {"u0/m": AttemptError.CANCELLED, "u1/m": AttemptError.NONE} == {n: a.error for n, a in by_name.items()}
    assert (2, Outcome.OK) == (len(record.attempts), record.outcome)
    assert CostState.ESTIMATED is by_name["u0/m"].cost_state
    assert sum(attempt.cost_nanousd for attempt in record.attempts) == record.cost_nanousd
    assert 1.0 == await metric(world, "second")


async def test_a_quick_first_answer_makes_no_second_try(world: World) -> None:
    """Nothing is asked twice."""
    await hedged(world, GOOD, GOOD, after_ms=60_000)
    assert "u0/m" == (await world.chat()).headers["x-heph-deployment"]
    assert 0 == len(world.upstreams[1].received)


async def test_a_race_is_two_of_the_routes_tries(world: World) -> None:
    """With `attempts_max: 1` nobody is asked twice."""
    await world.upstream(sends_then_hangs(b""))
    await world.upstream(GOOD)
    world.apply(
        route={"attempts_max": 1, "hedge": {"after_ms": 1, "budget_ratio": 1.0}}, upstream={"first_byte_timeout_s": 0.1}
    )
    assert 504 == (await world.chat()).status_code
    assert 0 == len(world.upstreams[1].received)


async def test_the_first_may_still_win(world: World) -> None:
    """Whose content comes first, whichever began first."""
    gate = asyncio.Event()
    await hedged(world, gated(gate, answer(completion("late"))), sends_then_hangs(b""))
    asking = asyncio.create_task(world.chat())
    await until(lambda: world.upstreams[1].received)
    gate.set()
    response = await asking
    assert ("u0/m", "late") == (
        response.headers["x-heph-deployment"],
        response.json()["choices"][0]["message"]["content"],
    )
    assert (2, 1.0) == (len(world.records()[0].attempts), await metric(world, "first"))


async def test_a_second_try_that_fails_does_not_end_the_first(world: World) -> None:
    """Nor is the one that failed asked again."""
    gate = asyncio.Event()
    await hedged(world, gated(gate, answer(completion())), fails(500))
    asking = asyncio.create_task(world.chat())
    await until(lambda: world.upstreams[1].received)
    gate.set()
    assert "u0/m" == (await asking).headers["x-heph-deployment"]
    assert 1 == len(world.upstreams[1].received)


async def test_when_both_fail_both_are_recorded_and_the_route_goes_on(world: World) -> None:
    """A race is two tries of the route's, and what is left may still be tried."""
    gate = asyncio.Event()
    first = answer(b'{"error":{"message":"no","code":"server_error"}}', 500)
    await hedged(world, gated(gate, first), fails(503), GOOD)
    asking = asyncio.create_task(world.chat())
    await until(lambda: world.upstreams[1].received)
    gate.set()
    response = await asking
    assert (200, "u2/m", "3") == (
        response.status_code,
        response.headers["x-heph-deployment"],
        response.headers["x-heph-attempts"],
    )


async def test_the_second_of_two_that_fails_last_is_not_asked_at_once_again(world: World) -> None:
    """Whichever fails last, each failure is its own deployment's: the next try goes to one that has not failed."""
    gates = asyncio.Event(), asyncio.Event()
    no = b'{"error":{"message":"no","code":"server_error"}}'
    await hedged(world, gated(gates[0], answer(no, 500)), gated(gates[1], answer(no, 503, "retry-after: 9")), GOOD)
    asking = asyncio.create_task(world.chat())
    await until(lambda: world.upstreams[1].received)
    gates[0].set()
    await until(lambda: "u0/m" in {status.deployment for status in world.worker.breaker.statuses() if status.calls})
    gates[1].set()
    assert "u2/m" == (await asking).headers["x-heph-deployment"]
    assert [1, 1, 1] == [len(upstream.received) for upstream in world.upstreams]
    assert 200 == (await world.chat()).status_code
    assert [2, 1, 2] == [len(upstream.received) for upstream in world.upstreams], "who asked for rest has it"


async def test_a_race_that_both_have_lost_takes_nothing_from_the_retry_budget(tmp_path: Path) -> None:
    """Who has failed in a race is passed over, not asked again, so one that was never asked still is."""
    world = await World(tmp_path).start(retry_ratio=0.0, retry_min_per_s=0.0)
    try:
        gate = asyncio.Event()
        no = answer(b'{"error":{"message":"no","code":"server_error"}}', 500)
        await hedged(world, gated(gate, no), fails(503), GOOD)
        asking = asyncio.create_task(world.chat())
        await until(lambda: world.upstreams[1].received)
        gate.set()
        assert "u2/m" == (await asking).headers["x-heph-deployment"]
    finally:
        await world.stop()


async def test_hedges_stay_within_their_share(world: World) -> None:
    """However many calls are late: at most the ratio of the calls is asked twice, and the rest is counted."""
    gate = asyncio.Event()
    await hedged(world, gated(gate, answer(completion())), GOOD, budget_ratio=0.25)
    asking = [asyncio.create_task(world.chat()) for _ in range(40)]
    await until(lambda: len(world.upstreams[0].received) == 40)
    await until(lambda: len(world.upstreams[1].received) == 10)
    text = ""
    while 'bound="hedge_budget_ratio"' not in text:
        text = (await world.client.get("/metrics")).text
    gate.set()
    assert [200] * 40 == [response.status_code for response in await asyncio.gather(*asking)]
    assert 10 == len(world.upstreams[1].received)


@pytest.mark.parametrize(
    ("hedge", "result"),
    [({"extra_nanousd_max": 10}, "too_dear"), ({"second_nanousd": 1}, "not_worth_it")],
)
async def test_a_second_try_must_be_worth_its_price(world: World, hedge: dict[str, object], result: str) -> None:
    """Dearer than allowed, or dearer than the time it saves: the call waits for its first try."""
    gate = asyncio.Event()
    await hedged(world, gated(gate, answer(completion())), GOOD, **hedge)
    asking = asyncio.create_task(world.chat())
    seen = 0.0
    while not seen:
        seen = await metric(world, result)
    gate.set()
    assert "u0/m" == (await asking).headers["x-heph-deployment"]
    assert 0 == len(world.upstreams[1].received)


@pytest.mark.parametrize(("extra_nanousd_max", "asked"), [(89, 0), (90, 1)])
async def test_a_second_picture_costs_what_a_picture_costs(world: World, extra_nanousd_max: int, asked: int) -> None:
    """What is not billed by tokens is not free, and may be too dear to be drawn twice."""
    gate = asyncio.Event()
    drawn = answer(b'{"created":1,"data":[{"url":"http://x"}]}')
    for script in (gated(gate, drawn), replies(drawn)):
        await world.upstream(script)
    price = Price(input=0, output=0, picture=90, version="p1")
    hedge = {"after_ms": 30, "budget_ratio": 1.0, "extra_nanousd_max": extra_nanousd_max}
    world.apply(route={"hedge": hedge}, breaker=RELAXED, price=price)
    asking = asyncio.create_task(
        world.client.post("/v1/images/generations", json={"model": "gpt", "prompt": "a cat"})
    )  # fmt: skip
    seen = 0.0
    while not seen:
        seen = await metric(world, "second" if asked else "too_dear")
    gate.set()
    assert 200 == (await asking).status_code
    assert asked == len(world.upstreams[1].received)


async def test_a_second_try_is_made_where_the_time_is_worth_more_than_its_price(world: World) -> None:
    """What is gained counts, at what a second is worth: nothing is gained where the other deployment usually takes longer still."""
    await hedged(world, sends_then_hangs(b""), GOOD, second_nanousd=10**12)
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]
    gate = asyncio.Event()
    world.upstreams[0].scripts = [gated(gate, answer(completion()))]
    for _ in range(2):
        world.worker.loads.of("u1/m").sketch.observe(20.0)
    asking = asyncio.create_task(world.chat())
    seen = 0.0
    while not seen:
        seen = await metric(world, "not_worth_it")
    gate.set()
    assert "u0/m" == (await asking).headers["x-heph-deployment"]
    assert 1 == len(world.upstreams[1].received)


async def test_the_percentile_is_learned(world: World) -> None:
    """Without enough answers nobody knows when a call is late; with them the next silent one is hedged."""
    good = [GOOD] * 30
    await world.upstream(*good, sends_then_hangs(b""))
    await world.upstream(GOOD)
    world.apply(route={"hedge": {"after_percentile": 95.0, "budget_ratio": 1.0}}, breaker=RELAXED)
    served = {(await world.chat()).headers["x-heph-deployment"] for _ in range(30)}
    assert "u0/m" in served
    assert "u1/m" == (await world.chat()).headers["x-heph-deployment"]


async def test_a_client_that_leaves_ends_both(world: World) -> None:
    """Neither upstream goes on, and the record has both tries as cancelled."""
    await hedged(world, sends_then_hangs(b""), sends_then_hangs(b""))
    asking = asyncio.create_task(world.chat())
    await until(lambda: world.upstreams[1].received)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(5):
        for upstream in world.upstreams:
            await upstream.client_left.wait()
    await world.until_idle()
    (record,) = world.records()
    assert [AttemptError.CANCELLED] * 2 == [attempt.error for attempt in record.attempts]
    assert Outcome.CLIENT_CLOSED == record.outcome


async def test_a_budget_must_hold_both_tries(world: World) -> None:
    """A hedged route reserves twice the worst case, so that no budget is overspent by a race."""
    await world.upstream(GOOD)
    await world.upstream(GOOD)
    worst_nanousd = 2_000 * 100 + 1_000 * 120  # a hundred tokens out, the bytes of the request in
    budget = Budget(id="b", window=Window.TOTAL, nanousd=worst_nanousd)
    tenant = TenantPolicy(id="acme", budgets=(budget,), cache=CachePolicy(enabled=False))
    world.apply(tenant=tenant)
    assert 200 == (await world.chat(max_tokens=100)).status_code
    world.apply(tenant=tenant, route={"hedge": {"after_ms": 1_000}})
    assert 429 == (await world.chat(max_tokens=100)).status_code

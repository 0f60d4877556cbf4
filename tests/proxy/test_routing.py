"""Routing end to end through a worker: what the balancer decides is what calls do, and a new snapshot keeps what was learned."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec

from controlplane.contract.snapshot import BreakerPolicy, CachePolicy, TenantPolicy
from tests.proxy.fakes import Received, Wire, World, answer, completion, fails, replies, until

GOOD = replies(answer(completion()))
RELAXED = BreakerPolicy(requests_min=1_000, failures_in_row=1_000)
SAME_ORDER: dict[str, object] = {"order": 0}


async def served(world: World, **headers: str) -> str:
    """The deployment that answers a call with these headers."""
    return (await world.chat(headers=headers)).headers["x-heph-deployment"]


async def test_a_conversation_moves_when_it_must_and_then_stays(world: World) -> None:
    """Its deployment fails once: the other one has its prompt cache now, so there it stays when the first is well again."""
    for _ in range(2):
        await world.upstream(GOOD)
    world.apply(route={"affinity": {"by": "session"}}, deployment=SAME_ORDER, breaker=RELAXED)
    session = {"x-heph-session": "s1"}
    home = await served(world, **session)
    assert {home} == {await served(world, **session) for _ in range(10)}
    first = world.upstreams[int(home[1])]
    first.scripts = [fails(500)]
    other = await served(world, **session)
    assert other != home
    first.scripts = [GOOD]
    assert {other} == {await served(world, **session) for _ in range(10)}
    assert 1.0 == next(
        float(line.rpartition(" ")[2])
        for line in (await world.client.get("/metrics")).text.splitlines()
        if line.startswith("heph_proxy_affinity_conversations{")
    )


async def test_an_answer_from_the_cache_moves_no_conversation(world: World) -> None:
    """Only an upstream's own answer warms its prompt cache."""
    await world.upstream(GOOD)
    tenant = TenantPolicy(id="acme", cache=CachePolicy(enabled=True))
    world.apply(route={"affinity": {"by": "session"}}, tenant=tenant)
    await world.chat(headers={"x-heph-session": "s1"})
    await world.chat(headers={"x-heph-session": "s2"})
    assert 'heph_proxy_affinity_conversations{worker="0"} 1.0' in (await world.client.get("/metrics")).text


async def test_a_canary_serves_its_users_and_falls_back_for_them(world: World) -> None:
    """Each user on one side; when the canary fails its users are served by the others."""
    for _ in range(2):
        await world.upstream(GOOD)
    canary = {"deployment": "u1/m", "share": 0.3, "by": "user"}
    world.apply(route={"canary": canary}, breaker=RELAXED)
    sides = {f"user-{n}": await served(world, **{"x-heph-user": f"user-{n}"}) for n in range(60)}
    assert 6 <= Counter(sides.values())["u1/m"] <= 32
    assert sides == {name: await served(world, **{"x-heph-user": name}) for name in sides}
    world.upstreams[1].scripts = [fails(500)]
    assert {"u0/m"} == {await served(world, **{"x-heph-user": name}) for name in sides}


async def test_lowest_latency_leaves_a_slow_deployment(world: World) -> None:
    """What a worker has seen itself decides: the one that hangs gets no more calls while it does."""
    gate = asyncio.Event()

    async def slow(wire: Wire, _: Received) -> None:
        await gate.wait()
        await wire.send(answer(completion()))

    await world.upstream(slow)
    await world.upstream(GOOD)
    world.apply(route={"strategy": "lowest_latency"}, deployment=SAME_ORDER, breaker=RELAXED)
    waiting = []
    while not world.upstreams[0].received:
        waiting.append(asyncio.create_task(world.chat()))
        await until(lambda: sum(len(one.received) for one in world.upstreams) >= len(waiting))
    gate.set()
    await asyncio.gather(*waiting)
    world.worker.loads.of("u0/m").late(5.0)
    assert {"u1/m"} == {await served(world) for _ in range(20)}


async def test_a_new_snapshot_keeps_places_and_wakes_who_waits(world: World) -> None:
    """Calls in flight still count, and a second place is given to the call that waits for it at once."""
    gate = asyncio.Event()

    async def gated(wire: Wire, _: Received) -> None:
        await gate.wait()
        await wire.send(answer(completion()))

    upstream = await world.upstream(gated)
    world.apply(deployment={"concurrency": {"max": 1, "adaptive": False}})
    calls = [asyncio.create_task(world.chat()) for _ in range(2)]
    text = ""
    while 'heph_proxy_places_waiting{worker="0"} 1.0' not in text:
        text = (await world.client.get("/metrics")).text
    world.apply(deployment={"concurrency": {"max": 2, "adaptive": False}})
    await until(lambda: len(upstream.received) == 2)
    assert 2 == world.worker.loads.places_taken()
    gate.set()
    assert [200, 200] == [response.status_code for response in await asyncio.gather(*calls)]


async def test_a_breaker_survives_a_new_snapshot(world: World) -> None:
    """Its state is kept by the deployment's id; it is not closed by a reload."""
    await world.upstream(fails(500))
    policy = BreakerPolicy(failures_in_row=2, open_s=60.0)
    world.apply(route={"attempts_max": 1}, breaker=policy)
    assert [502, 502, 503] == [(await world.chat()).status_code for _ in range(3)]
    world.apply(route={"attempts_max": 2}, breaker=policy)
    assert 503 == (await world.chat()).status_code


async def test_what_one_language_cannot_say_another_may(world: World) -> None:
    """A request that an upstream's language cannot express goes on to the next, and says nothing about the first one's health."""
    for _ in range(2):
        await world.upstream(GOOD)
    world.apply()
    assert world.worker.app.runtime is not None
    snapshot = world.worker.app.runtime.snapshot
    first, second = snapshot.upstreams
    mixed = (msgspec.structs.replace(first, dialect="anthropic"), second)
    world.worker.apply(msgspec.structs.replace(snapshot, version=2, upstreams=mixed))
    response = await world.chat(n=2)
    assert (200, "u1/m") == (response.status_code, response.headers["x-heph-deployment"])
    assert [] == world.upstreams[0].received
    assert {"u0/m": 0, "u1/m": 1} == {status.deployment: status.calls for status in world.worker.status().breakers}


async def test_readiness_names_what_is_sick_and_stays(world: World) -> None:
    """A worker whose upstream is down is as good as its siblings: 200, with the deployments whose breaker is not closed."""
    await world.upstream(fails(500))
    policy = BreakerPolicy(requests_min=1_000, failures_in_row=1)
    world.apply(route={"attempts_max": 1}, breaker=policy)
    assert {"status": "ready"} == (await world.client.get("/readyz")).json()
    await world.chat()
    ready = await world.client.get("/readyz")
    assert (200, {"status": "ready", "sick_deployments": ["u0/m"]}) == (ready.status_code, ready.json())

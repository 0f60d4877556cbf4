"""Copies of calls over real sockets: nobody waits for them, nobody's budget pays them, and they close the breakers of idle deployments."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.contract.records import CallRecord, Outcome
from controlplane.contract.snapshot import BreakerPolicy, Budget, CachePolicy, TenantPolicy, Window
from tests.proxy.fakes import Script, World, answer, completion, fails, replies, sends_then_hangs, until, whole_stream

GOOD = replies(answer(completion()))
QUICK = BreakerPolicy(failures_in_row=1, open_s=0.01, probes=2)


async def shadowed(world: World, *scripts: Script, ratio: float = 1.0, tenant: TenantPolicy | None = None) -> None:
    """A route with one deployment and a shadow of another model."""
    for script in scripts:
        await world.upstream(script)
    world.apply(route={"shadow": {"deployment": "u1/m", "ratio": ratio}}, others={"new": (1,)}, tenant=tenant)


async def copies(world: World, expected: int) -> list[CallRecord]:
    """The records of copies, when all of them have ended."""
    await until(lambda: world.worker.shadow.sent_total >= expected and not world.worker.shadow.running)
    return [record for record in world.records() if "heph-shadow" in record.tags]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_shadow_gets_what_was_answered(world: World, stream: bool) -> None:
    """The same body under the shadow's own model name; a record without a tenant that names the original, and what it cost."""
    script = replies(whole_stream("Hi")) if stream else GOOD
    await shadowed(world, script, script)
    response = await world.chat(stream=stream, headers={"idempotency-key": "once"})
    assert "u0/m" == response.headers["x-heph-deployment"]
    (copy,) = await copies(world, 1)
    (original,) = [record for record in world.records() if not record.tags]
    assert ("copy", original.call_id) == (copy.tags["heph-shadow"], copy.tags["heph-shadow-of"])
    assert ("", "hephaestus", "u1/m") == (copy.tenant, copy.agent, copy.deployment)
    assert (Outcome.OK, True) == (copy.outcome, copy.cost_nanousd > 0)
    first, second = (upstream.received[0] for upstream in world.upstreams)
    assert first.document["messages"] == second.document["messages"]
    assert ("once", None) == (first.headers.get("idempotency-key"), second.headers.get("idempotency-key"))


async def test_a_copy_is_in_nobodys_budget(world: World) -> None:
    """The tenant pays what it was answered with, to the nano-USD."""
    budget = Budget(id="b", window=Window.TOTAL, nanousd=10**12)
    tenant = TenantPolicy(id="acme", budgets=(budget,), cache=CachePolicy(enabled=False))
    await shadowed(world, GOOD, GOOD, tenant=tenant)
    await world.chat()
    (copy,) = await copies(world, 1)
    (original,) = [record for record in world.records() if not record.tags]
    (status,) = world.worker.status().budgets
    assert original.cost_nanousd == status.settled_nanousd
    assert original.cost_nanousd + copy.cost_nanousd == world.worker.ledger.nanousd


@pytest.mark.parametrize("ratio", [0.0, 0.5])
async def test_the_ratio_is_a_share_of_the_calls(world: World, ratio: float) -> None:
    """None, or about half of them."""
    await shadowed(world, GOOD, GOOD, ratio=ratio)
    for _ in range(60):
        await world.chat()
    await until(lambda: not world.worker.shadow.running)
    assert ratio * 60 == pytest.approx(world.worker.shadow.sent_total, abs=ratio * 44)


@pytest.mark.parametrize("script", [fails(500), sends_then_hangs(b"")])
async def test_a_shadow_that_fails_or_hangs_is_nobodys_trouble(world: World, script: Script) -> None:
    """The client has its answer before the copy is sent; at the end the worker stops all the same."""
    await shadowed(world, GOOD, script)
    assert [200] * 3 == [(await world.chat()).status_code for _ in range(3)]


async def test_copies_at_once_are_bounded(world: World) -> None:
    """More are left out and counted; nothing queues."""
    await shadowed(world, GOOD, sends_then_hangs(b""))
    for _ in range(world.settings.shadow_calls_max + 5):
        await world.chat()
    assert world.settings.shadow_calls_max == world.worker.shadow.running
    assert 'bound="shadow_calls_max"' in (await world.client.get("/metrics")).text


async def test_a_stored_answer_is_not_copied(world: World) -> None:
    """Only what was asked of an upstream is asked of the shadow too."""
    await shadowed(world, GOOD, GOOD, tenant=TenantPolicy(id="acme", cache=CachePolicy(ttl_s=100)))
    for _ in range(3):
        assert 200 == (await world.chat()).status_code
    assert 1 == len(await copies(world, 1))
    assert ["hit", "hit"] == [record.cache for record in world.records() if not record.tags][1:]


async def test_a_call_that_failed_is_not_copied(world: World) -> None:
    """Only what was answered."""
    await shadowed(world, fails(500), GOOD)
    await world.chat()
    assert 0 == len(world.upstreams[1].received)


async def test_an_idle_deployment_does_not_stay_sick(world: World) -> None:
    """A failover target that failed once and gets no calls is probed by copies, and its breaker closes without costing a call."""
    for script in (GOOD, fails(500), GOOD):
        await world.upstream(script)
    world.apply(route={"attempts_max": 2}, breaker=QUICK)
    world.upstreams[0].scripts = [fails(503)]
    world.upstreams[1].scripts = [fails(500)]
    assert 502 == (await world.chat()).status_code
    world.upstreams[0].scripts = [GOOD]
    world.upstreams[1].scripts = [GOOD]
    served = set()
    while world.worker.breaker.sick:
        response = await world.chat()
        served.add((response.status_code, response.headers.get("x-heph-deployment")))
        await asyncio.sleep(0)
    assert {(200, "u0/m"), (200, "u2/m")} >= served
    assert {"closed"} == {status.state for status in world.worker.status().breakers}
    probes = [record for record in world.records() if record.tags.get("heph-shadow") == "probe"]
    assert {"u1/m"} == {record.deployment for record in probes if record.outcome is Outcome.OK} - {"u0/m"}
    assert all(attempt.probe for record in probes for attempt in record.attempts)


async def test_idle_probes_can_be_switched_off(world: World) -> None:
    """`breaker.probe_idle: false`: then only calls probe."""
    for script in (fails(503), fails(500)):
        await world.upstream(script)
    world.apply(breaker=BreakerPolicy(failures_in_row=1, open_s=0.01, probe_idle=False), route={"attempts_max": 2})
    await world.chat()
    world.upstreams[0].scripts = [GOOD]
    world.upstreams[1].scripts = [GOOD]
    while "u0/m" in world.worker.breaker.sick:
        await world.chat()
    for _ in range(5):
        assert 200 == (await world.chat()).status_code
    assert {"u1/m"} == world.worker.breaker.sick

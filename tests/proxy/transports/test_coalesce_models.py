"""Flights of calls whose keys may use different models: nobody gets what its own call could not have got, nor less than it could."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import BreakerPolicy, CachePolicy, CoalesceCost, KeyEntry, TenantPolicy
from tests.proxy.fakes import (
    KEY,
    PEPPER,
    Received,
    Wire,
    World,
    answer,
    completion,
    fails,
    replies,
    until,
    whole_stream,
)

OTHER_KEY = "sk-heph-other-key"
SPLIT = TenantPolicy("acme", cache=CachePolicy(coalesce_cost=CoalesceCost.SPLIT))


def _keys(*models: tuple[str, ...] | None) -> tuple[KeyEntry, ...]:
    return tuple(
        KeyEntry(hash=hash_key(key.encode(), PEPPER), id=key, tenant="acme", models=allowed)
        for key, allowed in zip((KEY, OTHER_KEY), models, strict=True)
    )


async def _ask_both(world: World, *models: tuple[str, ...] | None, stream: bool) -> list[httpx.Response]:
    """The leader's and the follower's answers; the model asked for fails once both are there, and another one stands in."""
    go_on = asyncio.Event()

    async def fails_late(wire: Wire, request: Received) -> None:
        await go_on.wait()
        await fails(500)(wire, request)

    asked = await world.upstream(fails_late)
    await world.upstream(replies(whole_stream("Hello") if stream else answer(completion())))
    world.apply(
        tenant=SPLIT,
        keys=_keys(*models),
        route={"fallbacks": {"general": ["big"]}, "attempts_max": 1},
        others={"big": (1,)},
        breaker=BreakerPolicy(requests_min=1_000, failures_in_row=1_000),
    )
    headers = [{"authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY)]
    leader = asyncio.create_task(world.chat(headers=headers[0], stream=stream))
    await until(lambda: asked.received)
    follower = asyncio.create_task(world.chat(headers=headers[1], stream=stream))
    await until(lambda: world.worker.coalesce.followers)
    go_on.set()
    return [await leader, await follower]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_stood_in_answers_nobody_who_may_not_use_it(world: World, stream: bool) -> None:
    """The leader's fallback is not the follower's: that one asks for itself, fails, and pays nothing of the leader's bill."""
    leader, follower = await _ask_both(world, None, ("gpt",), stream=stream)
    assert (200, "u1/m", 502) == (leader.status_code, leader.headers["x-heph-deployment"], follower.status_code)
    assert [2, 1] == [len(upstream.received) for upstream in world.upstreams]
    await world.until_idle()
    costs = {record.key_id: record.cost_nanousd for record in world.records()}
    assert {KEY: 15_000, OTHER_KEY: 0} == costs
    assert 1 == world.worker.coalesce.parted_total


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_not_shared_with_who_may_use_more(world: World, stream: bool) -> None:
    """The leader has nothing to fall back to; the follower has, and gets that."""
    leader, follower = await _ask_both(world, ("gpt",), ("gpt", "big"), stream=stream)
    assert (502, 200, "u1/m") == (leader.status_code, follower.status_code, follower.headers["x-heph-deployment"])
    assert [2, 1] == [len(upstream.received) for upstream in world.upstreams]


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_may_use_the_model_that_stood_in_shares_its_answer(world: World, stream: bool) -> None:
    """Other lists, but both have that model: one upstream call for both, and its bill in two parts."""
    leader, follower = await _ask_both(world, None, ("gpt", "big"), stream=stream)
    assert [200, 200] == [leader.status_code, follower.status_code]
    assert [1, 1] == [len(upstream.received) for upstream in world.upstreams]
    await world.until_idle()
    assert {CacheState.MISS, CacheState.COALESCED} == {record.cache for record in world.records()}
    assert 15_000 == sum(record.cost_nanousd for record in world.records())
    assert 0 == world.worker.coalesce.parted_total

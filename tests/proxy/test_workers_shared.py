"""Several workers as real processes that share their limits through a real Redis, and go on without it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from controlplane.contract.records import CacheState, CallRecord, Outcome
from controlplane.contract.snapshot import TenantPolicy
from tests.proxy.control_plane_fake import control_plane
from tests.proxy.fakes import ScriptedUpstream, answer, completion, replies
from tests.proxy.processes import said
from tests.proxy.redis_server import RedisServer
from tests.proxy.test_workers import LIMIT, TOKENS, Fleet, _answers

pytestmark = pytest.mark.e2e
WORST = 100  # tokens that one call may need: its body and its ceiling


def _spent(rows: list[CallRecord]) -> int:
    return sum(row.tokens.total for row in rows)


@contextlib.asynccontextmanager
async def fleet_on_redis(
    folder: Path, *, tenant: TenantPolicy | None = None, **settings: float
) -> AsyncIterator[tuple[Fleet, RedisServer]]:
    """Workers that are yet to be started, and their Redis; whatever is left of either is ended."""
    upstream = await ScriptedUpstream(replies(answer(completion()))).start()
    redis = await RedisServer(folder).start()
    async with control_plane() as plane:
        plane.answer = _answers
        fleet = Fleet(folder, plane, upstream, tenant=tenant)
        fleet.more = {"redis": redis.url, **settings}
        try:
            yield fleet, redis
        finally:
            if fleet.process is not None and fleet.process.returncode is None:
                fleet.process.kill()
                await fleet.process.wait()
            await upstream.stop()
            redis.kill()


async def _ready(fleet: Fleet) -> dict[str, str]:
    async with httpx.AsyncClient(timeout=30.0) as client:
        answered: dict[str, str] = (await client.get(f"http://127.0.0.1:{fleet.port}/readyz")).json()
        return answered


async def _all_listen(fleet: Fleet, workers: int) -> None:
    """Waits until each of so many workers hears the others, and looks into their cache: from then on they share what is in flight."""
    ready: set[str] = set()
    async with asyncio.timeout(60.0):
        while len(ready) < workers:
            async with httpx.AsyncClient() as client:  # a connection of its own: the kernel chooses who answers
                metrics = (await client.get(f"http://127.0.0.1:{fleet.port}/metrics")).text
            heard = re.findall(r'heph_proxy_shared_listening\{worker="(.)"\} 1.0', metrics)
            cached = re.findall(r'heph_proxy_cache_redis_degraded\{worker="(.)"\} 0.0', metrics)
            ready |= set(heard) & set(cached)


async def test_workers_share_a_budget_to_its_end_and_survive_a_kill(tmp_path: Path) -> None:
    """Three workers and one budget: all of it is let in whoever serves, a killed worker costs nothing but its slice for a
    while, nobody overspends, and rows equal ledgers.
    """
    async with fleet_on_redis(tmp_path, redis_timeout_s=1.0, quota_lease_s=4.0) as (fleet, _redis):
        await fleet.start(3)
        await fleet.call(90)
        assert fleet.process is not None
        psutil.Process(fleet.process.pid).children()[1].kill()
        await said(fleet.process, "proxy listens")
        for _ in range(100):
            before = fleet.served[429]
            await fleet.call(20)
            if fleet.served[429] - before == 20:  # nobody has anything left
                break
        await fleet.stop()
    rows = fleet.rows()
    assert len(rows) == len({row.call_id for row in rows}) == sum(fleet.served.values())
    assert (len(rows), sum(row.cost_nanousd for row in rows)) == fleet.ledgers()
    assert fleet.served[200] * TOKENS == _spent(rows) <= LIMIT
    assert LIMIT - _spent(rows) < WORST  # nobody was refused while others held what they did not use
    assert {Outcome.OK, Outcome.OVER_BUDGET} == {row.outcome for row in rows}


async def test_a_burst_on_a_worker_that_has_leased_nothing_yet_is_let_in(tmp_path: Path) -> None:
    """Calls that come while others wait for a first slice take nothing that is brought for those: all are served."""
    async with fleet_on_redis(tmp_path, redis_timeout_s=2.0) as (fleet, _redis):
        await fleet.start(1)
        await fleet.call(20)
        await fleet.stop()
    assert {200: 20} == dict(fleet.served)


async def test_an_answer_that_one_worker_brought_is_served_by_all(tmp_path: Path) -> None:
    """Of many calls over many connections one is asked for and paid, whichever worker serves the others."""
    async with fleet_on_redis(tmp_path, tenant=TenantPolicy("acme"), redis_timeout_s=1.0) as (fleet, _redis):
        await fleet.start(3)
        await _all_listen(fleet, 3)
        await fleet.call(60)
        await fleet.stop()
    rows = fleet.rows()
    states = Counter(row.cache for row in rows)
    assert (60, 1) == (len(rows), states[CacheState.MISS])
    assert {CacheState.MISS, CacheState.HIT, CacheState.COALESCED} >= set(states)
    assert 1 == sum(len(row.attempts) for row in rows)
    assert sum(row.cost_nanousd for row in rows) == next(row.cost_nanousd for row in rows if row.attempts)
    assert [True] * 3 == [status.ledger_calls > 0 for status in fleet.statuses()]


async def test_without_redis_workers_go_on_within_their_parts_and_say_so(tmp_path: Path) -> None:
    """Redis dies in the middle: calls are still served, no worker spends more than its part, and `/readyz` says it."""
    async with fleet_on_redis(tmp_path, redis_timeout_s=0.5, quota_lease_s=2.0) as (fleet, redis):
        await fleet.start(2)
        await fleet.call(20)
        redis.kill()
        said = ""
        for _ in range(20):  # until the slices that were leased have ended, at whichever worker answers
            await fleet.call(10)
            said = max([(await _ready(fleet)).get("degraded", "") for _ in range(10)])
            if said:
                break
        assert "Redis does not answer" in said
        await fleet.stop()
    rows = fleet.rows()
    assert (len(rows), sum(row.cost_nanousd for row in rows)) == fleet.ledgers()
    assert {200} == set(fleet.served)  # nobody was kept waiting for Redis, or refused
    assert _spent(rows) <= LIMIT

"""The fleet against a real provider: every habit calls, nothing crashes it, everything is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from controlplane.clock import ManualClock
from controlplane.demo.faults import Fault, FaultKind, FaultMatch
from controlplane.demo.fleet import Fleet
from controlplane.demo.habits import HABITS
from controlplane.demo.provider import Provider


class Run:
    """A fleet at work on a clock that the test moves."""

    def __init__(self, fleet: Fleet, clock: ManualClock) -> None:
        self.fleet = fleet
        self.clock = clock

    async def pass_time(self, seconds: float) -> None:
        """Lets the agents live for so long, and finish the calls they made in that time."""
        await self.settle()
        for _ in range(round(seconds / 0.5)):
            self.clock.move(0.5)
            await self.settle()

    async def settle(self) -> None:
        """Waits until every agent pauses."""
        for _ in range(1_000_000):
            if self.clock.sleepers >= len(HABITS) and not self.fleet.counters.in_flight:
                return
            await asyncio.sleep(0)
        pytest.fail("the fleet did not come to rest")


@contextlib.asynccontextmanager
async def at_work(provider: Provider, **options: float) -> AsyncIterator[Run]:
    """A running fleet; stopped at the end, after which nothing may be in flight."""
    clock = ManualClock()
    fleet = Fleet(provider.base_url, ["sk-a", "sk-b"], seed=1, clock=clock, **options)
    running = asyncio.create_task(fleet.run())
    try:
        yield Run(fleet, clock)
    finally:
        await fleet.stop()
        await running
    assert fleet.counters.in_flight == 0


async def test_every_agent_calls_and_succeeds(provider: Provider) -> None:
    """In a minute every habit has made calls, all of them answered or left on purpose, and the provider served as many."""
    async with at_work(provider) as run:
        await run.pass_time(60)
        counters = run.fleet.counters
    assert {habit.agent for habit in HABITS} == set(counters.agents)
    assert all(agent.ok > 0 for agent in counters.agents.values())
    assert counters.failed_by_code == {}
    assert counters.calls == counters.ok + counters.abandoned
    served = provider.upstreams[0].stats
    assert counters.calls == sum(model.calls for model in served.by_model.values())


async def test_habits_differ(provider: Provider) -> None:
    """The traffic has what the proxy's features need: repeats, streams, tools, embeddings, long prompts, identical concurrent calls."""
    async with at_work(provider) as run:
        await run.pass_time(120)
    stats = provider.upstreams[0].stats.by_model
    small = stats["gpt-4o-mini-2024-07-18"]
    assert small.streams > 0
    assert stats["text-embedding-3-small"].calls > 0
    assert stats["gpt-4o-2024-08-06"].cached_tokens > 0
    assert stats["gpt-4.1-mini-2025-04-14"].prompt_tokens > 0
    assert stats["claude-haiku-4-5-20251001"].calls > 0
    claude = stats["claude-sonnet-5"]
    assert claude.cached_tokens > claude.cache_write_tokens > 1024
    calls = sum(model.calls for model in stats.values())
    assert len(provider._inference.memory) < calls / 2  # half of the bodies or more were seen before


async def test_it_speaks_three_protocols(provider: Provider) -> None:
    """Chat completions and embeddings, responses, and messages: each is asked for, in calls that succeed."""
    paths = ("*/chat/completions", "*/embeddings", "*/responses", "*/messages")
    for path in paths:  # a fault that does nothing but count
        provider.faults.add(Fault(FaultKind.SLOW_FIRST_TOKEN, id=path, match=FaultMatch(path=path), delay_s=0.0))
    async with at_work(provider) as run:
        await run.pass_time(20)
        counters = run.fleet.counters
    met = {status.fault.id: status.hits for status in provider.faults.status()}
    assert set(paths) == {path for path, hits in met.items() if hits}
    assert (counters.calls, {}) == (sum(met.values()), counters.failed_by_code)


async def test_same_seed_asks_the_same(provider: Provider) -> None:
    """Two fleets with one seed make the same calls in the same time."""
    seen = []
    for _ in range(2):
        provider.upstreams[0].reset_stats()
        async with at_work(provider) as run:
            await run.pass_time(20)
            seen.append({name: agent.calls for name, agent in run.fleet.counters.agents.items()})
    assert seen[0] == seen[1]


async def test_errors_are_counted_by_code_and_end_nothing(provider: Provider) -> None:
    """Faults of every sort become counts, and the fleet goes on when they are over."""
    kinds = [
        FaultKind.OUTAGE_503,
        FaultKind.RATE_LIMITED,
        FaultKind.MALFORMED_JSON,
        FaultKind.TRUNCATED_STREAM,
        FaultKind.REVOKED_KEY,
    ]
    for kind in kinds:
        provider.faults.add(Fault(kind, match=FaultMatch(share=0.3)))
    async with at_work(provider) as run:
        await run.pass_time(60)
        failed = dict(run.fleet.counters.failed_by_code)
        provider.faults.clear()
        ok_before = run.fleet.counters.ok
        await run.pass_time(10)
        assert run.fleet.counters.ok > ok_before
        assert failed == run.fleet.counters.failed_by_code
    assert {"503", "rate_limit_exceeded", "invalid_api_key", "malformed_answer", "connection"} <= set(failed)
    assert sum(failed.values()) == sum(agent.failed for agent in run.fleet.counters.agents.values())


async def test_refused_connections_are_counted(provider: Provider) -> None:
    """With nobody listening every call fails as a connection error."""
    provider.faults.add(Fault(FaultKind.OUTAGE_REFUSED))
    await provider.reconcile()
    async with at_work(provider) as run:
        await run.pass_time(5)
        counters = run.fleet.counters
    assert counters.calls > 0
    assert {"connection": counters.calls} == counters.failed_by_code


async def test_stop_abandons_what_is_in_flight(provider: Provider) -> None:
    """A fleet whose calls hang stops at once and counts them as abandoned."""
    provider.faults.add(Fault(FaultKind.HANG))
    clock = ManualClock()
    fleet = Fleet(provider.base_url, "sk-a", concurrency_max=3, clock=clock)
    running = asyncio.create_task(fleet.run())
    await clock.advance(60)
    for _ in range(100_000):
        if fleet.counters.in_flight == 3:
            break
        await asyncio.sleep(0)
    await fleet.stop()
    await running
    await fleet.stop()
    assert (3, 3, 0) == (fleet.counters.calls, fleet.counters.abandoned, fleet.counters.in_flight)


async def test_cancelled_run_is_cancelled(provider: Provider) -> None:
    """Who cancels `run` sees the cancellation, and the agents are gone."""
    fleet = Fleet(provider.base_url, "sk-a", clock=ManualClock())
    running = asyncio.create_task(fleet.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert {running, asyncio.current_task()} >= asyncio.all_tasks() - _tasks_of(provider)


def _tasks_of(provider: Provider) -> set[asyncio.Task[None]]:
    return set(provider._tasks)


@pytest.mark.parametrize(("keys", "scale"), [([], 1.0), ("sk-a", 0.0), ("sk-a", -1.0)])
def test_senseless_fleet_is_refused(keys: str | list[str], scale: float) -> None:
    """A fleet without a key or with no speed is refused when it is made."""
    with pytest.raises(ValueError):
        Fleet("http://127.0.0.1:1/v1", keys, scale=scale)

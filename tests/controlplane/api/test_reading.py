"""One reading for all open pages."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from controlplane.api.counters import ApiCounters
from controlplane.api.reading import SharedReading
from controlplane.clock import ManualClock
from controlplane.errors import StoreUnavailable
from controlplane.metrics import Metrics
from tests.controlplane.api.fakes import MemoryHealth, busy_overview


def _shared(health: MemoryHealth, clock: ManualClock) -> SharedReading:
    counters = ApiCounters(Metrics(CollectorRegistry()))
    return SharedReading(health=health, clock=clock, fresh_s=1.0, counters=counters)


async def test_many_readers_cost_one_reading() -> None:
    """Who asks at the same time gets the same answer, read once; later it is read again."""
    health, clock = MemoryHealth(busy_overview()), ManualClock()
    shared = _shared(health, clock)
    found = await asyncio.gather(*(shared.overview() for _ in range(50)))
    assert [busy_overview()] * 50 == found
    assert 1 == health.readings
    clock.move(1.5)
    await shared.overview()
    assert 2 == health.readings


async def test_a_failure_is_shared_too() -> None:
    """A store that is down is asked no more often than one that answers, and tried again."""
    health, clock = MemoryHealth(busy_overview()), ManualClock()
    shared = _shared(health, clock)
    health.trouble = StoreUnavailable("down")
    assert [None, None] == [await shared.overview(), await shared.overview()]
    assert 1 == health.readings
    health.trouble = None
    clock.move(2)
    assert busy_overview() == await shared.overview()

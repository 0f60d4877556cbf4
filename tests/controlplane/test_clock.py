"""The manual clock wakes sleepers in order and never by itself."""

from __future__ import annotations

import asyncio
import time

from controlplane.clock import Clock, ManualClock, SystemClock


async def tick(clock: Clock, seen: list[tuple[str, float]], name: str, every_s: float, times: int) -> None:
    """A task that notes the time each time it wakes."""
    for _ in range(times):
        await clock.sleep(every_s)
        seen.append((name, clock.monotonic()))


async def test_advance_wakes_sleepers_in_order_of_their_time() -> None:
    """Each sleeper sees the moment it asked for, and repeated sleeps within one advance are all served."""
    clock, seen = ManualClock(), list[tuple[str, float]]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tick(clock, seen, "slow", 3.0, 1))
        tasks.create_task(tick(clock, seen, "fast", 1.0, 4))
        await clock.advance(5.0)
    assert [("fast", 1.0), ("fast", 2.0), ("slow", 3.0), ("fast", 3.0), ("fast", 4.0)] == seen


async def test_time_never_goes_back_when_a_sleeper_moves_it() -> None:
    """Who is woken may move time on; the advance that woke it does not undo that."""
    clock = ManualClock()

    async def work() -> None:
        await clock.sleep(1.0)
        clock.move(12.0)

    task = asyncio.create_task(work())
    await clock.advance(1.0)
    assert (True, 13.0) == (task.done(), clock.monotonic())


async def test_sleepers_wait_until_their_time() -> None:
    """A sleeper is not woken a microsecond early."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(2.0))
    await clock.advance(1.999999)
    assert not task.done()
    await clock.advance(0.000001)
    assert task.done()


async def test_cancelled_sleeper_is_forgotten() -> None:
    """A cancelled sleep neither counts nor disturbs the others."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await clock.advance(0.0)
    task.cancel()
    await clock.advance(2.0)
    assert task.cancelled()
    assert clock.sleepers == 0


def test_move_changes_both_times() -> None:
    """Wall time and monotonic time move together."""
    clock = ManualClock(start_us=1_000)
    clock.move(1.5)
    assert (1_501_000, 1.5) == (clock.now_us(), clock.monotonic())


async def test_system_clock_tells_microseconds() -> None:
    """The system clock is Unix time in microseconds, and sleeping for nothing returns."""
    clock = SystemClock()
    before = time.time_ns() // 1000
    await clock.sleep(-1.0)
    assert before <= clock.now_us() <= time.time_ns() // 1000
    assert clock.monotonic() <= clock.monotonic()

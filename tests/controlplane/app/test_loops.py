"""Loops take turn after turn, and no failure ends them."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from controlplane.app.loops import FAILURE_WAIT_S, cancel_all, keep_turning, stay_up
from controlplane.clock import ManualClock
from controlplane.metrics import LoopMetrics


class Rig:
    """A loop body that notes when it ran, and fails at some of its runs."""

    def __init__(self, *failing: int) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.metrics = LoopMetrics(self.registry)
        self.failing = failing
        self.times: list[float] = []

    async def turn(self) -> None:
        """One turn."""
        self.times.append(self.clock.monotonic())
        if len(self.times) in self.failing:
            raise RuntimeError("nobody expected this")

    def metric(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.registry.get_sample_value(name, labels)


async def test_a_loop_takes_its_turns_and_survives_a_failure() -> None:
    """A turn that fails is counted and waited after; the next one comes all the same, and shows when it was last well."""
    rig = Rig(2)
    task = asyncio.create_task(keep_turning("x", rig.turn, every_s=5.0, clock=rig.clock, metrics=rig.metrics))
    await rig.clock.advance(17.0 + FAILURE_WAIT_S)
    assert [0.0, 5.0, 10.0 + FAILURE_WAIT_S, 15.0 + FAILURE_WAIT_S] == rig.times
    assert (3.0, 1.0) == (
        rig.metric("heph_loop_turns_total", loop="x", result="ok"),
        rig.metric("heph_loop_turns_total", loop="x", result="failed"),
    )
    last_ok = rig.metric("heph_loop_last_ok_seconds", loop="x")
    assert last_ok == rig.clock.now_us() / 1_000_000 - 2.0
    await cancel_all([task])
    assert task.cancelled()


async def test_a_loop_that_falls_over_is_put_up_again() -> None:
    """A loop with its own rhythm is run again after a failure, and left alone when it ends by itself."""
    rig = Rig(1, 2)
    task = asyncio.create_task(stay_up("x", rig.turn, clock=rig.clock, metrics=rig.metrics))
    await rig.clock.advance(10.0)
    assert task.done()
    assert [0.0, FAILURE_WAIT_S, 2 * FAILURE_WAIT_S] == rig.times
    assert 2.0 == rig.metric("heph_loop_turns_total", loop="x", result="failed")


async def test_cancelling_waits_for_the_ends() -> None:
    """When `cancel_all` returns every task has ended, one that failed on its way out too."""
    ended: list[str] = []

    async def tidy_up(name: str, *, fails: bool) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)
            if fails:
                raise RuntimeError(name)

    tasks = [asyncio.create_task(tidy_up(name, fails=name == "b")) for name in "ab"]
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert ["a", "b"] == ended

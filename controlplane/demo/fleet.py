"""A small fleet of agents with different habits that call an LLM proxy until they are stopped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import structlog

from controlplane.clock import Clock, SystemClock
from controlplane.demo.caller import Caller, Clients
from controlplane.demo.counters import FleetCounters
from controlplane.demo.habits import HABITS, Agent, FleetModels, Habit

CONCURRENCY_MAX = 32  # calls that the fleet has in flight; further ones wait
TIMEOUT_S = 60.0  # of one call


class Fleet:
    """Agents that call, each at its own rhythm. Errors are counted, never raised.

    base_url: as OpenAI's client takes it, ending with `/v1`. api_keys: one virtual key for all agents, or several that are
    dealt out in turn, so that agents belong to several tenants. scale: how busy the fleet is; 2 halves every pause. The same seed
    makes the same agents ask the same questions in the same order.
    """

    def __init__(
        self,
        base_url: str,
        api_keys: str | Sequence[str],
        *,
        seed: int = 0,
        scale: float = 1.0,
        models: FleetModels | None = None,
        habits: Sequence[Habit] = HABITS,
        concurrency_max: int = CONCURRENCY_MAX,
        clock: Clock | None = None,
    ) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be greater than 0, not {scale}")
        self.counters = FleetCounters()
        self._base_url = base_url
        self._api_keys = [api_keys] if isinstance(api_keys, str) else list(api_keys)
        if not self._api_keys:
            raise ValueError("a fleet needs at least one virtual key")
        self._seed = seed
        self._scale = scale
        self._models = models or FleetModels()
        self._habits = habits
        self._concurrency_max = concurrency_max
        self._clock = clock or SystemClock()
        self._running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Calls until `stop`, or until it is cancelled; then no call is in flight any more."""
        if self._running is not None:
            raise RuntimeError("this fleet is running already")
        self._running = asyncio.create_task(self._run_agents())
        try:
            await self._running
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise  # not `stop`, but whoever runs the fleet
        finally:
            self._running = None

    async def stop(self) -> None:
        """Ends `run`; calls in flight are abandoned. Safe to call twice."""
        running = self._running
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run_agents(self) -> None:
        slots = asyncio.Semaphore(self._concurrency_max)
        clients = [Clients.to(self._base_url, key, timeout_s=TIMEOUT_S) for key in self._api_keys]
        try:
            async with asyncio.TaskGroup() as group:
                for number, habit in enumerate(self._habits):
                    caller = Caller(clients[number % len(clients)], habit.agent, self.counters, slots)
                    draw = random.Random(f"{self._seed}/{habit.agent}")
                    group.create_task(self._live(habit, Agent(caller, self._models, draw)))
        finally:
            for client in clients:
                await client.close()

    async def _live(self, habit: Habit, agent: Agent) -> None:
        """One agent's life: a turn, a pause, a turn."""
        while True:
            await self._clock.sleep(agent.draw.expovariate(1 / habit.pause_s) / self._scale)
            try:
                await habit.turn(agent)
            except Exception:  # noqa: BLE001 - an agent with a bug must not end the others
                structlog.get_logger().exception("fleet.bug", agent=habit.agent)

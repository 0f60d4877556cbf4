"""Limits that workers and hosts share, in one hand: slices of budgets, quotas and slots, and the request rates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from controlplane.contract.proxy_settings import ProxySettings
from proxy.leases import Leases, watch_leases
from proxy.ledger import Ledger
from proxy.quotas.account import Line, Share
from proxy.quotas.bucket import Stock
from proxy.rates import Rates, watch_rates
from proxy.shared import SharedState

WAIT_FACTOR = 2  # of a command's deadline: how long a call waits for other workers to give back
CLOSE_S = 1.0


class Lending:
    """What the stages ask for larger slices, and what keeps the slices."""

    def __init__(
        self, shared: SharedState, settings: ProxySettings, *, worker: str, share: Share, gone: Iterable[str] = ()
    ) -> None:
        """worker: its name among all workers of all hosts, the same over restarts. share: its part when Redis is out.

        gone: workers of this host that will not run again, and whose spending was shared out among the others.
        """
        self.leases = Leases(
            shared,
            worker=worker,
            share=share,
            lease_s=settings.quota_lease_s,
            wait_s=settings.redis_timeout_s * WAIT_FACTOR,
            gone=gone,
        )
        self.rates = Rates(shared, share=share)

    @property
    def degraded(self) -> int:
        """Limits under which this worker is on its own now."""
        return self.leases.degraded + self.rates.degraded

    def lacks(self) -> str:
        """What the worker does without now, for those who ask whether it is ready."""
        if not self.degraded:
            return ""
        return "Redis does not answer: limits that workers share are held to this worker's part"

    def lend(self, line: Line) -> None:
        """Takes over the cap of a ceiling."""
        self.leases.lend(line)

    async def refill(self, short: tuple[tuple[Line, int], ...]) -> None:
        """Asks for larger slices; bounded in time, never raises."""
        await self.leases.refill(short)

    def stock(self, tenant: str, limit: int) -> Stock:
        """The source of a tenant's requests."""
        return self.rates.stock(tenant, limit)

    async def restock(self, stock: Stock) -> None:
        """Asks it for one more; bounded in time, never raises."""
        await self.rates.restock(stock)

    async def run(self) -> None:
        """Keeps everything up to date. Cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.leases.run())
            group.create_task(self.rates.run())

    async def aclose(self) -> None:
        """Gives back what is held, as far as Redis answers; after `run` has ended."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.leases.aclose()
                await self.rates.aclose()
        except TimeoutError:
            return  # the leases end by themselves


def open_lending(
    shared: SharedState | None,
    ledger: Ledger,
    settings: ProxySettings,
    *,
    worker: str,
    share: Share,
    gone: Iterable[str],
) -> Lending | None:
    """Puts a ledger's ceilings into the hands of Redis, where there is one."""
    if shared is None:
        return None
    lending = Lending(shared, settings, worker=worker, share=share, gone=gone)
    ledger.lend(lending.lend)
    return lending


def watch_lending(watch: Callable[[str, str, Callable[[], float]], None], lending: Lending | None) -> None:
    """Shows the figures of what is shared; without Redis they are there all the same, and stay zero."""
    watch_leases(watch, None if lending is None else lending.leases)
    watch_rates(watch, None if lending is None else lending.rates)

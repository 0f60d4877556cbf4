"""The publisher: holds the current snapshot, numbers it, hands it to whoever waits, and knows which proxies have it.

A snapshot is current only when its number is in the journal (`controlplane.catalog.versions`).
"""

from __future__ import annotations

import asyncio

from controlplane.catalog.versions import Versions
from controlplane.clock import Clock
from controlplane.contract.snapshot import ProxyStatus, Snapshot
from controlplane.errors import BadRequest, TooMany
from controlplane.journal.journal import Journal
from controlplane.metrics import CatalogMetrics
from controlplane.settings import PublishSettings

_VERSION_MAX = 2**53  # what every JSON reader takes for a whole number


class Publisher:
    """One for each control plane process; all methods but `open` belong to its event loop, `current` and `statuses` may be asked from any thread."""

    def __init__(
        self, versions: Versions, clock: Clock, settings: PublishSettings, metrics: CatalogMetrics, first: Snapshot
    ) -> None:
        """Use `open`; first: a snapshot that has its number already."""
        self._versions = versions
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._current = first
        self._publishing = asyncio.Lock()
        self._published = asyncio.Event()  # set and replaced at each publication
        self._reported = asyncio.Event()  # set and replaced at each status
        self._waiters = 0
        self._published_s: float | None = None  # when, until all live proxies have it
        self._proxies: dict[str, tuple[ProxyStatus, float]] = {}
        metrics.version.set(first.version)

    @classmethod
    async def open(
        cls,
        journal: Journal,
        compiled: Snapshot,
        *,
        clock: Clock,
        settings: PublishSettings,
        metrics: CatalogMetrics,
    ) -> Publisher:
        """A publisher whose current snapshot is what `compile_snapshot` made; it keeps its number if it was published before."""
        versions = Versions(journal)
        first = await asyncio.to_thread(
            versions.number, compiled, now_us=clock.now_us(), changed=("configuration at start",)
        )
        return cls(versions, clock, settings, metrics, first)

    @property
    def current(self) -> Snapshot:
        """The snapshot that proxies should have now."""
        return self._current

    async def publish(self, compiled: Snapshot, changed: tuple[str, ...] = ()) -> Snapshot:
        """Makes a compiled snapshot the current one, under the next number; the same content keeps its number.

        Raises JournalUnavailable, with nothing changed.
        """
        async with self._publishing:
            if compiled.hash == self._current.hash:
                return self._current
            return await self._publish(compiled, above=0, changed=changed)

    async def wait_newer(self, have: int, timeout_s: float) -> Snapshot | None:
        """The current snapshot as soon as it is newer than `have`; None when none came in time.

        A proxy that has a higher number than was ever given out here comes from a journal that was lost: numbers then jump over its own.
        Raises TooMany when too many wait already, BadRequest for a number that cannot be.
        """
        if not 0 <= have < _VERSION_MAX:
            raise BadRequest(f"have is a snapshot version, from 0 to {_VERSION_MAX - 1}")
        if have > self._current.version:
            await self._jump_over(have)
        if self._current.version > have:
            return self._current
        if self._waiters >= self._settings.waiters_max:
            self._metrics.waiters_refused.inc()
            raise TooMany(f"{self._waiters} proxies wait for a snapshot already; raise server.publish.waiters_max")
        self._waiters += 1
        self._metrics.waiters.set(self._waiters)
        try:
            deadline = self._clock.monotonic() + min(timeout_s, self._settings.wait_s_max)
            while self._current.version <= have:
                if not await self._wait(self._published, deadline):
                    return None
            return self._current
        finally:
            self._waiters -= 1
            self._metrics.waiters.set(self._waiters)

    def confirm(self, status: ProxyStatus) -> None:
        """Takes a proxy's word about itself; what is beyond the bound of proxies is counted and left out."""
        self._forget_expired()
        if status.proxy_id not in self._proxies and len(self._proxies) >= self._settings.proxies_max:
            self._metrics.proxies_refused.inc()
            return
        self._proxies[status.proxy_id] = (status, self._clock.monotonic())
        self._update_metrics()
        if self._published_s is not None and self.is_confirmed(self._current.version):
            self._metrics.confirm_seconds.observe(self._clock.monotonic() - self._published_s)
            self._published_s = None
        reported, self._reported = self._reported, asyncio.Event()
        reported.set()

    def statuses(self) -> tuple[ProxyStatus, ...]:
        """The last status of each live proxy worker, by its id."""
        self._forget_expired()
        known = self._proxies.copy()
        return tuple(known[proxy_id][0] for proxy_id in sorted(known))

    def is_confirmed(self, version: int) -> bool:
        """Whether there is a live proxy, and all live ones have this snapshot or a newer one."""
        statuses = self.statuses()
        return bool(statuses) and all(status.snapshot_version >= version for status in statuses)

    async def confirmed(self, version: int, timeout_s: float) -> bool:
        """Waits until `is_confirmed`; False when that did not come about in time."""
        started = self._clock.monotonic()
        while not self.is_confirmed(version):
            if not await self._wait(self._reported, started + timeout_s):
                return self.is_confirmed(version)  # a proxy that fell silent may have been what was missing
        return True

    async def _publish(self, compiled: Snapshot, *, above: int, changed: tuple[str, ...]) -> Snapshot:
        self._current = await asyncio.to_thread(
            self._versions.number, compiled, now_us=self._clock.now_us(), above=above, changed=changed
        )
        self._published_s = self._clock.monotonic()
        self._metrics.version.set(self._current.version)
        self._update_metrics()
        published, self._published = self._published, asyncio.Event()
        published.set()
        return self._current

    async def _jump_over(self, have: int) -> None:
        async with self._publishing:
            if have > self._current.version:
                changed = (f"a proxy had version {have} from an earlier journal",)
                await self._publish(self._current, above=have, changed=changed)

    async def _wait(self, event: asyncio.Event, deadline: float) -> bool:
        """Whether the event came before the deadline."""
        remaining_s = deadline - self._clock.monotonic()
        if remaining_s <= 0:
            return False
        arrived = asyncio.ensure_future(event.wait())
        late = asyncio.ensure_future(self._clock.sleep(remaining_s))
        try:
            await asyncio.wait((arrived, late), return_when=asyncio.FIRST_COMPLETED)
            return arrived.done()
        finally:
            arrived.cancel()
            late.cancel()

    def _forget_expired(self) -> None:
        oldest = self._clock.monotonic() - self._settings.proxy_expiry_s
        expired = [proxy_id for proxy_id, (_, seen) in self._proxies.copy().items() if seen < oldest]
        for proxy_id in expired:
            self._proxies.pop(proxy_id, None)
        if expired:
            self._update_metrics()

    def _update_metrics(self) -> None:
        behind = sum(status.snapshot_version < self._current.version for status, _ in self._proxies.copy().values())
        self._metrics.proxies.set(len(self._proxies))
        self._metrics.proxies_behind.set(behind)

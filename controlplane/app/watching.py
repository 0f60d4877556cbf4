"""Detection joined to the catalog and to the incidents: what to watch and to probe, and signals for whoever keeps incidents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from controlplane.catalog.publish import Publisher
from controlplane.clock import Clock
from controlplane.contract.snapshot import LeaseKind, ProxyStatus, Snapshot
from controlplane.detection.breakers import breaker_signals
from controlplane.detection.signals import Signal
from controlplane.detection.watch import Watch, default_watches
from controlplane.incidents.register import Incidents
from controlplane.incidents.signal import signal_of
from controlplane.incidents.topology import Topology
from controlplane.settings import DetectionSettings


class CatalogView:
    """What the current snapshot means for detection: computed once for each snapshot."""

    def __init__(self, publisher: Publisher, settings: DetectionSettings) -> None:
        self._publisher = publisher
        self._settings = settings
        self._seen: Snapshot | None = None
        self._watches: tuple[Watch, ...] = ()
        self._topology = Topology()

    def _look(self) -> None:
        snapshot = self._publisher.current
        if snapshot is not self._seen:
            self._watches = default_watches(snapshot, self._settings)
            self._topology = Topology.of(snapshot)
            self._seen = snapshot

    def watches(self) -> Sequence[Watch]:
        """The watches of the current snapshot."""
        self._look()
        return self._watches

    def topology(self) -> Topology:
        """The topology of the current snapshot."""
        self._look()
        return self._topology

    def drained(self) -> set[str]:
        """Deployments under a drain lease."""
        return {lease.deployment for lease in self._publisher.current.leases if lease.kind is LeaseKind.DRAIN}

    def foreign(self) -> set[str]:
        """Upstreams that only litellm can speak to."""
        return {upstream.id for upstream in self._publisher.current.upstreams if upstream.dialect == "litellm"}


class Witnesses:
    """Brings what detection sees to the incidents, which block on the journal and are asked in a thread."""

    def __init__(
        self,
        incidents: Incidents,
        view: CatalogView,
        *,
        statuses: Callable[[], Sequence[ProxyStatus]],
        clock: Clock,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._incidents = incidents
        self._view = view
        self._statuses = statuses
        self._clock = clock
        self._changed = changed

    async def emit(self, signals: Sequence[Signal]) -> None:
        """Hands signals on; an empty list lets time pass for the incidents."""
        heard = [signal_of(msgspec.to_builtins(signal)) for signal in signals]
        if await asyncio.to_thread(self._incidents.observe, heard):
            await self._changed()

    async def look_at_breakers(self) -> None:
        """One turn: what the breakers of all live workers say now."""
        upstreams = self._view.topology().upstreams
        await self.emit(breaker_signals(self._statuses(), upstreams, now_us=self._clock.now_us()))

    def to_probe(self) -> Mapping[str, str]:
        """Deployments that somebody should look at: those of open incidents and those that are drained, with their upstreams.

        Not those that only litellm can speak to: it is imported by proxies alone, whose breakers are the witnesses there.
        """
        upstreams = self._view.topology().upstreams
        drained = {one: upstreams[one] for one in self._view.drained() if one in upstreams}
        wanted = {**drained, **self._incidents.sick_deployments()}
        foreign = self._view.foreign()
        return {deployment: upstream for deployment, upstream in wanted.items() if upstream not in foreign}

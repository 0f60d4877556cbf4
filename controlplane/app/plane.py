"""The control plane: every component made, joined, started and stopped, here and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from litestar import Litestar
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry

from controlplane.api.app import create_app
from controlplane.api.clickhouse_door import ClickHouseDoor
from controlplane.api.parts import Parts
from controlplane.app.answers import StoredCalls, StoredCosts
from controlplane.app.caching import StoredAnswers
from controlplane.app.copies import EventCopies
from controlplane.app.disk import DiskWatch
from controlplane.app.healing import (
    CatalogLeases,
    CatalogRoutes,
    KnownIncidents,
    ProxyConfirmations,
    RunAnswers,
    StoredMetrics,
    views_of,
)
from controlplane.app.incidents import IncidentAnswers, IncidentNews
from controlplane.app.intake import Intake
from controlplane.app.loops import cancel_all, keep_turning, stay_up
from controlplane.app.overview import OverviewReader
from controlplane.app.probing import BookedProber
from controlplane.app.telling import Telling
from controlplane.app.watching import CatalogView, Witnesses
from controlplane.catalog.file import ConfigFile
from controlplane.catalog.invalidations import Invalidations, longest_cached_s
from controlplane.catalog.issuers import PublicKeys
from controlplane.catalog.keys import Keys
from controlplane.catalog.leases import Leases
from controlplane.catalog.load import Loaded
from controlplane.catalog.reload import Reloader
from controlplane.clock import US_PER_S, Clock
from controlplane.costs.prices import PriceBook
from controlplane.detection.freshness import Freshness
from controlplane.detection.metrics import ProbeMetrics, SweepMetrics
from controlplane.detection.probes import Probes, ProbeSettings
from controlplane.detection.source import StoreSeries
from controlplane.detection.sweep import Sweep
from controlplane.healing.actions import World
from controlplane.healing.commands import Commands
from controlplane.healing.lint import load_library
from controlplane.healing.worker import Healing
from controlplane.incidents.incident import IncidentPolicy
from controlplane.incidents.metrics import SignalMetrics
from controlplane.incidents.register import Incidents
from controlplane.ingest import Ingest
from controlplane.journal.journal import Journal
from controlplane.metrics import Metrics
from controlplane.secrets import ServerSecrets, resolve
from controlplane.settings import Settings
from controlplane.store.client import Store, StoreLimits
from controlplane.store.migrate import apply_retention, migrate

TICK_S = 1.0
DAY_S = 86_400
DISK_EVERY_S = 30.0
TIDY_EVERY_S = 6 * 3_600.0


class ControlPlane:
    """One control plane process. `open` makes it, `run` keeps its loops turning until cancelled, `close` gives everything back."""

    def __init__(
        self,
        loaded: Loaded,
        secrets: ServerSecrets,
        *,
        clock: Clock,
        metrics: Metrics,
        store: Store,
        journal: Journal,
        reloader: Reloader,
        prices: PriceBook,
        telling: Telling,
        public_keys: PublicKeys,
    ) -> None:
        """Use `open`."""
        settings = loaded.settings
        self.settings, self.metrics, self.reloader = settings, metrics, reloader
        self._clock, self._store, self._journal, self._telling = clock, store, journal, telling
        publisher = reloader.publisher
        self._publisher, self._prices, self._public_keys = publisher, prices, public_keys
        freshness = Freshness(expiry_s=settings.publish.proxy_expiry_s)
        self._view = CatalogView(publisher, settings.detection)
        self._incidents = Incidents(
            journal,
            topology=self._view.topology,
            policy=IncidentPolicy.of(settings.incidents),
            metrics=metrics.incidents,
            signal_metrics=SignalMetrics(metrics.registry),
            clock=clock,
            outbox=IncidentNews(telling.router),
        )
        self._witnesses = Witnesses(
            self._incidents, self._view, statuses=publisher.statuses, clock=clock, changed=self._consider
        )
        self._sweep = self._make_sweep(freshness)
        intake = Intake(_ingest(store, clock, metrics, loaded), freshness, clock)
        probe_metrics = ProbeMetrics(metrics.registry)
        self._prober = BookedProber(
            lambda: publisher.current, intake, timeout_s=settings.detection.probe_timeout_s, metrics=probe_metrics
        )
        self._probes = Probes(
            prober=self._prober.http,
            targets=self._witnesses.to_probe,
            settings=ProbeSettings.of(settings.detection),
            metrics=probe_metrics,
            clock=clock,
        )
        self._healing = self._make_healing()
        self._copies = EventCopies(journal, store)
        self._door = ClickHouseDoor(
            store,
            settings=settings.door,
            metrics=metrics.door,
            password=None if settings.door.password is None else resolve(settings.door.password),
        )
        self._disk = DiskWatch(settings, metrics.loops)
        self.stopping = asyncio.Event()
        self.app = self._make_app(secrets, intake)

    @classmethod
    async def open(cls, loaded: Loaded, secrets: ServerSecrets, *, clock: Clock) -> ControlPlane:
        """Opens the stores, brings their schemas up to date and folds what the journal holds.

        Raises ConfigError, StoreUnavailable or JournalUnavailable with what to do.
        """
        settings = loaded.settings
        settings.data_path.mkdir(parents=True, exist_ok=True)
        metrics = Metrics(CollectorRegistry())
        async with AsyncExitStack() as opened:
            store = await asyncio.to_thread(_open_store, settings, metrics)
            opened.push_async_callback(asyncio.to_thread, store.close)
            journal = await asyncio.to_thread(_open_journal, settings, clock, metrics)
            opened.push_async_callback(asyncio.to_thread, journal.close)
            plane = await cls._join(loaded, secrets, clock=clock, metrics=metrics, store=store, journal=journal)
            opened.pop_all()  # from here on `close` gives them back
        return plane

    @classmethod
    async def _join(
        cls,
        loaded: Loaded,
        secrets: ServerSecrets,
        *,
        clock: Clock,
        metrics: Metrics,
        store: Store,
        journal: Journal,
    ) -> ControlPlane:
        """A control plane on open stores, with what the journal holds."""
        telling = Telling(journal, loaded.settings.alerts, clock=clock, metrics=metrics.alerts)
        telling.use(loaded.config)
        prices = await asyncio.to_thread(PriceBook.packaged)
        public_keys = PublicKeys(loaded.settings.data_path / "issuers")
        await asyncio.to_thread(public_keys.load, loaded.config.issuers)
        reloader = await Reloader.open(
            loaded,
            journal=journal,
            prices=prices,
            clock=clock,
            metrics=metrics.catalog,
            applied=telling.use,
            public_keys=public_keys,
        )
        plane = cls(
            loaded,
            secrets,
            clock=clock,
            metrics=metrics,
            store=store,
            journal=journal,
            reloader=reloader,
            prices=prices,
            telling=telling,
            public_keys=public_keys,
        )
        await asyncio.to_thread(plane._incidents.load)
        return plane

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps all loops turning until told to stop."""
        tasks = [asyncio.create_task(loop) for loop in (*self._following(stop), *self._watching())]
        try:
            await stop.wait()
        finally:
            await cancel_all(tasks)

    def _following(self, stop: asyncio.Event) -> list[Coroutine[None, None, None]]:
        """The loops that follow the configuration and empty the outbox."""
        clock, loops = self._clock, self.metrics.loops
        every_s = self.settings.publish.reload_every_s
        return [
            stay_up("reload", lambda: self.reloader.run(stop, every_s=every_s), clock=clock, metrics=loops),
            stay_up("alerts", self._telling.run, clock=clock, metrics=loops),
            keep_turning("issuers", self._refresh_issuers, every_s=TICK_S, clock=clock, metrics=loops),
            keep_turning("copies", self._copies.turn, every_s=TICK_S, clock=clock, metrics=loops),
            keep_turning("disk", self._disk.turn, every_s=DISK_EVERY_S, clock=clock, metrics=loops),
            keep_turning("tidy", self._tidy, every_s=TIDY_EVERY_S, clock=clock, metrics=loops),
        ]

    def _watching(self) -> list[Coroutine[None, None, None]]:
        """The loops of detection and healing, unless detection is switched off."""
        settings, clock, loops = self.settings, self._clock, self.metrics.loops
        if not settings.detection.enabled:
            return []
        probe_s = settings.detection.probe_every_s
        return [
            stay_up("sweep", lambda: self._sweep.run(self._witnesses.emit), clock=clock, metrics=loops),
            keep_turning("breakers", self._witnesses.look_at_breakers, every_s=TICK_S, clock=clock, metrics=loops),
            keep_turning("probes", self._probe, every_s=probe_s, clock=clock, metrics=loops),
            keep_turning("consider", self._consider, every_s=TICK_S, clock=clock, metrics=loops),
            stay_up("healing", self._healing.run, clock=clock, metrics=loops),
        ]

    async def close(self) -> None:
        """Gives everything back; safe to call twice."""
        await self._prober.aclose()
        await self._telling.aclose()
        await asyncio.to_thread(self._door.close)
        await asyncio.to_thread(self._store.close)
        await asyncio.to_thread(self._journal.close)

    async def _tidy(self) -> None:
        """What is done once in a while: forgets commands so old that nobody sends them again."""
        before_us = self._clock.now_us() - self.settings.journal_commands_days * DAY_S * US_PER_S
        await asyncio.to_thread(self._journal.forget_commands, before_us)

    async def _refresh_issuers(self) -> None:
        """Asks the issuers whose time has come for their public keys."""
        await self._public_keys.turn(self.reloader.config.issuers, now_us=self._clock.now_us())

    async def _probe(self) -> None:
        await self._witnesses.emit(await self._probes.turn())
        await self._prober.book()

    async def _consider(self) -> None:
        """Shows each firing incident to healing, which opens a run at most once."""
        topology = self._view.topology()
        for incident in self._incidents.open():
            if incident.state == "firing":
                for view in views_of(incident, topology):
                    await self._healing.consider(view)

    def _make_sweep(self, freshness: Freshness) -> Sweep:
        return Sweep(
            source=StoreSeries(self._store),
            watches=self._view.watches,
            telemetry=freshness,
            settings=self.settings.detection,
            metrics=self.metrics.detection,
            sweep_metrics=SweepMetrics(self.metrics.registry),
            clock=self._clock,
        )

    def _make_healing(self) -> Healing:
        settings, clock = self.settings, self._clock
        leases = Leases(self._journal, now_us=clock.now_us, leases_max=settings.healing.leases_max)
        world = World(
            clock=clock,
            leases=CatalogLeases(leases),
            confirmations=ProxyConfirmations(self._publisher),
            prober=self._prober.for_healing,
            metrics=StoredMetrics(self._store, clock),
            routes=CatalogRoutes(self._publisher, self._incidents),
            incidents=KnownIncidents(self._incidents),
        )
        folder = None if settings.healing.library is None else Path(settings.healing.library)
        library = load_library(folder, settings.healing.playbook_values)
        return Healing(
            self._journal,
            world,
            library,
            settings.healing,
            alerts=self._telling.router,
            metrics=self.metrics.healing,
            registry=self.metrics.registry,
        )

    def _make_app(self, secrets: ServerSecrets, intake: Intake) -> Litestar:
        settings, clock = self.settings, self._clock
        runs = RunAnswers(self._healing.runs, Commands(self._journal, clock.now_us), self._healing.kill_switch)
        incidents = IncidentAnswers(self._incidents, runs)
        health = OverviewReader(
            self._store,
            self._publisher,
            clock,
            incidents=lambda: incidents.newest(settings.console.incidents_max),
            kill_switch=runs.kill_switch,
            config_problems=lambda: self.reloader.problems,
            disk_trouble=self._disk.trouble,
        )
        parts = Parts(
            publisher=self._publisher,
            ingest=intake,
            incidents=incidents,
            runs=runs,
            calls=StoredCalls(self._store),
            costs=StoredCosts(
                self._store, clock, rows_max=settings.api.report_rows_max, price_book=self._prices.version
            ),
            keys=Keys(
                self._journal,
                pepper=secrets.key_pepper_bytes,
                now_us=clock.now_us,
                tenants=lambda: [tenant.name for tenant in self._config.tenants],
                models=lambda: [model.name for model in self._config.models],
            ),
            cache=StoredAnswers(
                self._store,
                Invalidations(self._journal, now_us=clock.now_us, longest_s=lambda: longest_cached_s(self._config)),
            ),
            health=health,
            secrets=secrets,
            clock=clock,
            metrics=self.metrics,
            settings=settings,
            console=settings.console,
            ready={"store": self._store_ready, "journal": self._journal_ready},
            stopping=self.stopping,
        )
        return create_app(parts, door=cast("ASGIApp", self._door))

    @property
    def _config(self) -> ConfigFile:
        return self.reloader.config

    async def _store_ready(self) -> str:
        await self._store.run(self._store.rows, "SELECT 1")
        return ""

    async def _journal_ready(self) -> str:
        await asyncio.to_thread(self._journal.position)
        return ""


def _open_store(settings: Settings, metrics: Metrics) -> Store:
    """The telemetry store with its schema up to date; blocking."""
    reference = settings.telemetry_password
    store = Store.open(
        settings.telemetry,
        data_dir=settings.data_path,
        limits=StoreLimits.of(settings.store),
        metrics=metrics.store,
        password="" if reference is None else resolve(reference).reveal(),
    )
    try:
        migrate(store)
        apply_retention(store, settings.retention)
    except BaseException:
        store.close()
        raise
    return store


def _open_journal(settings: Settings, clock: Clock, metrics: Metrics) -> Journal:
    """The journal with its tables up to date; blocking."""
    return Journal.open(
        settings.journal,
        now_us=clock.now_us,
        registry=metrics.registry,
        busy_timeout_s=settings.journal_wait_s_max,
    )


def _ingest(store: Store, clock: Clock, metrics: Metrics, loaded: Loaded) -> Ingest:
    return Ingest(store, clock=clock, metrics=metrics.ingest, limits=loaded.settings.ingest)

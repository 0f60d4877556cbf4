"""Alerts joined to the configuration: sinks follow the file, and the outbox is emptied."""

from __future__ import annotations

from controlplane.alerts.alert import AlertRouter, AlertSink, Notification
from controlplane.alerts.dispatch import Dispatcher, make_sinks
from controlplane.catalog.file import AlertEntry, ConfigFile
from controlplane.clock import Clock
from controlplane.journal.events import NewOutbox
from controlplane.journal.journal import Journal
from controlplane.metrics import AlertMetrics
from controlplane.settings import AlertSettings


class CurrentRouter(AlertRouter):
    """A router whose sinks are replaced when the configuration changes; entries made before keep their sink."""

    def __init__(self) -> None:
        super().__init__(())
        self._current = AlertRouter(())

    def use(self, sinks: tuple[AlertSink, ...]) -> None:
        """Takes other sinks from now on."""
        self._current = AlertRouter(sinks)

    def entries(self, notification: Notification) -> tuple[NewOutbox, ...]:
        """The outbox entries of a notification, one per sink that wants it."""
        return self._current.entries(notification)


class Telling:
    """Whom to tell, and the turns that tell them."""

    def __init__(self, journal: Journal, settings: AlertSettings, *, clock: Clock, metrics: AlertMetrics) -> None:
        self.router = CurrentRouter()
        self._journal, self._settings, self._clock, self._metrics = journal, settings, clock, metrics
        self._dispatcher = self._made(())
        self._wanted: tuple[AlertSink, ...] | None = None

    def use(self, config: ConfigFile) -> None:
        """Takes the sinks of a configuration that came into force; the next turn speaks to them."""
        self._wanted = tuple(_sink(entry) for entry in config.alerts)
        self.router.use(self._wanted)

    async def turn(self) -> None:
        """Delivers what is due."""
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            await self._dispatcher.aclose()
            self._dispatcher = self._made(wanted)
        await self._dispatcher.turn()

    async def aclose(self) -> None:
        """Gives up the connections."""
        await self._dispatcher.aclose()

    def _made(self, sinks: tuple[AlertSink, ...]) -> Dispatcher:
        made = make_sinks(sinks, self._settings, self._clock)
        return Dispatcher(self._journal, made, self._settings, clock=self._clock, metrics=self._metrics)


def _sink(entry: AlertEntry) -> AlertSink:
    return AlertSink(
        name=entry.name,
        url=entry.url,
        kind=entry.kind.value,
        secret=entry.secret,
        events=entry.events,
        allow_private=entry.allow_private,
        per_minute=entry.per_minute,
    )

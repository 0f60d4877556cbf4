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
        self._settings, self._clock = settings, clock
        self._dispatcher = Dispatcher(journal, (), settings, clock=clock, metrics=metrics)

    def use(self, config: ConfigFile) -> None:
        """Takes the sinks of a configuration that came into force; the next turn speaks to them."""
        sinks = tuple(_sink(entry) for entry in config.alerts)
        self._dispatcher.use(make_sinks(sinks, self._settings, self._clock))
        self.router.use(sinks)

    async def run(self) -> None:
        """Delivers what is due, for ever."""
        await self._dispatcher.run()

    async def aclose(self) -> None:
        """Gives up the connections."""
        await self._dispatcher.aclose()


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

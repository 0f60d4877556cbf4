"""Alerts joined to the configuration: sinks follow the file, and the outbox is emptied."""

from __future__ import annotations

import asyncio

from controlplane.alerts.alert import AlertRouter, AlertSink, Notification
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
    """Whom to tell, and the loop that tells them."""

    def __init__(self, journal: Journal, settings: AlertSettings, *, clock: Clock, metrics: AlertMetrics) -> None:
        self.router = CurrentRouter()
        self._journal, self._settings, self._clock, self._metrics = journal, settings, clock, metrics

    def use(self, config: ConfigFile) -> None:
        """Takes the sinks of a configuration that came into force."""
        self.router.use(tuple(_sink(entry) for entry in config.alerts))

    async def run(self) -> None:
        """Delivers what is due, for ever."""
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Gives up its connections."""


def _sink(entry: AlertEntry) -> AlertSink:
    return AlertSink(name=entry.name, url=entry.url, kind=entry.kind.value, secret=entry.secret, events=entry.events)

"""Copies of incident and run events in the store, so that dashboards can show them beside the telemetry; the journal stays the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controlplane.healing import events as e
from controlplane.healing.commands import HappenedCodec
from controlplane.healing.runs import RUN_TYPES
from controlplane.healing.state import RunState, evolve
from controlplane.incidents.incident import EVENT_TYPES, STREAM_PREFIX, history
from controlplane.journal.events import Event
from controlplane.journal.journal import Journal
from controlplane.store import schema
from controlplane.store.client import Store
from controlplane.store.rows import (
    IncidentEventRow,
    RunEventRow,
    incident_event_columns,
    run_event_columns,
)

PROJECTION = "telemetry-copies"
PAGE = 500
INCIDENT_TYPES = tuple(str(kind.__struct_config__.tag) for kind in EVENT_TYPES)
RUN_PREFIX = "run-"


class EventCopies:
    """Follows the journal by a checkpoint; what was copied but not checked off is left out the next time.

    An insert may come through though its process died or saw an error. So the first page after a start or an error is compared with what the
    store has; a page may have grown meanwhile, so that no name for it would be the same.
    """

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._sure = False  # that the store holds nothing after the checkpoint

    async def turn(self) -> None:
        """Copies what was appended since the last turn."""
        while await asyncio.to_thread(self._page):
            pass

    def _page(self) -> bool:
        """One page; whether there may be more. Blocking."""
        since = self._journal.checkpoint(PROJECTION)
        page = self._journal.read(since, PAGE, types=(*INCIDENT_TYPES, *RUN_TYPES))
        if not page:
            return False
        last = page[-1].global_pos
        incidents = self._new(schema.INCIDENT_EVENTS, STREAM_PREFIX, page)
        runs = self._new(schema.RUN_EVENTS, RUN_PREFIX, page)
        self._sure = False  # until this page is checked off as well
        if incidents:
            self._store.insert(schema.INCIDENT_EVENTS, incident_event_columns(self._incident_rows(incidents)))
        if runs:
            self._store.insert(schema.RUN_EVENTS, run_event_columns(self._run_rows(runs)))
        self._journal.save_checkpoint(PROJECTION, last)
        self._sure = True
        return len(page) == PAGE

    def _new(self, table: schema.Table, prefix: str, page: Sequence[Event]) -> list[Event]:
        """The events of a page that belong to a table and are not in it."""
        mine = [event for event in page if event.stream_id.startswith(prefix)]
        if self._sure or not mine:
            return mine
        there = self._store.rows(
            f"SELECT position FROM {table.name} WHERE position >= {{first:UInt64}} AND position <= {{last:UInt64}}",  # noqa: S608 - our name
            {"first": mine[0].global_pos, "last": mine[-1].global_pos},
        )
        known = {int(str(position)) for (position,) in there}
        return [event for event in mine if event.global_pos not in known]

    def _incident_rows(self, events: Sequence[Event]) -> list[IncidentEventRow]:
        rows: dict[int, IncidentEventRow] = {}
        for stream in dict.fromkeys(event.stream_id for event in events):
            for event, _, incident in history(self._journal.load(stream)):
                rows[event.global_pos] = IncidentEventRow(
                    at_us=event.occurred_us,
                    position=event.global_pos,
                    incident_id=incident.id,
                    type=event.type,
                    state=incident.state,
                    severity=incident.severity,
                    title=incident.title,
                    deployment=incident.deployments[0] if incident.deployments else "",
                    data=event.data.decode(),
                )
        return [rows[event.global_pos] for event in events]

    def _run_rows(self, events: Sequence[Event]) -> list[RunEventRow]:
        rows: dict[int, RunEventRow] = {}
        codec = HappenedCodec()
        for stream in dict.fromkeys(event.stream_id for event in events):
            state = RunState()
            for event in self._journal.load(stream):
                happened = codec.decode(event)
                state = evolve(state, happened)
                rows[event.global_pos] = RunEventRow(
                    at_us=event.occurred_us,
                    position=event.global_pos,
                    run_id=e.run_of(stream),
                    incident_id=state.incident.id if state.incident else "",
                    playbook=state.playbook_id,
                    type=event.type,
                    state=state.status,
                    step=str(getattr(happened.event, "step", "")),
                    data=event.data.decode(),
                )
        return [rows[event.global_pos] for event in events]

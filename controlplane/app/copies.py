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
    """Follows the journal by a checkpoint; a page that was copied but not checked off is copied again and stored once."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store

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
        incidents = [event for event in page if event.stream_id.startswith(STREAM_PREFIX)]
        runs = [event for event in page if event.stream_id.startswith(RUN_PREFIX)]
        token = f"journal/{since}-{page[-1].global_pos}"
        if incidents:
            columns = incident_event_columns(self._incident_rows(incidents))
            self._store.insert(schema.INCIDENT_EVENTS, columns, token=f"{token}:incidents")
        if runs:
            self._store.insert(schema.RUN_EVENTS, run_event_columns(self._run_rows(runs)), token=f"{token}:runs")
        self._journal.save_checkpoint(PROJECTION, page[-1].global_pos)
        return len(page) == PAGE

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

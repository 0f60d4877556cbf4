"""Incidents over HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar import get
from litestar.params import PathParameter, QueryParameter

from controlplane.api.pages import Rows
from controlplane.api.parts import PartsOf
from controlplane.api.views import IncidentDetail, IncidentSummary

_TAGS = ["incidents"]


class IncidentList(msgspec.Struct, frozen=True):
    """Incidents, newest first."""

    incidents: tuple[IncidentSummary, ...]


@get("/api/v1/incidents", tags=_TAGS, summary="Incidents, newest first")
async def incidents(
    parts: PartsOf,
    wanted: Annotated[
        Literal["pending", "firing", "resolved", "dismissed"] | None, QueryParameter(name="state")
    ] = None,
    limit: Rows = 50,
) -> IncidentList:
    """Incidents, newest first."""
    limit = min(limit, parts.settings.api.page_rows_max)
    return IncidentList(tuple(await parts.incidents.list(state=wanted, limit=limit)))


@get("/api/v1/incidents/{incident_id:str}", tags=_TAGS, summary="One incident with its timeline")
async def incident(incident_id: Annotated[str, PathParameter(max_length=128)], parts: PartsOf) -> IncidentDetail:
    """One incident with all that happened to it, the steps of its runs among them, oldest first."""
    return await parts.incidents.show(incident_id)


ROUTES = (incidents, incident)

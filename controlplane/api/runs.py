"""Playbook runs over HTTP: see them, decide about them, and stop all of them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Request, get, post, put
from litestar.datastructures import State
from litestar.params import JSONBody, PathParameter, QueryParameter

from controlplane.api.pages import Rows
from controlplane.api.parts import PartsOf
from controlplane.api.views import KillSwitch, RunDetail, RunSummary

_TAGS = ["healing"]
_Id = Annotated[str, PathParameter(max_length=128)]
_AnyRequest = Request[object, object, State]


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person decides, and why; kept in the journal."""

    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class KillSwitchWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether healing should stand still, and why."""

    engaged: bool
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class RunList(msgspec.Struct, frozen=True):
    """Playbook runs, newest first."""

    runs: tuple[RunSummary, ...]


@get("/api/v1/runs", tags=_TAGS, summary="Playbook runs, newest first")
async def runs(
    parts: PartsOf,
    wanted: Annotated[str | None, QueryParameter(name="state", max_length=64)] = None,
    limit: Rows = 50,
) -> RunList:
    """Runs, newest first."""
    limit = min(limit, parts.settings.api.page_rows_max)
    return RunList(tuple(await parts.runs.list(state=wanted, limit=limit)))


@get("/api/v1/runs/{run_id:str}", tags=_TAGS, summary="One run with its events")
async def run(run_id: _Id, parts: PartsOf) -> RunDetail:
    """One run with its events, oldest first."""
    return await parts.runs.show(run_id)


@post("/api/v1/runs/{run_id:str}/approve", status_code=200, tags=_TAGS, summary="Approve what a run waits for")
async def approve(run_id: _Id, data: JSONBody[Decision], parts: PartsOf, request: _AnyRequest) -> RunDetail:
    """Lets a run go on that waits for a person."""
    await parts.runs.approve(run_id, actor=request.state.actor, reason=data.reason)
    return await parts.runs.show(run_id)


@post("/api/v1/runs/{run_id:str}/reject", status_code=200, tags=_TAGS, summary="Refuse what a run waits for")
async def reject(run_id: _Id, data: JSONBody[Decision], parts: PartsOf, request: _AnyRequest) -> RunDetail:
    """Refuses what a run waits for; the run ends and rolls back."""
    await parts.runs.reject(run_id, actor=request.state.actor, reason=data.reason)
    return await parts.runs.show(run_id)


@post("/api/v1/runs/{run_id:str}/abort", status_code=200, tags=_TAGS, summary="Stop a run and roll back")
async def abort(run_id: _Id, data: JSONBody[Decision], parts: PartsOf, request: _AnyRequest) -> RunDetail:
    """Stops a run; what it did is rolled back."""
    await parts.runs.abort(run_id, actor=request.state.actor, reason=data.reason)
    return await parts.runs.show(run_id)


@get("/api/v1/kill-switch", tags=_TAGS, summary="Whether healing may act")
async def kill_switch(parts: PartsOf) -> KillSwitch:
    """Whether healing may act, and who said otherwise."""
    return await parts.runs.kill_switch()


@put("/api/v1/kill-switch", tags=_TAGS, summary="Stop all healing, or let it act again")
async def set_kill_switch(data: JSONBody[KillSwitchWish], parts: PartsOf, request: _AnyRequest) -> KillSwitch:
    """Engages or releases the kill switch; doing it twice changes nothing."""
    switch = parts.runs.engage if data.engaged else parts.runs.release
    await switch(actor=request.state.actor, reason=data.reason)
    return await parts.runs.kill_switch()


ROUTES = (runs, run, approve, reject, abort, kill_switch, set_kill_switch)

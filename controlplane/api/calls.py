"""Calls over HTTP: what was asked, who answered, what it cost."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import get
from litestar.params import FromQuery, PathParameter, QueryParameter

from controlplane.api.pages import Period, Rows, bounded
from controlplane.api.parts import PartsOf
from controlplane.contract.records import CallRecord, Outcome
from controlplane.store.queries.calls import CallFilter

_TAGS = ["calls"]
_Label = Annotated[str, QueryParameter(max_length=256)]


class CallPage(msgspec.Struct, frozen=True):
    """Calls, newest first. next_us: ask again with `to_us` set to this for older ones; 0 when there are none."""

    calls: tuple[CallRecord, ...]
    next_us: int


@get("/api/v1/calls", tags=_TAGS, summary="Calls, newest first")
async def calls(
    parts: PartsOf,
    from_us: Period = None,
    to_us: Period = None,
    tenant: _Label = "",
    agent: _Label = "",
    session: _Label = "",
    model: _Label = "",
    outcome: FromQuery[Outcome | None] = None,
    limit: Rows = 100,
) -> CallPage:
    """Calls that started in [from_us, to_us), by default in the last hour, without their attempts."""
    from_us, to_us = bounded(from_us, to_us, now_us=parts.clock.now_us())
    limit = min(limit, parts.settings.api.page_rows_max)
    wanted = CallFilter(
        from_us=from_us,
        to_us=to_us,
        tenant=tenant,
        agent=agent,
        session=session,
        model=model,
        outcome=outcome.value if outcome else "",
        limit=limit,
    )
    found = tuple(await parts.calls.list(wanted))
    return CallPage(calls=found, next_us=found[-1].started_us if len(found) == limit else 0)


@get("/api/v1/calls/{call_id:str}", tags=_TAGS, summary="One call with its attempts")
async def call(call_id: Annotated[str, PathParameter(max_length=128)], parts: PartsOf) -> CallRecord:
    """One call and everything that is billed or measured about it."""
    return await parts.calls.show(call_id)


ROUTES = (calls, call)

"""Where money went, what was saved and whether the books agree, over HTTP: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar import Response, get
from litestar.enums import MediaType
from litestar.params import FromQuery, QueryParameter

from controlplane.api.pages import Period, bounded
from controlplane.api.parts import PartsOf
from controlplane.costs import formats
from controlplane.costs.report import Reconciliation
from controlplane.costs.savings import Savings
from controlplane.errors import BadRequest

_TAGS = ["costs"]
_DIMENSIONS_MAX = 5
_Tenant = Annotated[str, QueryParameter(max_length=128, description="Only this tenant's.")]


@get("/api/v1/costs", tags=_TAGS, summary="Cost by dimensions")
async def costs(
    parts: PartsOf,
    by: Annotated[str, QueryParameter(max_length=128, description="Dimensions, comma between.")] = "tenant",
    from_us: Period = None,
    to_us: Period = None,
    tenant: _Tenant = "",
    format: FromQuery[Literal["json", "csv"]] = "json",  # noqa: A002 - the word of the interface
) -> Response[bytes]:
    """Cost of the calls that started in [from_us, to_us), by default in the last hour; the total is the sum of the rows."""
    dimensions = tuple(name.strip() for name in by.split(",") if name.strip())
    if not dimensions or len(dimensions) > _DIMENSIONS_MAX or len(set(dimensions)) != len(dimensions):
        raise BadRequest(f"`by` takes one to {_DIMENSIONS_MAX} different dimensions with a comma between")
    from_us, to_us = bounded(from_us, to_us, now_us=parts.clock.now_us())
    report = await parts.costs.report(dimensions=dimensions, from_us=from_us, to_us=to_us, tenant=tenant)
    if format == "csv":
        headers = {"content-disposition": 'attachment; filename="costs.csv"'}
        return Response(formats.as_csv(report).encode(), media_type="text/csv", headers=headers)
    return Response(msgspec.json.encode(report), media_type=MediaType.JSON)


@get("/api/v1/savings", tags=_TAGS, summary="What was saved")
async def savings(parts: PartsOf, from_us: Period = None, to_us: Period = None, tenant: _Tenant = "") -> Savings:
    """What the cache and joined calls saved in [from_us, to_us), by default in the last hour."""
    from_us, to_us = bounded(from_us, to_us, now_us=parts.clock.now_us())
    return await parts.costs.savings(from_us=from_us, to_us=to_us, tenant=tenant)


@get("/api/v1/reconciliation", tags=_TAGS, summary="Whether the books agree")
async def reconciliation(parts: PartsOf) -> Reconciliation:
    """The rows that proxies sent, beside the ledgers of the live ones."""
    return await parts.costs.reconcile(parts.publisher.statuses())


ROUTES = (costs, savings, reconciliation)

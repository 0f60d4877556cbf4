"""Where money went, over HTTP: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import Annotated, Literal

import msgspec
from litestar import Response, get
from litestar.enums import MediaType
from litestar.params import FromQuery, QueryParameter

from controlplane.api.pages import Period, bounded
from controlplane.api.parts import PartsOf
from controlplane.api.views import CostReport
from controlplane.contract.pricing import NANOUSD_PER_USD
from controlplane.errors import BadRequest

_DIMENSIONS_MAX = 5
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@get("/api/v1/costs", tags=["costs"], summary="Cost by dimensions")
async def costs(
    parts: PartsOf,
    by: Annotated[str, QueryParameter(max_length=128, description="Dimensions, comma between.")] = "tenant",
    from_us: Period = None,
    to_us: Period = None,
    format: FromQuery[Literal["json", "csv"]] = "json",  # noqa: A002 - the word of the interface
) -> Response[bytes]:
    """Cost of the calls that started in [from_us, to_us), by default in the last hour."""
    dimensions = tuple(name.strip() for name in by.split(",") if name.strip())
    if not dimensions or len(dimensions) > _DIMENSIONS_MAX or len(set(dimensions)) != len(dimensions):
        raise BadRequest(f"`by` takes one to {_DIMENSIONS_MAX} different dimensions with a comma between")
    from_us, to_us = bounded(from_us, to_us, now_us=parts.clock.now_us())
    report = await parts.costs.report(dimensions=dimensions, from_us=from_us, to_us=to_us)
    if format == "csv":
        headers = {"content-disposition": 'attachment; filename="costs.csv"'}
        return Response(as_csv(report).encode(), media_type="text/csv", headers=headers)
    return Response(msgspec.json.encode(report), media_type=MediaType.JSON)


def as_csv(report: CostReport) -> str:
    """The report as CSV with exact decimal USD; cells that a spreadsheet would run as a formula are made text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    counts = ("calls", "tokens_in", "tokens_out", "estimated_calls", "unpriced_calls")
    writer.writerow([*report.dimensions, "cost_usd", "saved_usd", *counts])
    for row in report.rows:
        money = (exact_usd(row.nanousd), exact_usd(row.saved_nanousd))
        writer.writerow([*(_as_text(value) for value in row.by), *money, *(getattr(row, name) for name in counts)])
    return out.getvalue()


def exact_usd(nanousd: int) -> str:
    """USD with all nine decimals."""
    sign, amount = ("-", -nanousd) if nanousd < 0 else ("", nanousd)
    return f"{sign}{amount // NANOUSD_PER_USD}.{amount % NANOUSD_PER_USD:09d}"


def _as_text(value: str) -> str:
    return "'" + value if value.startswith(_FORMULA_STARTS) else value


ROUTES = (costs,)

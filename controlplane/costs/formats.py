"""Reports as people and programs want them: a table for the terminal, JSON, and CSV that a spreadsheet opens without harm.

Money is written as exact decimals of US dollars; nothing here adds or rounds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from rich.table import Table

from controlplane.contract.pricing import NANOUSD_PER_USD, TOKEN_KINDS
from controlplane.costs.report import Completeness, CostReport
from controlplane.store.queries.costs import CostRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_encode = msgspec.json.Encoder().encode

MEASURES = (
    "calls", *(f"tokens_{kind}" for kind in TOKEN_KINDS), "cost_usd", "items_usd", "saved_usd", "calls_final", "calls_estimated", "calls_unpriced",
)  # fmt: skip
PERIOD = ("period_from", "period_to", "timezone", "currency", "price_book", "generated_at")


def usd(nanousd: int) -> str:
    """An amount in US dollars with all nine places, such as `0.000150000`; exact."""
    sign, whole = ("-", -nanousd) if nanousd < 0 else ("", nanousd)
    return f"{sign}{whole // NANOUSD_PER_USD}.{whole % NANOUSD_PER_USD:09d}"


def moment(us: int) -> str:
    """A moment as RFC 3339 in UTC, without microseconds where there are none."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


def as_json(report: CostReport) -> bytes:
    """The report as one JSON document: amounts as decimal text and as whole nano-USD, moments as text."""
    return _encode(
        {
            "dimensions": report.dimensions,
            "period": _header(report.header),
            "completeness": {
                name: getattr(report.header, name)
                for name in ("calls", "calls_final", "calls_estimated", "calls_unpriced")
            },
            "rows": [
                {"by": dict(zip(report.dimensions, row.by, strict=True)), **_measures(row)} for row in report.rows
            ],
            "total": _measures(report.total),
        }
    )


def as_csv(report: CostReport) -> str:
    """The report as RFC 4180 text: a header, one line a row, and a last line with the total; each line says the period.

    The first column tells rows (`row`) from the total (`total`). A text that a spreadsheet would take for a formula gets an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(("line", *report.dimensions, *MEASURES, *PERIOD))
    period = _header(report.header).values()
    for row in report.rows:
        writer.writerow(("row", *(_harmless(value) for value in row.by), *_cells(row), *period))
    writer.writerow(("total", *("" for _ in report.dimensions), *_cells(report.total), *period))
    return out.getvalue()


def as_table(report: CostReport) -> Table:
    """The report for a terminal; what it is about and how complete it is stands below it."""
    header = report.header
    caption = (
        f"{moment(header.from_us)} to {moment(header.to_us)} (UTC), price book {header.price_book}, generated {moment(header.generated_us)}\n"
        f"{header.calls} calls: {header.calls_final} final, {header.calls_estimated} estimated, {header.calls_unpriced} unpriced"
    )
    if header.calls_unpriced:
        caption += "; unpriced calls cost more than is in these sums, nobody knows how much: `hephaestus check-config` names their models"
    table = Table(
        title="Costs" + (f" by {', '.join(report.dimensions)}" if report.dimensions else ""),
        caption=caption,
        caption_justify="left",
    )
    for name in report.dimensions:
        table.add_column(name, overflow="fold")
    for name in ("calls", "tokens in", "tokens out", "cost USD", "saved USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*(_printable(value) for value in row.by), *_short(row))
    table.add_section()
    labels = ["total", *("" for _ in report.dimensions[1:])] if report.dimensions else []
    table.add_row(*labels, *_short(report.total), style="bold")
    return table


def _header(header: Completeness) -> dict[str, str]:
    values = (
        moment(header.from_us),
        moment(header.to_us),
        header.timezone,
        header.currency,
        header.price_book,
        moment(header.generated_us),
    )
    return dict(zip(PERIOD, values, strict=True))


def _measures(row: CostRow) -> dict[str, object]:
    return {
        "calls": row.calls,
        "tokens": {kind: getattr(row.tokens, kind) for kind in TOKEN_KINDS},
        "cost_usd": usd(row.cost_nanousd),
        "cost_nanousd": row.cost_nanousd,
        "items_nanousd": row.items_nanousd,
        "saved_usd": usd(row.saved_nanousd),
        "saved_nanousd": row.saved_nanousd,
        "calls_final": row.calls_final,
        "calls_estimated": row.calls_estimated,
        "calls_unpriced": row.calls_unpriced,
    }


def _cells(row: CostRow) -> Iterator[str | int]:
    """The cells of MEASURES, in their order."""
    yield row.calls
    yield from (getattr(row.tokens, kind) for kind in TOKEN_KINDS)
    yield from (usd(row.cost_nanousd), usd(sum(row.items_nanousd.values())), usd(row.saved_nanousd))
    yield from (row.calls_final, row.calls_estimated, row.calls_unpriced)


def _short(row: CostRow) -> tuple[str, ...]:
    return (
        f"{row.calls:,}",
        f"{row.tokens.total_input:,}",
        f"{row.tokens.total_output:,}",
        usd(row.cost_nanousd),
        usd(row.saved_nanousd),
    )


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _printable(text: str) -> str:
    """A client's text without control characters and without rich's markup."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text).replace("[", r"\[")

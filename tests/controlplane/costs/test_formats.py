"""Reports can be read by people, programs and spreadsheets, exactly and without harm."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controlplane.contract.pricing import TOKEN_KINDS, Tokens
from controlplane.costs.formats import MEASURES, as_csv, as_json, as_table, moment, usd
from controlplane.costs.report import CostReport, build
from controlplane.store.queries.costs import CostRow

PERIOD = {"from_us": 1_767_225_600_000_000, "to_us": 1_767_312_000_000_000, "generated_us": 1_767_312_000_000_001}


def row(*by: str, nanousd: int = 0, unpriced: int = 0) -> CostRow:
    """A row with one call."""
    return CostRow(
        by=by,
        calls=1,
        tokens=Tokens(input=3, output=4),
        cost_nanousd=nanousd,
        saved_nanousd=nanousd,
        calls_final=1,
        calls_estimated=0,
        calls_unpriced=unpriced,
        items_nanousd={"search": nanousd // 2, "container": nanousd // 4},
    )


def report(*rows: CostRow, dimensions: tuple[str, ...] = ("tenant",)) -> CostReport:
    """A report of these rows."""
    return build(dimensions, rows, price_book="2026-01-01", **PERIOD)


@given(st.integers(-(10**20), 10**20))
def test_amounts_are_exact_decimals(nanousd: int) -> None:
    """A written amount is the amount, with all nine places."""
    assert nanousd == int(Decimal(usd(nanousd)) * 10**9)
    assert 9 == len(usd(nanousd).partition(".")[2])


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 10**18)), max_size=8))
def test_csv_comes_back_as_it_was(values: list[tuple[str, int]]) -> None:
    """Whatever clients call themselves, a CSV reader gets each cell back, and the amounts add up to the last line exactly."""
    wanted = report(*(row(name, nanousd=amount) for name, amount in values))
    lines = list(csv.reader(io.StringIO(as_csv(wanted), newline="")))
    head, body, total = lines[0], lines[1:-1], lines[-1]
    assert (len(values), "total") == (len(body), total[0])
    assert {len(head)} == {len(line) for line in lines}
    for name in ("cost_usd", "items_usd"):
        column = head.index(name)
        assert sum((Decimal(line[column]) for line in body), Decimal(0)) == Decimal(total[column])
    assert [found.by[0] for found in wanted.rows] == [
        line[1][1:] if line[1][:1] == "'" != found.by[0][:1] else line[1]
        for line, found in zip(body, wanted.rows, strict=True)
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"])
def test_spreadsheets_get_no_formulas(name: str) -> None:
    """A client's text that a spreadsheet would run is written as text; the amounts stay numbers."""
    line = list(csv.reader(io.StringIO(as_csv(report(row(name, nanousd=5))), newline="")))[1]
    assert f"'{name}" == line[1]
    assert "0.000000005" in line


def test_csv_lines_say_everything() -> None:
    """Lines end as RFC 4180 asks, every line has period, zone, currency, price book and moment, and quotes are doubled."""
    text = as_csv(report(row('a "quoted", name', nanousd=1)))
    assert text.count("\r\n") == text.count("\n") == 3
    assert '"a ""quoted"", name"' in text
    head, first, _ = csv.reader(io.StringIO(text, newline=""))
    assert ["line", "tenant", *MEASURES] == head[: 2 + len(MEASURES)]
    assert [
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
        "UTC",
        "USD",
        "2026-01-01",
        "2026-01-02T00:00:00.000001Z",
    ] == first[-6:]


def test_json_has_both_forms_of_money() -> None:
    """Amounts are decimal text for people and whole nano-USD for programs; the total is the sum."""
    document = json.loads(as_json(report(row("acme", nanousd=1), row("beta", nanousd=10**18))))
    assert [{"tenant": "beta"}, {"tenant": "acme"}] == [line["by"] for line in document["rows"]]
    assert ("1000000000.000000001", 10**18 + 1) == (document["total"]["cost_usd"], document["total"]["cost_nanousd"])
    assert ({"calls": 2, "calls_final": 2, "calls_estimated": 0, "calls_unpriced": 0}, "UTC") == (
        document["completeness"],
        document["period"]["timezone"],
    )
    assert set(TOKEN_KINDS) == set(document["total"]["tokens"])


def printed(wanted: CostReport) -> str:
    """What a terminal shows."""
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(as_table(wanted))
    return console.export_text()


def test_the_table_shows_rows_total_and_completeness() -> None:
    """People see every row, the total, the period, and that unpriced calls are missing from the sums."""
    text = printed(report(row("acme", nanousd=1_500_000_000), row("beta", unpriced=1)))
    for part in (
        "acme",
        "beta",
        "total",
        "1.500000000",
        "2026-01-01T00:00:00Z",
        "2 calls: 2 final, 0 estimated, 1 unpriced",
        "check-config",
    ):
        assert part in text


def test_the_table_is_not_fooled_by_names() -> None:
    """Markup and control characters in a client's name are shown, not obeyed."""
    text = printed(report(row("[bold]x[/bold]"), row("a\x1b[2Jb\nc")))
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text
    assert "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c" in text


def test_a_report_without_dimensions_prints() -> None:
    """The grand total alone is a table, a CSV of two or three lines, and JSON."""
    whole = report(row(nanousd=7), dimensions=())
    assert "0.000000007" in printed(whole)
    assert 3 == len(as_csv(whole).splitlines())
    assert 7 == json.loads(as_json(whole))["total"]["cost_nanousd"]


def test_moments_are_utc() -> None:
    """Moments are RFC 3339 in UTC."""
    assert ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000001Z"] == [moment(0), moment(1)]

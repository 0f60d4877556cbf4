"""The Overview board: every panel complete, without overlap, and with SQL that gives what it says on seeded rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

import pytest

from controlplane.contract.records import CacheState
from controlplane.store import schema
from controlplane.store.client import Store
from controlplane.store.queries.series import FAILED
from dashboards import queries
from dashboards.model import Panel, QueryVariable, RowPanel
from dashboards.overview import overview
from tests.controlplane.store.fakes import START_US
from tests.dashboards.macros import ALL, Request, expand

BOARD = overview()
PANELS = {panel.title: panel for panel in BOARD.panels if isinstance(panel, Panel)}
LINES = [title for title, panel in PANELS.items() if panel.type in {"timeseries", "state-timeline"}]
START_S = START_US // 1_000_000
TEN_MINUTES = {"from_s": START_S, "to_s": START_S + 600}
EVERYTHING = Request(**TEN_MINUTES, variables={"tenant": [ALL], "deployment": [ALL]})
CHOICES = {
    "all": EVERYTHING,
    "one": Request(**TEN_MINUTES, variables={"tenant": ["acme"], "deployment": ["openai/gpt"]}),
    "many": Request(**TEN_MINUTES, variables={"tenant": ["acme", "zeta"], "deployment": ["openai/gpt", "backup/gpt"]}),
    "hostile": Request(**TEN_MINUTES, variables={"tenant": ["a') OR ('1'='1"], "deployment": [ALL]}),
    "empty range": Request(
        from_s=START_S - 7200, to_s=START_S - 3600, variables={"tenant": [ALL], "deployment": [ALL]}
    ),
}

Row = Mapping[str, object]


def _rows(store: Store, title: str, request: Request = EVERYTHING) -> list[dict[str, object]]:
    return store.mappings(expand(PANELS[title].targets[0].raw_sql, request))


def _numbers(row: Row) -> dict[str, float]:
    """The numeric columns of a row."""
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float | Decimal)}


def test_the_board_shows_what_the_overview_must() -> None:
    """Requests, errors, latency, first token, tokens, cost, cache, breakers, overrides, incidents; and not too much."""
    assert {
        "Requests", "Errors", "Latency p95", "First token p95", "Spend", "Cache hits", "Open incidents", "Open breakers", "Requests by outcome",
        "Errors by model", "Latency", "First token", "Tokens", "Cost per hour", "Cache hit ratio", "Saved per hour", "Agents", "Models",
        "Failed attempts by deployment", "First token p95 by deployment", "Breakers", "Overrides", "Incidents",
    } == PANELS.keys()  # fmt: skip
    assert len(PANELS) <= 25


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_is_complete(title: str) -> None:
    """Title, a description that is a sentence, a unit, the data source by variable, and one query."""
    panel = PANELS[title]
    assert panel.description.endswith(".")
    assert panel.field_config.defaults.unit
    assert ("${datasource}", "grafana-clickhouse-datasource") == (panel.datasource.uid, panel.datasource.type)
    (target,) = panel.targets
    assert ("A", panel.datasource) == (target.ref_id, target.datasource)
    steps = panel.field_config.defaults.thresholds.steps
    assert [None, *sorted(step.value for step in steps[1:] if step.value is not None)] == [step.value for step in steps]


@pytest.mark.parametrize("title", LINES)
def test_time_series_filter_by_time_and_are_ordered(title: str) -> None:
    """A line without a time filter would read the whole table."""
    sql = PANELS[title].targets[0].raw_sql
    assert "$__timeFilter(" in sql
    assert "ORDER BY time" in sql
    assert (0, "timeseries") == (PANELS[title].targets[0].format, PANELS[title].targets[0].query_type)


def test_thresholds_are_said_in_words() -> None:
    """Colour is never the only sign: a description or a text names every bound that a number is judged by."""
    for panel in PANELS.values():
        defaults = panel.field_config.defaults
        if len(defaults.thresholds.steps) > 1:
            assert defaults.mappings or re.search(r"\d+ (%|s)", panel.description), panel.title


def test_variables_are_quoted_and_filters_can_be_switched_off() -> None:
    """No statement holds a bare variable, and each use of one stands in a $__conditionalAll."""
    for panel in PANELS.values():
        sql = panel.targets[0].raw_sql
        for name in ("tenant", "deployment"):
            uses = sql.count(f"${{{name}")
            assert uses == sql.count(f"${{{name}:singlequote}}") == sql.count(f"), ${name})"), panel.title


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    """Each cell of the grid belongs to one panel at most, and nothing sticks out."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD.panels:
        place = panel.grid_pos
        cells = {(x, y) for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)}
        assert not cells & taken, panel.title
        assert place.x + place.w <= 24
        taken |= cells
    ids = [panel.id for panel in BOARD.panels]
    assert len(ids) == len(set(ids))
    assert 6 == sum(isinstance(panel, RowPanel) for panel in BOARD.panels)


def test_tables_exist_and_closed_sets_are_the_contracts() -> None:
    """What the SQL reads and compares with is what the store and the contract say."""
    tables = {table.name for table in schema.TABLES}
    texts = [text for name, text in vars(queries).items() if name.isupper() and isinstance(text, str)]
    for name in re.findall(r"FROM (\w+)", " ".join(texts)):
        assert name in tables
    assert {outcome.value for outcome in FAILED} == set(re.findall(r"\w+", queries.FAILED))
    assert {state.value for state in CacheState} - {"miss", "bypass"} == set(re.findall(r"\w+", queries.FROM_CACHE))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_statement_runs_whatever_is_chosen(seeded: Store, choice: str) -> None:
    """All, one, many and hostile choices, and an empty range: no statement fails, and lines have the shape Grafana needs."""
    for title in PANELS:
        rows = _rows(seeded, title, CHOICES[choice])
        if title in LINES and rows:
            assert "time" == next(iter(rows[0]))
            assert all(isinstance(row["time"], datetime) for row in rows)
            assert sorted(str(row["time"]) for row in rows) == [str(row["time"]) for row in rows]
            assert sum(isinstance(value, str) for value in rows[0].values()) <= 1
            assert any(_numbers(row) for row in rows), title


def test_every_panel_shows_something_of_the_seed(seeded: Store) -> None:
    """No panel is empty over the seeded ten minutes."""
    assert [] == [title for title in PANELS if not _rows(seeded, title)]


def test_a_hostile_value_chooses_nothing(seeded: Store) -> None:
    """A quote in a variable's value stays within its quotes."""
    (row,) = _rows(seeded, "Requests", CHOICES["hostile"])
    assert 0.0 == row["requests"]


@pytest.mark.parametrize(
    ("title", "column", "value"),
    [
        ("Requests", "requests", 40 / 600),
        ("Errors", "errors", 0.25),
        ("Cache hits", "hits", 0.25),
        ("Spend", "cost", 10 * 3 * 0.00025 * 6),  # three prices a minute for ten minutes, as an hour
        ("Latency p95", "p95", 1.0),
        ("First token p95", "p95", 0.4),
        ("Open incidents", "open", 1),
        ("Open breakers", "open", 1),
    ],
)
def test_the_numbers_are_right(seeded: Store, title: str, column: str, value: float) -> None:
    """Each single number is what the seed adds up to."""
    (row,) = _rows(seeded, title)
    assert value == pytest.approx(float(str(row[column])), rel=1e-6)


def test_the_lines_are_right(seeded: Store) -> None:
    """Requests by outcome, errors, cost and states, minute by minute."""
    outcomes = {str(row["outcome"]): row["requests"] for row in _rows(seeded, "Requests by outcome")}
    assert {"ok": 3 / 60, "exhausted": 1 / 60} == pytest.approx(outcomes)
    assert 10 == len(_rows(seeded, "Tokens"))
    cost = [row["cost"] for row in _rows(seeded, "Cost per hour") if row["tenant"] == "acme"]
    assert [3 * 0.00025 * 60] * 10 == pytest.approx(cost)
    failed = {str(row["deployment"]): row["failed"] for row in _rows(seeded, "Failed attempts by deployment")}
    assert {"openai/gpt": 2 / 3, "backup/gpt": 0.0} == pytest.approx(failed)
    states = {str(row["deployment"]): row["state"] for row in _rows(seeded, "Breakers")}
    assert {"openai/gpt": 2, "backup/gpt": 0} == states
    assert {1} == {row["leases"] for row in _rows(seeded, "Overrides")}


def test_the_incident_table_leads_with_what_is_open(seeded: Store) -> None:
    """The open one first; a resolved one only while its time is shown."""
    rows = _rows(seeded, "Incidents")
    assert [("inc_1", "firing", "openai/gpt"), ("inc_0", "resolved", "backup/gpt")] == [
        (row["incident_id"], row["state"], row["deployment"]) for row in rows
    ]
    assert "calls to openai/gpt fail" == rows[0]["title"]
    assert ["inc_1"] == [row["incident_id"] for row in _rows(seeded, "Incidents", CHOICES["empty range"])]


def test_the_tables_are_right(seeded: Store) -> None:
    """Spend by agent and by model, unpriced calls counted apart."""
    agents = {str(row["agent"]): row for row in _rows(seeded, "Agents")}
    assert {"scout": 30, "ranger": 10} == {name: row["requests"] for name, row in agents.items()}
    assert 0.005 == pytest.approx(float(str(agents["ranger"]["cost"])))
    (model,) = _rows(seeded, "Models")
    assert ("gpt", 40, 10) == (model["alias"], model["requests"], model["unpriced"])


def test_variables_and_annotations_run(seeded: Store) -> None:
    """Tenants and deployments to choose from, and marks with time and text."""
    values = {
        one.name: [row[one.name] for row in seeded.mappings(expand(one.query, EVERYTHING))]
        for one in BOARD.templating.list
        if isinstance(one, QueryVariable)
    }
    assert {"tenant": ["acme", "zeta"], "deployment": ["backup/gpt", "openai/gpt"]} == values
    marks = {one.name: seeded.mappings(expand(one.target.raw_sql, EVERYTHING)) for one in BOARD.annotations.list}
    assert ["incident fired: calls to openai/gpt fail"] == [
        row["text"] for row in marks["Incidents"] if row["text"] != "" and "openai" in str(row["text"])
    ]
    assert ["failover: run planned"] == [row["text"] for row in marks["Healing"]]

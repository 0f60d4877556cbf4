"""The part of Grafana's dashboard JSON (schema version 39) that our boards use, as frozen structs that encode to it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
"""Options of panel plugins, which Grafana does not type either."""

DATASOURCE_TYPE = "grafana-clickhouse-datasource"
SCHEMA_VERSION = 39


class Datasource(msgspec.Struct, frozen=True, rename="camel"):
    """Which data source answers; a variable, so that a board can be moved between installations."""

    type: str = DATASOURCE_TYPE
    uid: str = "${datasource}"


class Target(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One query. format: 0 time series (a `time` column, labels, numbers), 1 table."""

    ref_id: str = "A"
    datasource: Datasource = Datasource()
    editor_type: Literal["sql"] = "sql"
    raw_sql: str
    format: Literal[0, 1]
    query_type: Literal["timeseries", "table"]


class GridPos(msgspec.Struct, frozen=True):
    """Where a panel lies on the grid of 24 columns."""

    h: int
    w: int
    x: int
    y: int


class Step(msgspec.Struct, frozen=True):
    """From `value` on this colour; the first has none."""

    color: str
    value: float | None


class Thresholds(msgspec.Struct, frozen=True):
    """Colours by value, in ascending order."""

    steps: tuple[Step, ...]
    mode: Literal["absolute"] = "absolute"


class Link(msgspec.Struct, frozen=True, rename="camel"):
    """Where a click on a value leads."""

    title: str
    url: str
    target_blank: bool = False


class FieldDefaults(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """How values are shown. unit: Grafana's id of one, always given."""

    unit: str
    thresholds: Thresholds
    color: dict[str, Json]
    custom: dict[str, Json] = {}
    mappings: tuple[dict[str, Json], ...] = ()
    links: tuple[Link, ...] = ()
    no_value: str = "no data"
    min: float | None = None
    max: float | None = None
    decimals: int | None = None


class Override(msgspec.Struct, frozen=True):
    """Other defaults for the fields that match."""

    matcher: dict[str, Json]
    properties: tuple[dict[str, Json], ...]


class FieldConfig(msgspec.Struct, frozen=True):
    """How all fields of a panel are shown."""

    defaults: FieldDefaults
    overrides: tuple[Override, ...] = ()


class Panel(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One panel. interval: the shortest step of its time axis."""

    id: int
    type: str
    title: str
    description: str
    grid_pos: GridPos
    datasource: Datasource
    targets: tuple[Target, ...]
    field_config: FieldConfig
    options: dict[str, Json]
    interval: str = "1m"


class RowPanel(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A heading over panels."""

    id: int
    title: str
    grid_pos: GridPos
    type: Literal["row"] = "row"
    collapsed: bool = False
    panels: tuple[Panel, ...] = ()


class Current(msgspec.Struct, frozen=True):
    """What a variable is set to."""

    text: str | list[str]
    value: str | list[str]


class QueryVariable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A variable whose values come from a query; several may be chosen, and all are at first."""

    name: str
    label: str
    description: str
    query: str
    definition: str
    type: Literal["query"] = "query"
    datasource: Datasource = Datasource()
    include_all: bool = True
    multi: bool = True
    refresh: int = 2  # whenever the time range changes
    sort: int = 1
    current: Current = Current(text=["All"], value=["$__all"])
    options: tuple[dict[str, Json], ...] = ()
    hide: int = 0


class DatasourceVariable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The variable that chooses the data source."""

    name: str = "datasource"
    label: str = "Data source"
    type: Literal["datasource"] = "datasource"
    query: str = DATASOURCE_TYPE
    current: Current
    include_all: bool = False
    multi: bool = False
    refresh: int = 1
    options: tuple[dict[str, Json], ...] = ()
    hide: int = 0


Variable = QueryVariable | DatasourceVariable


class Templating(msgspec.Struct, frozen=True):
    """The variables of a board."""

    list: tuple[Variable, ...]


class Annotation(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Marks on all time axes, from a query with the columns time, text and tags."""

    name: str
    datasource: Datasource = Datasource()
    enable: bool = True
    icon_color: str
    target: Target


class Annotations(msgspec.Struct, frozen=True):
    """The annotations of a board."""

    list: tuple[Annotation, ...]


class TimeRange(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What is shown at first."""

    from_: str = "now-1h"
    to: str = "now"


class DashboardLink(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A link at the top of a board, with its time range and variables."""

    title: str
    url: str
    type: Literal["link"] = "link"
    icon: str = "external link"
    tooltip: str = ""
    keep_time: bool = True
    include_vars: bool = True
    target_blank: bool = True
    as_dropdown: bool = False
    tags: tuple[str, ...] = ()


class Dashboard(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A board. uid: never changes, links depend on it."""

    uid: str
    title: str
    description: str
    tags: tuple[str, ...]
    panels: tuple[Panel | RowPanel, ...]
    templating: Templating
    annotations: Annotations
    links: tuple[DashboardLink, ...] = ()
    time: TimeRange = TimeRange()
    timezone: str = "browser"
    refresh: str = "10s"
    schema_version: int = SCHEMA_VERSION
    graph_tooltip: int = 1  # one crosshair for all panels
    editable: bool = False  # the file is the truth
    fiscal_year_start_month: int = 0
    live_now: bool = False
    week_start: str = ""

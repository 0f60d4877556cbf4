"""Builders of panels: each with title, description and unit, so that no panel can be without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from dashboards.model import (
    Datasource,
    FieldConfig,
    FieldDefaults,
    GridPos,
    Json,
    Link,
    Override,
    Panel,
    RowPanel,
    Step,
    Target,
    Thresholds,
)

COLUMNS = 24
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"

Placed = Callable[[int, GridPos], Panel]
"""A panel that waits for its id and place."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What every panel has. steps: thresholds as (value, colour) after the first colour; the description says them in words."""

    title: str
    description: str
    unit: str
    sql: str
    first_color: str = GREEN
    steps: tuple[tuple[float, str], ...] = ()
    mappings: tuple[dict[str, Json], ...] = ()
    links: tuple[Link, ...] = ()
    decimals: int | None = None
    min: float | None = None
    max: float | None = None


class Section(msgspec.Struct, frozen=True):
    """A heading and the panels under it, in lines; the panels of a line share its width."""

    title: str
    lines: tuple[tuple[int, tuple[Placed, ...]], ...]  # height, panels


def laid_out(sections: Sequence[Section]) -> tuple[Panel | RowPanel, ...]:
    """All panels with ids from 1 and places from the top, line by line, without overlap."""
    panels: list[Panel | RowPanel] = []
    y = 0
    for section in sections:
        panels.append(RowPanel(id=len(panels) + 1, title=section.title, grid_pos=GridPos(h=1, w=COLUMNS, x=0, y=y)))
        y += 1
        for height, line in section.lines:
            width = COLUMNS // len(line)
            for place, make in enumerate(line):
                panels.append(make(len(panels) + 1, GridPos(h=height, w=width, x=place * width, y=y)))
            y += height
    return tuple(panels)


def stat(spec: Spec) -> Placed:
    """One number, coloured by its thresholds."""
    options: dict[str, Json] = {
        "colorMode": "background_solid" if spec.steps else "value",
        "graphMode": "none",
        "justifyMode": "center",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    return _panel("stat", spec, options, {"mode": "thresholds"}, {}, table=True)


def time_series(spec: Spec, *, stacked: bool = False, colors: Sequence[tuple[str, str]] = ()) -> Placed:
    """Lines over time, or stacked areas. colors: of series by name."""
    custom: dict[str, Json] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if spec.steps else "off"},
    }
    options: dict[str, Json] = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    overrides = tuple(
        Override(
            matcher={"id": "byName", "options": name},
            properties=({"id": "color", "value": {"mode": "fixed", "fixedColor": color}},),
        )
        for name, color in colors
    )
    return _panel("timeseries", spec, options, {"mode": "palette-classic"}, custom, overrides=overrides)


def state_timeline(spec: Spec) -> Placed:
    """States over time, one line for each series; numbers are shown as the texts of the mappings."""
    options: dict[str, Json] = {
        "alignValue": "left",
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return _panel("state-timeline", spec, options, {"mode": "thresholds"}, {"fillOpacity": 80, "lineWidth": 0})


def table(spec: Spec, *, overrides: Sequence[Override] = ()) -> Placed:
    """Rows as they come."""
    options: dict[str, Json] = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    return _panel(
        "table", spec, options, {"mode": "thresholds"}, {"filterable": True}, overrides=tuple(overrides), table=True
    )


def column(
    name: str, *, unit: str = "", links: Sequence[Link] = (), mappings: Sequence[dict[str, Json]] = ()
) -> Override:
    """How one column of a table is shown."""
    properties: list[dict[str, Json]] = []
    if unit:
        properties.append({"id": "unit", "value": unit})
    if links:
        properties.append({"id": "links", "value": [{"title": link.title, "url": link.url} for link in links]})
    if mappings:
        properties.append({"id": "mappings", "value": list(mappings)})
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    return Override(matcher={"id": "byName", "options": name}, properties=tuple(properties))


def value_mapping(texts: Sequence[tuple[str, str, str]]) -> dict[str, Json]:
    """Values as texts: (value, text, colour)."""
    options: dict[str, Json] = {
        value: {"text": text, "color": color, "index": index} for index, (value, text, color) in enumerate(texts)
    }
    return {"type": "value", "options": options}


def range_mapping(start: float, end: float | None, *, text: str, color: str) -> dict[str, Json]:
    """All values of a range as one text."""
    return {"type": "range", "options": {"from": start, "to": end, "result": {"text": text, "color": color}}}


def _panel(
    kind: str,
    spec: Spec,
    options: dict[str, Json],
    color: dict[str, Json],
    custom: dict[str, Json],
    *,
    overrides: tuple[Override, ...] = (),
    table: bool = False,
) -> Placed:
    """The panel of a spec, but for its id and place."""
    steps = (Step(spec.first_color, None), *(Step(name, value) for value, name in spec.steps))
    defaults = FieldDefaults(
        unit=spec.unit,
        thresholds=Thresholds(steps=steps),
        color=color,
        custom=custom,
        mappings=spec.mappings,
        links=spec.links,
        min=spec.min,
        max=spec.max,
        decimals=spec.decimals,
    )
    target = Target(raw_sql=spec.sql, format=1 if table else 0, query_type="table" if table else "timeseries")
    return lambda panel_id, place: Panel(
        id=panel_id,
        type=kind,
        title=spec.title,
        description=spec.description,
        grid_pos=place,
        datasource=Datasource(),
        targets=(target,),
        field_config=FieldConfig(defaults, overrides),
        options=options,
    )

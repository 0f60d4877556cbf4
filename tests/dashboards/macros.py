"""Grafana's part in a query: variables and the macros of its ClickHouse data source, as the plugin expands them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ALL = "$__all"


@dataclass(frozen=True)
class Request:
    """What a panel's query runs with. variables: chosen values by variable; ALL alone means all."""

    from_s: int
    to_s: int
    interval_s: int = 60
    variables: dict[str, list[str]] = field(default_factory=dict)


class UnknownMacro(ValueError):
    """A macro or variable that the data source does not have."""


def expand(sql: str, request: Request) -> str:
    """The statement that the data source sends. Raises UnknownMacro for anything left over."""
    expanded = _conditional_all(sql, request)
    expanded = re.sub(r"\$\{(\w+):singlequote\}", lambda match: _quoted(match[1], request), expanded)
    begin, end = f"toDateTime({request.from_s})", f"toDateTime({request.to_s})"
    expanded = re.sub(r"\$__timeFilter\(([^()]+)\)", rf"\1 >= {begin} AND \1 <= {end}", expanded)
    expanded = re.sub(
        r"\$__timeInterval\(([^()]+)\)",
        rf"toStartOfInterval(toDateTime(\1), INTERVAL {request.interval_s} second)",
        expanded,
    )
    for macro, text in (("$__fromTime", begin), ("$__toTime", end), ("$__interval_s", str(request.interval_s))):
        expanded = expanded.replace(macro, text)
    if "$" in expanded:
        raise UnknownMacro(f"left over: {expanded[expanded.index('$') :][:40]}")
    return expanded


def _conditional_all(sql: str, request: Request) -> str:
    """`$__conditionalAll(condition, $variable)`: the condition, or 1=1 when all values are chosen."""
    macro = "$__conditionalAll("
    while (start := sql.find(macro)) >= 0:
        depth, end = 1, start + len(macro)
        while depth:
            depth += {"(": 1, ")": -1}.get(sql[end], 0)
            end += 1
        condition, _, variable = sql[start + len(macro) : end - 1].rpartition(",")
        name = variable.strip().removeprefix("$")
        if name not in request.variables:
            raise UnknownMacro(f"no variable {name}")
        chosen = "1=1" if request.variables[name] == [ALL] else condition
        sql = sql[:start] + chosen + sql[end:]
    return sql


def _quoted(name: str, request: Request) -> str:
    if name not in request.variables:
        raise UnknownMacro(f"no variable {name}")
    return ",".join("'" + value.replace("'", "\\'") + "'" for value in request.variables[name])

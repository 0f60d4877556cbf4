"""Series for detectors: how something went, point by point, on a regular grid.

A point is what *ended* in its step: a call that hung for a minute tells of the minute in which it failed. Only steps that are over are
returned. Each function reads all deployments (or aliases) in one query unless one is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from controlplane.contract.records import AttemptError, Outcome
from controlplane.errors import BadRequest
from controlplane.store.client import Store

LATENCY_S_MAX = 900  # no call lasts longer; how much earlier than the window a row may have started
POINTS_MAX = 100_000

NOT_THE_DEPLOYMENTS_FAULT = (AttemptError.REJECTED, AttemptError.CANCELLED)
"""Attempts that say nothing about their deployment: left out of its success ratio, neither good nor bad."""

FAILED = (Outcome.EXHAUSTED, Outcome.TIMED_OUT, Outcome.UNAVAILABLE, Outcome.BROKEN_STREAM, Outcome.INTERNAL)
"""Calls that we or an upstream owe the client; everything else but `ok` is the client's own doing and left out of ratios."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points on a regular grid, oldest first.

    t: epoch seconds of each point's start, int64, shape (n,). y: float64, shape (n,), NaN where there is no data.
    samples: observations behind each value, int64, shape (n,).
    """

    t: NDArray[np.int64]
    y: NDArray[np.float64]
    samples: NDArray[np.int64]


class Grid(msgspec.Struct, frozen=True):
    """The steps of a series. now_s: the last step is the last one that is over by then."""

    now_s: float
    step_s: int
    window_s: int

    @property
    def end_s(self) -> int:
        """End of the last step."""
        return int(self.now_s // self.step_s) * self.step_s

    @property
    def points(self) -> int:
        """Number of steps."""
        return max(1, self.window_s // self.step_s)

    @property
    def start_s(self) -> int:
        """Start of the first step."""
        return self.end_s - self.points * self.step_s

    def parameters(self) -> dict[str, int]:
        """What the queries are given. Raises BadRequest for a grid that is none."""
        if self.step_s < 1 or self.points > POINTS_MAX or self.start_s < 0:
            raise BadRequest(f"a series has 1 to {POINTS_MAX} steps of at least a second, after 1970")
        return {
            "step_us": self.step_s * 1_000_000,
            "start_us": self.start_s * 1_000_000,
            "end_us": self.end_s * 1_000_000,
            "reach_us": (self.start_s - LATENCY_S_MAX) * 1_000_000 if self.start_s > LATENCY_S_MAX else 0,
        }


OF_CLIENTS = "tenant != ''"  # probes and copies of calls are nobody's, and nobody waits for them

_ENDED_IN_WINDOW = """
    started >= fromUnixTimestamp64Micro({reach_us:Int64}, 'UTC') AND started < fromUnixTimestamp64Micro({end_us:Int64}, 'UTC')
    AND toUnixTimestamp64Micro(started) + toInt64(latency_us) >= {start_us:Int64}
    AND toUnixTimestamp64Micro(started) + toInt64(latency_us) < {end_us:Int64}
"""
_POINT = "intDiv(toUnixTimestamp64Micro(started) + toInt64(latency_us) - {start_us:Int64}, {step_us:Int64})"

_ATTEMPT_SUCCESS = f"""
SELECT deployment AS name, {_POINT} AS point, countIf(error = '') / count() AS y, count() AS samples
FROM attempts
WHERE {_ENDED_IN_WINDOW}
    AND error NOT IN {{ignored:Array(String)}} AND ({{name:String}} = '' OR deployment = {{name:String}})
GROUP BY name, point ORDER BY name, point
"""  # noqa: S608 - made of constants

_FIRST_TOKEN = f"""
SELECT deployment AS name, {_POINT} AS point, quantileTDigest(0.95)(first_token_us) / 1e6 AS y, count() AS samples
FROM attempts
WHERE {_ENDED_IN_WINDOW} AND first_token_us > 0 AND ({{name:String}} = '' OR deployment = {{name:String}})
GROUP BY name, point ORDER BY name, point
"""  # noqa: S608

_CALL_SUCCESS = f"""
SELECT alias AS name, {_POINT} AS point, countIf(outcome = 'ok') / count() AS y, count() AS samples
FROM calls
WHERE {_ENDED_IN_WINDOW} AND {OF_CLIENTS}
    AND (outcome = 'ok' OR outcome IN {{failed:Array(String)}}) AND ({{name:String}} = '' OR alias = {{name:String}})
GROUP BY name, point ORDER BY name, point
"""  # noqa: S608

_CALL_RATE = f"""
SELECT alias AS name, {_POINT} AS point, count() / ({{step_us:Int64}} / 1e6) AS y, count() AS samples
FROM calls
WHERE {_ENDED_IN_WINDOW} AND {OF_CLIENTS} AND ({{name:String}} = '' OR alias = {{name:String}})
GROUP BY name, point ORDER BY name, point
"""  # noqa: S608

_COST_RATE = f"""
SELECT tenant AS name, {_POINT} AS point, toFloat64(sum(cost_usd)) * 3.6e9 / {{step_us:Int64}} AS y, count() AS samples
FROM calls
WHERE {_ENDED_IN_WINDOW} AND ({{name:String}} = '' OR tenant = {{name:String}})
GROUP BY name, point ORDER BY name, point
"""  # noqa: S608


def attempt_success_ratio(store: Store, grid: Grid, *, deployment: str = "") -> dict[str, Series]:
    """Share of attempts that did not fail, by deployment; blocking. NaN where none was made."""
    ignored = [error.value for error in NOT_THE_DEPLOYMENTS_FAULT]
    return _series(store, _ATTEMPT_SUCCESS, grid, name=deployment, absent=np.nan, more={"ignored": ignored})


def first_token_p95_s(store: Store, grid: Grid, *, deployment: str = "") -> dict[str, Series]:
    """Seconds to the first content, of the attempts that had one, by deployment; blocking. NaN where there was none."""
    return _series(store, _FIRST_TOKEN, grid, name=deployment, absent=np.nan, more={})


def call_success_ratio(store: Store, grid: Grid, *, alias: str = "") -> dict[str, Series]:
    """Share of calls that clients got a good answer to, by alias, less what clients did wrong; blocking. NaN where there was none."""
    failed = [outcome.value for outcome in FAILED]
    return _series(store, _CALL_SUCCESS, grid, name=alias, absent=np.nan, more={"failed": failed})


def calls_per_s(store: Store, grid: Grid, *, alias: str = "") -> dict[str, Series]:
    """Calls per second, by alias; blocking. 0 where there was none."""
    return _series(store, _CALL_RATE, grid, name=alias, absent=0.0, more={})


def cost_usd_per_hour(store: Store, grid: Grid, *, tenant: str = "") -> dict[str, Series]:
    """Speed of spending in USD per hour, by tenant; blocking. A float for detectors, never for bills. 0 where nothing was spent."""
    return _series(store, _COST_RATE, grid, name=tenant, absent=0.0, more={})


def _series(
    store: Store, sql: str, grid: Grid, *, name: str, absent: float, more: Mapping[str, Sequence[str]]
) -> dict[str, Series]:
    """Runs a query with columns name, point, y, samples and lays each name's points on the grid; a named one is always there."""
    columns = store.columns(sql, {**grid.parameters(), "name": name, **more})
    found: dict[str, Series] = {name: _empty(grid, absent)} if name else {}
    if not columns:
        return found
    names = np.asarray(columns[0], dtype=object)
    points, values, samples = (np.asarray(column) for column in columns[1:])
    for one in dict.fromkeys(columns[0]):
        rows = names == one
        series = _empty(grid, absent)
        series.y[points[rows]] = values[rows]
        series.samples[points[rows]] = samples[rows]
        found[str(one)] = series
    return found


def _empty(grid: Grid, absent: float) -> Series:
    return Series(
        t=np.arange(grid.start_s, grid.end_s, grid.step_s, dtype=np.int64),
        y=np.full(grid.points, absent),
        samples=np.zeros(grid.points, dtype=np.int64),
    )

"""Makes sure that a batch is whole after something went wrong in the middle of it.

The engine notes an insert's token before the rows appear. A process that is killed between the two leaves a token without rows, and a
repetition would be taken for stored. So the first batch of a proxy after a start or an error is not believed but counted: rows that are
missing are written again under another token, and roll-up minutes that do not agree with the facts are made anew from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from controlplane.store import schema
from controlplane.store.client import Store, Value
from controlplane.store.rows import Columns
from controlplane.store.schema import Table

_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"calls": ("call_id",), "attempts": ("call_id", "attempt"), "payloads": ("call_id",), "batches": ("token",)}
)
_ROLLUPS = ((schema.CALLS, schema.CALLS_MINUTE, "calls"), (schema.ATTEMPTS, schema.ATTEMPTS_MINUTE, "attempts"))


class Repaired(msgspec.Struct, frozen=True):
    """What was missing. rows: of facts; minutes: of roll-ups."""

    rows: int = 0
    minutes: int = 0


def make_whole(store: Store, steps: Sequence[tuple[Table, Columns]], *, token: str) -> Repaired:
    """Writes what is missing of a batch whose inserts have all been made; blocking. Safe to call again.

    Nobody else may write to the store meanwhile.
    """
    rows = sum(_write_missing(store, table, columns, token) for table, columns in steps)
    facts = {table.name: columns for table, columns in steps}
    minutes = 0
    for table, rollup, count in _ROLLUPS:
        if table.name in facts:
            started = facts[table.name][_place(table, "started")]
            minutes += _remake_minutes(store, table, rollup, count, sorted({_minute(at) for at in started}))
    return Repaired(rows=rows, minutes=minutes)


def _write_missing(store: Store, table: Table, columns: Columns, token: str) -> int:
    """Writes the rows that are not there; returns how many those were."""
    keys = [columns[_place(table, name)] for name in _KEYS[table.name]]
    parameters: dict[str, Value] = {"ids": sorted({str(key) for key in keys[0]})}
    names = ", ".join(_KEYS[table.name])
    where, more = _where(table, columns)
    sql = f"SELECT {names} FROM {table.name} WHERE {_KEYS[table.name][0]} IN {{ids:Array(String)}} {where}"  # noqa: S608 - our names
    there = {tuple(row) for row in store.rows(sql, {**parameters, **more})}
    missing = [place for place, key in enumerate(zip(*keys, strict=True)) if key not in there]
    if missing:
        again = [[column[place] for place in missing] for column in columns]
        store.insert(table, again, token=f"{token}:{table.name}:again")
    return len(missing)


def _where(table: Table, columns: Columns) -> tuple[str, dict[str, Value]]:
    """The time of the batch's rows, so that only their partitions are read; and the proxy, as two proxies are never one another."""
    names = [column.name for column in table.written]
    if "started" not in names:
        return "", {}
    started = [int(str(at)) for at in columns[names.index("started")]]
    where = (
        "AND started >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC') "
        "AND started <= fromUnixTimestamp64Micro({to_us:Int64}, 'UTC')"
    )
    more: dict[str, Value] = {"from_us": min(started), "to_us": max(started)}
    if "proxy" in names:
        where += " AND proxy = {proxy:String}"
        more["proxy"] = str(columns[names.index("proxy")][0])
    return where, more


def _remake_minutes(store: Store, table: Table, rollup: Table, count: str, minutes: Sequence[int]) -> int:
    """Makes those of the minutes anew whose roll-up does not hold as many rows as the facts; returns how many those were."""
    listed: dict[str, Value] = {"minutes": list(minutes)}
    among = "toUnixTimestamp(toStartOfMinute(started)) IN {minutes:Array(UInt32)}"
    span: dict[str, Value] = {"from_s": minutes[0], "to_s": minutes[-1] + 60}
    within = "started >= fromUnixTimestamp({from_s:Int64}) AND started < fromUnixTimestamp({to_s:Int64})"
    facts = store.rows(
        f"SELECT toUnixTimestamp(toStartOfMinute(started)) AS at, count() FROM {table.name} WHERE {within} AND {among} GROUP BY at",  # noqa: S608
        {**listed, **span},
    )
    sums = store.rows(
        f"SELECT toUnixTimestamp(minute) AS at, sum({count}) FROM {rollup.name} "  # noqa: S608
        "WHERE toUnixTimestamp(minute) IN {minutes:Array(UInt32)} GROUP BY at",
        listed,
    )
    rolled = {str(at): str(total) for at, total in sums}
    wrong = [int(str(at)) for at, total in facts if rolled.get(str(at)) != str(total)]
    if wrong:
        select = str(
            store.rows(
                "SELECT as_select FROM system.tables WHERE database = currentDatabase() AND name = {view:String}",
                {"view": f"{rollup.name}_view"},
            )[0][0]
        )
        again: dict[str, Value] = {"minutes": wrong}
        store.command(f"DELETE FROM {rollup.name} WHERE toUnixTimestamp(minute) IN {{minutes:Array(UInt32)}}", again)  # noqa: S608
        store.command(
            f"INSERT INTO {rollup.name} SELECT * FROM ({select}) WHERE toUnixTimestamp(minute) IN {{minutes:Array(UInt32)}}",  # noqa: S608
            again,
        )
    return len(wrong)


def _place(table: Table, name: str) -> int:
    return [column.name for column in table.written].index(name)


def _minute(started_us: object) -> int:
    return int(str(started_us)) // 60_000_000 * 60

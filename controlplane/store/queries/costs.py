"""Where money went, exactly: sums of calls by any few of a closed list of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from controlplane.contract.pricing import TOKEN_KINDS, Tokens
from controlplane.errors import BadRequest, TooLarge
from controlplane.store.client import Store, Value
from controlplane.store.rows import nanousd

ROWS_MAX = 200_000

DIMENSIONS: Mapping[str, str] = MappingProxyType(
    {
        "tenant": "tenant",
        "agent": "agent",
        "session": "session",
        "user": "user",
        "model": "model",
        "alias": "alias",
        "deployment": "deployment",
        "key": "key_id",
        "operation": "operation",
        "outcome": "outcome",
        "cache": "cache",
        "hour": "formatDateTime(started, '%Y-%m-%dT%H:00Z', 'UTC')",
        "day": "toString(toDate(started))",
        "month": "formatDateTime(started, '%Y-%m', 'UTC')",
    }
)
"""What costs can be asked by, and the SQL that says it; days and months are UTC."""

_SUMS = ", ".join(
    [
        "count() AS calls",
        "sum(cost_usd) AS cost",
        "sum(saved_usd) AS saved",
        "countIf(cost_state = 'final') AS calls_final",
        "countIf(cost_state = 'estimated') AS calls_estimated",
        "countIf(cost_state = 'unpriced') AS calls_unpriced",
        "sumMap(items_usd) AS items_usd",
        *(f"sum(tokens_{kind}) AS {kind}" for kind in TOKEN_KINDS),
    ]
)
_WHERE = """
WHERE started >= fromUnixTimestamp64Micro({from_us:Int64}, 'UTC') AND started < fromUnixTimestamp64Micro({to_us:Int64}, 'UTC')
    AND ({tenant:String} = '' OR tenant = {tenant:String})
"""


class CostRow(msgspec.Struct, frozen=True):
    """Cost of some calls. by: the values of the dimensions asked for, in their order.

    Unpriced calls are counted; of their cost the sums have what is known, which may be nothing.
    """

    by: tuple[str, ...]
    calls: int
    tokens: Tokens
    cost_nanousd: int
    saved_nanousd: int
    calls_final: int
    calls_estimated: int
    calls_unpriced: int
    items_nanousd: dict[str, int] = {}  # what of the cost is not for tokens, by kind


def costs_by(
    store: Store, dimensions: Sequence[str], *, from_us: int, to_us: int, tenant: str = "", rows_max: int = ROWS_MAX
) -> list[CostRow]:
    """Cost of the calls that started in [from_us, to_us), one row for each combination, in the order of its values; blocking.

    tenant: only this one's; empty: all. Raises BadRequest for an unknown dimension, TooLarge for more than `rows_max` rows.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or len(set(dimensions)) != len(dimensions):
        raise BadRequest(f"costs can be asked by each of {', '.join(DIMENSIONS)} once, not by {', '.join(dimensions)}")
    keys = [f"{DIMENSIONS[name]} AS by_{place}" for place, name in enumerate(dimensions)]
    names = ", ".join(f"by_{place}" for place in range(len(dimensions)))
    group = f"GROUP BY {names} ORDER BY {names}" if dimensions else ""
    sql = f"SELECT {', '.join([*keys, _SUMS])} FROM calls {_WHERE} {group} LIMIT {{limit:UInt64}}"  # noqa: S608
    parameters: dict[str, Value] = {"from_us": from_us, "to_us": to_us, "tenant": tenant, "limit": rows_max + 1}
    rows = store.rows(sql, parameters)
    if len(rows) > rows_max:
        raise TooLarge(f"this report has more than {rows_max} rows; ask for fewer dimensions or a shorter time")
    return [_row(row, len(dimensions)) for row in rows]


def total_cost(store: Store, *, from_us: int, to_us: int, tenant: str = "") -> CostRow:
    """The same over everything: what the rows of any report of this time add up to."""
    return costs_by(store, (), from_us=from_us, to_us=to_us, tenant=tenant)[0]


def total_nanousd(store: Store, *, from_us: int, to_us: int) -> int:
    """Cost of all calls that started in [from_us, to_us), in nano-USD, exact; blocking."""
    return total_cost(store, from_us=from_us, to_us=to_us).cost_nanousd


def _row(row: Sequence[object], width: int) -> CostRow:
    calls, cost, saved, final, estimated, unpriced, items, *tokens = row[width:]
    return CostRow(
        by=tuple(str(value) for value in row[:width]),
        calls=int(str(calls)),
        tokens=Tokens(*(int(str(count)) for count in tokens)),
        cost_nanousd=nanousd(cost),
        saved_nanousd=nanousd(saved),
        calls_final=int(str(final)),
        calls_estimated=int(str(estimated)),
        calls_unpriced=int(str(unpriced)),
        items_nanousd=_items(items),
    )


def _items(amounts: object) -> dict[str, int]:
    if not isinstance(amounts, Mapping):
        raise TypeError(f"{amounts!r} is not what a sum of items gives")
    return {str(kind): nanousd(amount) for kind, amount in sorted(amounts.items())}

"""The cost report: who spent what, exactly, with a total that is the sum of its rows and a header that says how complete it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.contract.pricing import NO_TOKENS, TOKEN_KINDS, Tokens
from controlplane.contract.snapshot import ProxyStatus
from controlplane.errors import BadRequest
from controlplane.store.client import Store
from controlplane.store.queries.costs import CostRow, costs_by

ROWS_MAX = 100_000
US_PER_DAY = 86_400_000_000


class Completeness(msgspec.Struct, frozen=True):
    """What a report is about and how well its numbers are known; times are UTC, [from_us, to_us).

    calls_unpriced: calls that cost more than the sums have, because nobody has said what all of it costs.
    price_book: version of the price book now; every row was costed when its call ended, under the version that the call recorded.
    """

    from_us: int
    to_us: int
    generated_us: int
    price_book: str
    calls: int
    calls_final: int
    calls_estimated: int
    calls_unpriced: int
    currency: str = "USD"
    timezone: str = "UTC"


class CostReport(msgspec.Struct, frozen=True):
    """Cost by dimensions; `total` is the sum of `rows`, to the nano-USD."""

    dimensions: tuple[str, ...]
    rows: tuple[CostRow, ...]
    total: CostRow
    header: Completeness


def cost_report(
    store: Store,
    dimensions: Sequence[str],
    *,
    from_us: int,
    to_us: int,
    generated_us: int,
    price_book: str,
    tenant: str = "",
    rows_max: int = ROWS_MAX,
) -> CostReport:
    """The report on the calls that started in [from_us, to_us), dearest rows first but in order of time where time is asked for; blocking.

    Raises BadRequest for an unknown dimension or an empty period, TooLarge for more rows than `rows_max`.
    """
    if from_us >= to_us:
        raise BadRequest("the period of a report ends before it begins; check --from and --to")
    rows = costs_by(store, dimensions, from_us=from_us, to_us=to_us, tenant=tenant, rows_max=rows_max)
    return build(dimensions, rows, from_us=from_us, to_us=to_us, generated_us=generated_us, price_book=price_book)


def build(
    dimensions: Sequence[str], rows: Sequence[CostRow], *, from_us: int, to_us: int, generated_us: int, price_book: str
) -> CostReport:
    """A report from its rows; pure."""
    kept = [row for row in rows if row.calls]
    if not {"hour", "day", "month"} & set(dimensions):
        kept.sort(key=lambda row: (-row.cost_nanousd, row.by))
    total = total_of(kept)
    return CostReport(
        dimensions=tuple(dimensions),
        rows=tuple(kept),
        total=total,
        header=Completeness(
            from_us=from_us,
            to_us=to_us,
            generated_us=generated_us,
            price_book=price_book,
            calls=total.calls,
            calls_final=total.calls_final,
            calls_estimated=total.calls_estimated,
            calls_unpriced=total.calls_unpriced,
        ),
    )


def total_of(rows: Sequence[CostRow]) -> CostRow:
    """The sum of rows; integers, so exact."""
    return CostRow(
        by=(),
        calls=sum(row.calls for row in rows),
        tokens=Tokens(*(sum(getattr(row.tokens, kind) for row in rows) for kind in TOKEN_KINDS)) if rows else NO_TOKENS,
        cost_nanousd=sum(row.cost_nanousd for row in rows),
        saved_nanousd=sum(row.saved_nanousd for row in rows),
        calls_final=sum(row.calls_final for row in rows),
        calls_estimated=sum(row.calls_estimated for row in rows),
        calls_unpriced=sum(row.calls_unpriced for row in rows),
        items_nanousd={
            kind: sum(row.items_nanousd.get(kind, 0) for row in rows)
            for kind in sorted({kind for row in rows for kind in row.items_nanousd})
        },
    )


class Reconciliation(msgspec.Struct, frozen=True):
    """The proxies' own count of what they settled, beside what the store holds.

    difference_nanousd: rows less ledger; 0 is what it must be once everything is shipped. While `spool_bytes` is not 0, records are still
    under way and the difference may be negative; a positive one means that a worker's ledger is missing from `proxies`.
    """

    rows_calls: int
    rows_nanousd: int
    ledger_calls: int
    ledger_nanousd: int
    difference_calls: int
    difference_nanousd: int
    proxies: tuple[str, ...]
    spool_bytes: int
    spool_dropped: int

    @property
    def agrees(self) -> bool:
        """Whether both counts are equal to the nano-USD, with nothing dropped."""
        return not (self.difference_nanousd or self.difference_calls or self.spool_dropped)


def reconcile(total: CostRow, statuses: Sequence[ProxyStatus]) -> Reconciliation:
    """Compares the sum of all rows there are with the ledgers of all workers there are; pure.

    total: over all time, since ledgers count from a worker's first start. statuses: the last one of each worker.
    """
    ledger_calls = sum(status.ledger_calls for status in statuses)
    ledger_nanousd = sum(status.ledger_nanousd for status in statuses)
    return Reconciliation(
        rows_calls=total.calls,
        rows_nanousd=total.cost_nanousd,
        ledger_calls=ledger_calls,
        ledger_nanousd=ledger_nanousd,
        difference_calls=total.calls - ledger_calls,
        difference_nanousd=total.cost_nanousd - ledger_nanousd,
        proxies=tuple(sorted(status.proxy_id for status in statuses)),
        spool_bytes=sum(status.spool_bytes for status in statuses),
        spool_dropped=sum(status.spool_dropped for status in statuses),
    )

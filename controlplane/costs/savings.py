"""Where money did not need to go: what stored answers and joined calls would have cost at the upstream, by tenant."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from controlplane.contract.records import CacheState
from controlplane.errors import BadRequest
from controlplane.store.client import Store
from controlplane.store.queries.costs import CostRow, costs_by


class Confidence(StrEnum):
    """How well a saving is known."""

    EXACT = "exact"  # the same request was answered before, and what that answer cost is known
    PRICED = "priced"  # a similar request was answered; the price is right, the tokens are another request's


CLASSES: dict[CacheState, Confidence] = {
    CacheState.HIT: Confidence.EXACT,
    CacheState.STALE: Confidence.EXACT,
    CacheState.COALESCED: Confidence.EXACT,
    CacheState.MISS: Confidence.EXACT,  # of an answer that was stored in part, or whose bill was shared
    CacheState.SEMANTIC: Confidence.PRICED,
}


class SavingsLine(msgspec.Struct, frozen=True):
    """What one tenant saved by one means. source: as `x-heph-cache` says it."""

    tenant: str
    source: CacheState
    confidence: Confidence
    calls: int
    saved_nanousd: int


class Savings(msgspec.Struct, frozen=True):
    """What was saved in [from_us, to_us). spent_nanousd: what was paid all the same; both together are the cost without savings."""

    from_us: int
    to_us: int
    lines: tuple[SavingsLine, ...]
    saved_nanousd: int
    spent_nanousd: int


def savings(store: Store, *, from_us: int, to_us: int, tenant: str = "") -> Savings:
    """Savings of the calls that started in [from_us, to_us); blocking. Raises BadRequest for an empty period."""
    if from_us >= to_us:
        raise BadRequest("the period of a report ends before it begins; check --from and --to")
    rows = costs_by(store, ("tenant", "cache"), from_us=from_us, to_us=to_us, tenant=tenant)
    return build(rows, from_us=from_us, to_us=to_us)


def build(rows: Sequence[CostRow], *, from_us: int, to_us: int) -> Savings:
    """Savings from rows by tenant and cache state; pure. Most saved first."""
    lines = [
        SavingsLine(row.by[0], CacheState(row.by[1]), CLASSES[CacheState(row.by[1])], row.calls, row.saved_nanousd)
        for row in rows
        if row.by[1] in CLASSES and (row.saved_nanousd or row.by[1] != CacheState.MISS)
    ]
    lines.sort(key=lambda line: (-line.saved_nanousd, line.tenant, line.source))
    return Savings(
        from_us=from_us,
        to_us=to_us,
        lines=tuple(lines),
        saved_nanousd=sum(line.saved_nanousd for line in lines),
        spent_nanousd=sum(row.cost_nanousd for row in rows),
    )

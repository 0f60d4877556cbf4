"""What the API asks of stored facts, answered: calls and costs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.api.parts import CallFilter
from controlplane.api.views import CostLine, CostReport
from controlplane.contract.records import CallRecord
from controlplane.store.client import Store
from controlplane.store.queries import calls, costs


class StoredCalls:
    """Calls from the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, wanted: CallFilter) -> Sequence[CallRecord]:
        """Matching calls, newest first."""
        asked = calls.CallFilter(**msgspec.structs.asdict(wanted))
        return await self._store.run(calls.list_calls, self._store, asked)

    async def show(self, call_id: str) -> CallRecord:
        """One call with its attempts; raises NotFound."""
        return await self._store.run(calls.show_call, self._store, call_id)


class StoredCosts:
    """Costs from the store. rows_max: a report with more is refused, never cut."""

    def __init__(self, store: Store, *, rows_max: int) -> None:
        self._store = store
        self._rows_max = rows_max

    async def report(self, *, dimensions: tuple[str, ...], from_us: int, to_us: int) -> CostReport:
        """Cost by dimensions; raises BadRequest for an unknown one."""
        rows = await self._store.run(
            costs.costs_by, self._store, dimensions, from_us=from_us, to_us=to_us, rows_max=self._rows_max
        )
        lines = tuple(_line(row) for row in rows)
        return CostReport(
            dimensions=dimensions,
            from_us=from_us,
            to_us=to_us,
            total_nanousd=sum(line.nanousd for line in lines),
            rows=lines,
        )


def _line(row: costs.CostRow) -> CostLine:
    return CostLine(
        by=row.by,
        calls=row.calls,
        nanousd=row.cost_nanousd,
        saved_nanousd=row.saved_nanousd,
        tokens_in=row.tokens.total_input,
        tokens_out=row.tokens.total_output,
        estimated_calls=row.calls_estimated,
        unpriced_calls=row.calls_unpriced,
    )

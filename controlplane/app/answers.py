"""What the API asks of stored facts, answered: calls and costs."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.clock import Clock
from controlplane.contract.pricing import NO_TOKENS
from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import ProxyStatus
from controlplane.costs.report import CostReport, Reconciliation, cost_report, reconcile
from controlplane.costs.savings import Savings, savings
from controlplane.store.client import Store
from controlplane.store.queries import calls, health
from controlplane.store.queries.costs import CostRow


class StoredCalls:
    """Calls from the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, wanted: calls.CallFilter) -> Sequence[CallRecord]:
        """Matching calls, newest first."""
        return await self._store.run(calls.list_calls, self._store, wanted)

    async def show(self, call_id: str) -> CallRecord:
        """One call with its attempts; raises NotFound."""
        return await self._store.run(calls.show_call, self._store, call_id)


class StoredCosts:
    """Costs from the store. rows_max: a report with more is refused, never cut; price_book: version of the one in use."""

    def __init__(self, store: Store, clock: Clock, *, rows_max: int, price_book: str) -> None:
        self._store = store
        self._clock = clock
        self._rows_max = rows_max
        self._price_book = price_book

    async def report(self, *, dimensions: tuple[str, ...], from_us: int, to_us: int, tenant: str) -> CostReport:
        """Cost by dimensions; raises BadRequest for an unknown one."""
        return await self._store.run(
            cost_report,
            self._store,
            dimensions,
            from_us=from_us,
            to_us=to_us,
            generated_us=self._clock.now_us(),
            price_book=self._price_book,
            tenant=tenant,
            rows_max=self._rows_max,
        )

    async def savings(self, *, from_us: int, to_us: int, tenant: str) -> Savings:
        """What was saved."""
        return await self._store.run(savings, self._store, from_us=from_us, to_us=to_us, tenant=tenant)

    async def reconcile(self, statuses: Sequence[ProxyStatus]) -> Reconciliation:
        """Rows and ledgers of the live proxies; what the control plane itself spends on probes is in no ledger and in no side of this."""
        rows = await self._store.run(health.stored_ledgers, self._store)
        live = {status.proxy_id for status in statuses}
        known = [row for row in rows if row.proxy in live]
        total = CostRow(
            by=(),
            calls=sum(row.calls for row in known),
            tokens=NO_TOKENS,
            cost_nanousd=sum(row.cost_nanousd for row in known),
            saved_nanousd=0,
            calls_final=0,
            calls_estimated=0,
            calls_unpriced=0,
        )
        return reconcile(total, statuses)

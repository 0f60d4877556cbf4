"""Budgets and quotas over HTTP: what is used of each, by all live proxies together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from litestar import get

from controlplane.api.parts import PartsOf
from controlplane.contract.snapshot import BudgetStatus, ProxyStatus

_TAGS = ["catalog"]


class BudgetView(msgspec.Struct, frozen=True):
    """One ceiling in its window. unit: of `limit`, `used` and `reserved`: `nanousd`, `tokens`, `requests` or `calls`.

    value: of the quota's scope, such as an agent's name; empty for the tenant as a whole. degraded: a proxy goes on with its part,
    because Redis does not answer. window_*_us: 0 for calls at once.
    """

    tenant: str
    id: str
    value: str
    unit: str
    limit: int
    used: int
    reserved: int
    window_start_us: int
    window_end_us: int
    degraded: bool


class BudgetList(msgspec.Struct, frozen=True):
    """The ceilings of all tenants that have spent something, by tenant; of each scope the fullest instances."""

    budgets: tuple[BudgetView, ...]


@get("/api/v1/budgets", tags=_TAGS, summary="What is used of budgets and quotas")
async def budgets(parts: PartsOf) -> BudgetList:
    """As the live proxies said last, a few seconds ago at most."""
    return BudgetList(summed(parts.publisher.statuses()))


def summed(statuses: Iterable[ProxyStatus]) -> tuple[BudgetView, ...]:
    """Each ceiling once, with what all proxies have used of it; only its latest window, where proxies disagree about the moment."""
    found: dict[tuple[str, str, str], BudgetView] = {}
    for status in statuses:
        for line in status.budgets:
            view = _view(line)
            key = (line.tenant, line.budget, line.value)
            known = found.get(key)
            if known is not None and known.window_start_us == view.window_start_us:
                view = msgspec.structs.replace(
                    view,
                    used=known.used + view.used,
                    reserved=known.reserved + view.reserved,
                    degraded=known.degraded or view.degraded,
                )
            elif known is not None and known.window_start_us > view.window_start_us:
                continue
            found[key] = view
    return tuple(view for _, view in sorted(found.items()))


def _view(line: BudgetStatus) -> BudgetView:
    used, reserved = {
        "nanousd": (line.settled_nanousd, line.reserved_nanousd),
        "tokens": (line.settled_tokens, line.reserved_tokens),
        "requests": (line.settled_requests, line.reserved_requests),
    }.get(line.unit, (0, line.reserved_requests))
    return BudgetView(
        tenant=line.tenant,
        id=line.budget,
        value=line.value,
        unit=line.unit,
        limit=line.limit,
        used=used,
        reserved=reserved,
        window_start_us=line.window_start_us,
        window_end_us=line.window_end_us,
        degraded=line.degraded,
    )


ROUTES = (budgets,)

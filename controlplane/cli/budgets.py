"""Budgets and quotas: what the configuration sets, and what is used of it now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from controlplane.api.budgets import BudgetList, BudgetView
from controlplane.catalog.file import BudgetEntry, QuotaEntry, TenantEntry
from controlplane.cli.installation import config_option, data_option, open_installation
from controlplane.cli.output import errors, json_option, moment, print_json, print_table, speaks_plainly, usd
from controlplane.cli.remote import NotRunning, Remote
from controlplane.contract.snapshot import QuotaAction, QuotaScope, Window

TOKENS_PER_MINUTE = "tokens_per_minute"  # as proxies call the limit of that name
WARN_SHARE = 0.8
_NEVER_US = 2**62


class Ceiling(NamedTuple):
    """One ceiling as the configuration has it. unit: as proxies count it."""

    tenant: str
    id: str
    unit: str
    limit: int
    window: str  # "" for calls at once
    per: str
    action: QuotaAction
    entry: BudgetEntry | QuotaEntry | None


class Use(msgspec.Struct, frozen=True):
    """What is used of a ceiling, by one agent, key... or by the tenant. None: nobody could be asked.

    used: settled, of calls that have ended; reserved: what calls in flight may use at worst. state: `ok`; `warn`, from 80 % on, or over a
    quota that only warns; `downgraded`, calls go to another model; `exhausted`, calls are refused; `unknown`.
    """

    value: str
    unit: str
    limit: int
    used: int | None
    reserved: int | None
    share_percent: float | None
    window_start_us: int | None
    window_end_us: int | None
    action: QuotaAction
    state: str
    degraded: bool = False


@click.command()
@config_option
@data_option
@click.option("--tenant", default=None, help="Only this one's.")
@json_option
@speaks_plainly
def budgets(config: Path, data: Path | None, tenant: str | None, as_json: bool) -> None:
    """Shows budgets and quotas with what is used of each now; without a running control plane, what the configuration sets."""
    installation = open_installation(config, data=data)
    tenants = [one for one in installation.loaded.config.tenants if tenant is None or one.name == tenant]
    rows = list(joined(ceilings_of(tenants), _views(installation.remote)))
    if as_json:
        print_json([_document(ceiling, use) for ceiling, use in rows])
        return
    print_table(
        "budgets",
        ("tenant", "budget", "of", "window", "ceiling", "used", "held", "share", "begins anew", "state"),
        [_row(ceiling, use) for ceiling, use in rows],
        right=("used", "held", "share"),
        whole=("state", "begins anew"),
    )


def ceilings_of(tenants: Iterable[TenantEntry]) -> Iterator[Ceiling]:
    """Every ceiling that the configuration sets and that proxies report about."""
    for tenant in tenants:
        if tenant.limits.tokens_per_minute is not None:
            amount = tenant.limits.tokens_per_minute
            yield Ceiling(
                tenant.name, TOKENS_PER_MINUTE, "tokens", amount, Window.MINUTE, "tenant", QuotaAction.HARD, None
            )
        for budget in tenant.budgets:
            unit, limit = ("tokens", budget.tokens) if budget.usd is None else ("nanousd", budget.usd)
            yield Ceiling(
                tenant.name,
                budget.budget_id,
                unit,
                limit or 0,
                budget.window,
                QuotaScope.TENANT,
                QuotaAction.HARD,
                budget,
            )
        for quota in tenant.quotas:
            for field, unit in (
                ("usd", "nanousd"),
                ("tokens", "tokens"),
                ("requests", "requests"),
                ("concurrency", "calls"),
            ):
                if getattr(quota, field) is not None:
                    yield Ceiling(
                        tenant.name, quota.quota_id, unit, getattr(quota, field), quota.window or "", quota.per, quota.action, quota
                    )  # fmt: skip


def joined(ceilings: Iterable[Ceiling], views: tuple[BudgetView, ...] | None) -> Iterator[tuple[Ceiling, Use]]:
    """Each ceiling with what is used of it: once for each instance that has used something, fullest first, else once. views: None: not known."""
    known: dict[tuple[str, str], list[BudgetView]] = {}
    for view in views or ():
        known.setdefault((view.tenant, view.id), []).append(view)
    for ceiling in ceilings:
        found = known.get((ceiling.tenant, ceiling.id), [])
        for view in sorted(found, key=lambda one: (-one.used - one.reserved, one.value)):
            yield ceiling, _use(ceiling, view)
        if not found:
            yield ceiling, _unused(ceiling, known=views is not None)


def state_of(action: QuotaAction, *, used: int, limit: int) -> str:
    """What a ceiling does to calls that come now."""
    if used >= limit:
        return {QuotaAction.HARD: "exhausted", QuotaAction.DOWNGRADE: "downgraded"}.get(action, "warn")
    return "warn" if used >= limit * WARN_SHARE else "ok"


def _views(remote: Remote) -> tuple[BudgetView, ...] | None:
    try:
        return remote.get("/budgets", BudgetList).budgets
    except NotRunning as error:
        errors().print(f"{error.message}; what is used is not known")
        return None


def _use(ceiling: Ceiling, view: BudgetView) -> Use:
    """As proxies enforce it: a limit that was changed a moment ago is still theirs."""
    used = view.reserved if view.unit == "calls" else view.used
    return Use(
        value=view.value,
        unit=view.unit,
        limit=view.limit,
        used=used,
        reserved=view.reserved,
        share_percent=round(100 * used / view.limit, 1) if view.limit else 100.0,
        window_start_us=view.window_start_us,
        window_end_us=view.window_end_us,
        degraded=view.degraded,
        action=ceiling.action,
        state=state_of(ceiling.action, used=used, limit=view.limit),
    )


def _unused(ceiling: Ceiling, *, known: bool) -> Use:
    used = 0 if known else None
    state = state_of(ceiling.action, used=0, limit=ceiling.limit) if known else "unknown"
    share = None if used is None else 0.0 if ceiling.limit else 100.0
    return Use("", ceiling.unit, ceiling.limit, used, used, share, None, None, ceiling.action, state)


def _document(ceiling: Ceiling, use: Use) -> dict[str, object]:
    written: dict[str, object] = {} if ceiling.entry is None else msgspec.to_builtins(ceiling.entry)
    return {
        "tenant": ceiling.tenant,
        **written,
        "id": ceiling.id,
        "window": ceiling.window or None,
        "per": ceiling.per,
        **msgspec.to_builtins(use),
    }


def _row(ceiling: Ceiling, use: Use) -> tuple[str, ...]:
    amount = _amount(use.limit, use.unit)
    if isinstance(ceiling.entry, QuotaEntry):
        amount += f" per {ceiling.per}, {ceiling.action}"
    return (
        ceiling.tenant,
        ceiling.id,
        use.value,
        ceiling.window or "at once",
        amount,
        "?" if use.used is None else _amount(use.used, use.unit),
        "?" if use.reserved is None else _amount(use.reserved, use.unit),
        "?" if use.share_percent is None else f"{use.share_percent:.1f} %",
        _ends(ceiling, use),
        f"{use.state} (on its own)" if use.degraded else use.state,
    )


def _ends(ceiling: Ceiling, use: Use) -> str:
    if ceiling.window == Window.TOTAL:
        return "never"
    return "" if not use.window_end_us or use.window_end_us > _NEVER_US else f"{moment(use.window_end_us)}Z"


def _amount(amount: int, unit: str) -> str:
    return usd(amount, digits=2) if unit == "nanousd" else f"{amount:,} {unit}"


COMMANDS = (budgets,)

"""A tenant's quotas: what the file says of them, checked and turned into what proxies are told."""

from __future__ import annotations

from collections.abc import Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from controlplane.catalog.bind import Bound, nearest
from controlplane.catalog.file import ConfigFile, QuotaEntry, TenantEntry
from controlplane.contract.snapshot import Quota, QuotaAction, QuotaScope
from controlplane.errors import Problem

_UNITS = ("usd", "tokens", "requests", "concurrency")


def quota_of(entry: QuotaEntry) -> Quota:
    """A quota as proxies are told of it. The entry was checked."""
    return Quota(
        id=entry.quota_id,
        per=entry.per,
        tag=entry.tag or "",
        requests=entry.requests,
        tokens=entry.tokens,
        nanousd=entry.usd,
        concurrency=entry.concurrency,
        timezone=entry.timezone,
        action=entry.action,
        to=entry.to or "",
        match=entry.match,
        **({} if entry.window is None else {"window": entry.window}),
    )


def quota_problems(bound: Bound[ConfigFile], *, models_sound: bool) -> Iterator[Problem]:
    """What each value of a quota alone cannot show.

    models_sound: whether all models could be read; else a name that is not there may be one of theirs.
    """
    models = {entry.name for entry in bound.value.models} if models_sound else None
    for t, tenant in enumerate(bound.value.tenants):
        seen = {budget.budget_id for budget in tenant.budgets}
        for q, quota in enumerate(tenant.quotas):
            place = ("tenants", t, "quotas", q)
            if quota.quota_id in seen:
                what = f"tenant `{tenant.name}` has two budgets or quotas `{quota.quota_id}`"
                yield bound.problem(what, *place, hint="keep one, or give one an `id`")
            seen.add(quota.quota_id)
            for message, hint in _contradictions(quota):
                yield bound.problem(f"quota `{quota.quota_id}` of `{tenant.name}` {message}", *place, hint=hint)
            if models is not None:
                yield from _unknown_models(bound, tenant, quota, models, place)


def _contradictions(quota: QuotaEntry) -> Iterator[tuple[str, str]]:
    """Each with what to do about it."""
    units = [unit for unit in _UNITS if getattr(quota, unit) is not None]
    if len(units) != 1:
        yield f"needs one of {', '.join(f'`{unit}`' for unit in _UNITS)}", "write two quotas for two of them"
    if quota.concurrency is not None and quota.window is not None:
        yield "counts calls at once, which no window ends", "leave `window` out"
    if quota.concurrency is None and quota.window is None:
        yield "has no window", "add `window: day`, or another"
    if (quota.per is QuotaScope.TAG) != (quota.tag is not None):
        yield "needs `tag` with `per: tag`, and only there", "add the tag's name, or leave it out"
    if (quota.action is QuotaAction.DOWNGRADE) != (quota.to is not None):
        yield (
            "needs `to` with `action: downgrade`, and only there",
            "add the model that serves instead, or leave it out",
        )
    if not _is_zone(quota.timezone):
        yield f"has a time zone that is not known: `{quota.timezone}`", "write it as `America/Sao_Paulo`"


def _unknown_models(
    bound: Bound[ConfigFile], tenant: TenantEntry, quota: QuotaEntry, models: set[str], place: tuple[str | int, ...]
) -> Iterator[Problem]:
    """A quota that names a model nobody has would silently never apply."""
    for name in (*quota.match.models, *(() if quota.to is None else (quota.to,))):
        if name not in models:
            what = f"quota `{quota.quota_id}` of `{tenant.name}` names `{name}`, but there is no such model"
            yield bound.problem(what, *place, hint=nearest(name, models) or "add it under `models`")


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True

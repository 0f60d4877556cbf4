"""What a file says about how routes choose, hedge and fall back: contradictions that each value alone cannot show."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from controlplane.catalog.bind import Bound, nearest
from controlplane.catalog.file import ConfigFile, HedgeEntry, ModelEntry
from controlplane.contract.routing import FallbackKind, Hedge
from controlplane.errors import Problem


def hedge_of(entry: HedgeEntry | None) -> Hedge | None:
    """The same in the proxies' units."""
    if entry is None:
        return None
    return Hedge(
        after_ms=entry.after_ms,
        after_percentile=entry.after_percentile,
        budget_ratio=entry.budget_ratio,
        extra_nanousd_max=entry.max_extra_usd,
        second_nanousd=entry.second_worth_usd,
    )


def routing_problems(bound: Bound[ConfigFile], *, sound: bool) -> Iterator[Problem]:
    """Mistakes in `models`; sound: whether all of them were bound, so that a name that is not there is not there.

    Fallbacks make no loop, since those of a fallback do not count: two models may name each other.
    """
    models = bound.value.models
    names = {model.name for model in models}
    deployments = {entry.deployment_id for model in models for entry in model.deployments}
    for m, model in enumerate(models):
        yield from _fallbacks(bound, model, m, names if sound else None)
        yield from _named(bound, model, m, deployments if sound else None)
        yield from _hedge(bound, model, m)
        for d, entry in enumerate(model.deployments):
            policy = entry.concurrency
            if policy is not None and policy.adaptive and policy.min > policy.max:
                message = f"`concurrency.min` of `{entry.deployment_id}` is more than its `max`"
                yield bound.problem(message, "models", m, "deployments", d, "concurrency", hint="lower `min`")


def breaker_problems(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Weights and streaks that make no sense."""
    policy = bound.value.breaker
    if not policy.failures_in_row > 0:
        yield bound.problem("`breaker.failures_in_row` must be more than 0", "breaker", "failures_in_row")
    for name, weight in msgspec.structs.asdict(policy.weights).items():
        if not 0 <= weight <= 100:
            yield bound.problem(f"`breaker.weights.{name}` must be from 0 to 100", "breaker", "weights", name)


def _fallbacks(bound: Bound[ConfigFile], model: ModelEntry, m: int, names: set[str] | None) -> Iterator[Problem]:
    for kind in FallbackKind:
        seen: set[str] = set()
        for f, alias in enumerate(model.fallbacks.of(kind)):
            place = ("models", m, "fallbacks", kind.value, f)
            if alias == model.name:
                message = f"`{model.name}` falls back to itself"
                yield bound.problem(message, *place, hint="name another model, or leave it out")
            elif alias in seen:
                yield bound.problem(f"`{alias}` is there twice", *place, hint="keep one of them")
            elif names is not None and alias not in names:
                hint = nearest(alias, names) or "add it under `models`"
                yield bound.problem(
                    f"`{model.name}` falls back to `{alias}`, but there is no such model", *place, hint=hint
                )
            seen.add(alias)


def _named(bound: Bound[ConfigFile], model: ModelEntry, m: int, known: set[str] | None) -> Iterator[Problem]:
    """A canary or a shadow that is no deployment."""
    own = {entry.deployment_id for entry in model.deployments}
    if model.canary is not None and model.canary.deployment not in own:
        message = f"the canary of `{model.name}` is none of its deployments"
        hint = nearest(model.canary.deployment, own)
        yield bound.problem(message, "models", m, "canary", "deployment", hint=hint)
    if model.shadow is not None and known is not None and model.shadow.deployment not in known:
        message = f"the shadow of `{model.name}` is no deployment of any model"
        hint = nearest(model.shadow.deployment, known)
        yield bound.problem(message, "models", m, "shadow", "deployment", hint=hint)


def _hedge(bound: Bound[ConfigFile], model: ModelEntry, m: int) -> Iterator[Problem]:
    hedge = model.hedge
    if hedge is None:
        return
    if hedge.after_ms is None and hedge.after_percentile is None:
        message = f"the hedge of `{model.name}` does not say when a call is late"
        yield bound.problem(message, "models", m, "hedge", hint="set `after_ms` or `after_percentile`")
    if len(model.deployments) < 2:
        message = f"`{model.name}` has one deployment, so there is nowhere to send a second try"
        yield bound.problem(message, "models", m, "hedge", hint="add a deployment, or remove `hedge`")

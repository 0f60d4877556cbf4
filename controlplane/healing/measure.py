"""Reads what conditions name and hands it to the judges: the only place where healing looks at telemetry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from controlplane.healing.actions import World
from controlplane.healing.gates import (
    Reach,
    Reading,
    baseline_key,
    entities,
    facts,
    judge,
    reach,
)
from controlplane.healing.playbook import Condition, Missing, Playbook
from controlplane.healing.run import Verdict
from controlplane.healing.state import RunState

BASELINE_WINDOW_S = 300.0


class Scope(msgspec.Struct, frozen=True):
    """Whose metrics are read: the sick deployment, its routes, and who takes over."""

    target: str
    aliases: tuple[str, ...]
    failover: tuple[str, ...]

    @classmethod
    def of(cls, state: RunState) -> Scope:
        """The scope of a planned run."""
        plan = state.plan
        return cls(state.target, () if plan is None else plan.aliases, () if plan is None else plan.failover)


async def read(world: World, conditions: Sequence[Condition], scope: Scope, *, window_s: float) -> list[Reading]:
    """The measurements of conditions. window_s: the longest that any of them looks back."""
    readings = []
    for condition in conditions:
        span_s = window_s if condition.window is None else min(window_s, float(condition.window))
        targets = entities(condition, target=scope.target, aliases=scope.aliases, failover=scope.failover)
        measured = [await world.metrics.read(condition.metric or "", target, span_s) for target in targets]
        readings.append(Reading(condition, tuple(measured)))
    return readings


def reach_now(world: World, playbook: Playbook, deployment: str) -> Reach:
    """Who a run would touch now. Blocking: it asks for the active leases."""
    leased = [lease.deployment for lease in world.leases.active()]
    return reach(playbook, deployment, world.routes(), leased)


async def success(world: World, state: RunState, playbook: Playbook, *, window_s: float) -> Verdict:
    """Whether the run helped, and whether it did harm."""
    validation, scope = playbook.validation, Scope.of(state)
    baseline = {} if state.plan is None else state.plan.baseline
    max_age_s = float(playbook.spec.guards.telemetry_max_age)
    good = judge(
        await read(world, validation.success.all, scope, window_s=window_s),
        baseline=baseline,
        known={},
        max_age_s=max_age_s,
    )
    bad = await harm(world, state, playbook, window_s=window_s)
    return msgspec.structs.replace(good, harm=bad.harm, values={**bad.values, **good.values})


async def harm(world: World, state: RunState, playbook: Playbook, *, window_s: float) -> Verdict:
    """Whether the run does harm; what cannot be measured is no harm unless its condition says so."""
    return judge(
        await read(world, playbook.validation.harm.any, Scope.of(state), window_s=window_s),
        baseline={} if state.plan is None else state.plan.baseline,
        known={},
        max_age_s=float(playbook.spec.guards.telemetry_max_age),
        on_missing=Missing.FALSE,
        harms=True,
    )


async def gate(world: World, state: RunState, playbook: Playbook, step_id: str) -> Verdict:
    """Whether the gate behind a step passes."""
    spec = playbook.step(step_id).gate
    if spec is None:
        return Verdict(good=True)
    return judge(
        await read(world, spec.passes, Scope.of(state), window_s=float(spec.window)),
        baseline={},
        known={},
        max_age_s=float(playbook.spec.guards.telemetry_max_age),
    )


async def preconditions(world: World, state: RunState, playbook: Playbook, predicted: Reach) -> Verdict:
    """Whether the run may act."""
    spec = playbook.spec.preconditions
    return judge(
        await read(world, spec.all, Scope.of(state), window_s=BASELINE_WINDOW_S),
        baseline={},
        known=facts(predicted),
        max_age_s=float(playbook.spec.guards.telemetry_max_age),
        on_missing=spec.on_missing,
    )


async def baseline(world: World, playbook: Playbook, scope: Scope) -> dict[str, float]:
    """What conditions compare with later, as it is now."""
    wanted = [
        condition
        for condition in (*playbook.validation.success.all, *playbook.validation.harm.any)
        if condition.value.of_baseline
    ]
    found = {}
    for reading in await read(world, wanted, scope, window_s=BASELINE_WINDOW_S):
        values = [m.value for m in reading.measurements if m.samples > 0 and math.isfinite(m.value)]
        if values:
            found[baseline_key(reading.condition)] = max(values)
    return found

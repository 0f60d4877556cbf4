"""What must hold before a run begins, acts and counts as a success: guards, reach, and measured conditions. All pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from controlplane.clock import US_PER_S
from controlplane.healing.actions import METRICS, Measurement, RouteView, moved_share
from controlplane.healing.events import IncidentView
from controlplane.healing.playbook import Condition, Missing, Of, Op, Playbook
from controlplane.healing.run import Verdict
from controlplane.healing.state import ENDS, Status
from controlplane.settings import Autonomy


class Past(msgspec.Struct, frozen=True):
    """What guards need to know of an earlier run."""

    run_id: str
    playbook_id: str
    fingerprint: str
    status: Status
    matched_us: int
    ended_us: int


class Admission(msgspec.Struct, frozen=True):
    """Whether a run may begin, and at which level; refused_by: the guard that says no, or empty."""

    level: Autonomy
    why_level: str = ""
    refused_by: str = ""
    reason: str = ""


def matches(playbook: Playbook, incident: IncidentView) -> bool:
    """Whether the playbook's trigger is about this incident."""
    wanted = playbook.spec.trigger.incident
    return (
        (not wanted.kind or incident.kind in wanted.kind)
        and (not wanted.severity or incident.severity in wanted.severity)
        and incident.confidence >= wanted.min_confidence
    )


def admit(playbook: Playbook, incident: IncidentView, past: Sequence[Past], *, cap: Autonomy, now_us: int) -> Admission:
    """Whether a run may begin now.

    past: earlier runs, open ones included, newest last. cap: the most that settings allow the playbook.
    """
    level, why = _lowest((playbook.spec.autonomy.default, "its own default"), (cap, "the settings"))
    if playbook.spec.irreversible:
        level, why = _lowest((level, why), (Autonomy.APPROVE, "it is irreversible"))
    same = [run for run in past if run.fingerprint == incident.fingerprint and run.status is not Status.SUPPRESSED]
    for check in (_evidence(playbook, incident), _cooldown(playbook, same, now_us), _rate(playbook, past, now_us)):
        if check:
            return Admission(level, why, *check)
    if refused := _circuit(playbook, past, now_us):
        return Admission(level, why, *refused)
    flap = playbook.spec.guards.flap
    recent = [run for run in same if run.matched_us > now_us - _us(flap.window)]
    if len(recent) >= flap.max_runs:
        level, why = _lowest((level, why), (Autonomy(flap.then), f"{len(recent)} runs within {flap.window:g} s"))
    return Admission(level, why)


def _lowest(*levels: tuple[Autonomy, str]) -> tuple[Autonomy, str]:
    return min(levels, key=lambda level: list(Autonomy).index(level[0]))


def _evidence(playbook: Playbook, incident: IncidentView) -> tuple[str, str] | None:
    """Enough independent signals; a step that must see the fault with its own probes is one more."""
    trigger = playbook.spec.trigger
    probes = any(step.params.get("expect") == "failing" for step in playbook.spec.steps)
    sources = len(set(incident.sources)) + probes
    if sources >= trigger.require_sources or incident.confidence >= trigger.or_confidence:
        return None
    return "evidence", f"{sources} of {trigger.require_sources} independent signals"


_NO_COOLDOWN = {Status.SUPPRESSED, Status.REGRESSED}
_ROLLED_BACK = {Status.ROLLED_BACK, Status.ESCALATED}


def _cooldown(playbook: Playbook, same: Sequence[Past], now_us: int) -> tuple[str, str] | None:
    cooldown = playbook.spec.guards.cooldown
    for run in same:
        if run.status not in ENDS or run.status in _NO_COOLDOWN:
            continue
        span_s = cooldown.after_rollback if run.status in _ROLLED_BACK else cooldown.per_fingerprint
        if now_us < run.ended_us + _us(span_s):
            return "cooldown", f"{run.run_id} ended as {run.status} less than {span_s:g} s ago"
    return None


def _rate(playbook: Playbook, past: Sequence[Past], now_us: int) -> tuple[str, str] | None:
    rates = playbook.spec.guards.rate
    counted = [run for run in past if run.status is not Status.SUPPRESSED]
    for name, rate, runs in (
        ("rate.per_playbook", rates.per_playbook, [run for run in counted if run.playbook_id == playbook.id]),
        ("rate.global", rates.globally, counted),
    ):
        recent = sum(run.matched_us > now_us - _us(rate.window_s) for run in runs)
        if recent >= rate.count:
            return name, f"{recent} runs within {rate.window_s:g} s"
    return None


_FAILED = {Status.ESCALATED, Status.REGRESSED}
_HELPED = {Status.CLOSED}


def _circuit(playbook: Playbook, past: Sequence[Past], now_us: int) -> tuple[str, str] | None:
    """The breaker on the automation itself: its last runs all failed, the last one not long ago."""
    circuit = playbook.spec.guards.circuit
    told = [run for run in past if run.playbook_id == playbook.id and run.status in _FAILED | _HELPED]
    last = sorted(told, key=lambda run: run.ended_us)[-circuit.open_after_failed_runs :]
    if len(last) < circuit.open_after_failed_runs or any(run.status in _HELPED for run in last):
        return None
    if now_us >= last[-1].ended_us + _us(circuit.reset_after):
        return None
    return "circuit", f"the last {len(last)} runs of {playbook.id} failed; it rests for {circuit.reset_after:g} s"


class Reach(msgspec.Struct, frozen=True):
    """Who would be touched. failover: healthy deployments that take over; healthy_targets: on the route that has fewest."""

    aliases: tuple[str, ...]
    failover: tuple[str, ...]
    healthy_targets: int
    route_share: float
    total_share: float
    overridden: int


def reach(playbook: Playbook, deployment: str, routes: Sequence[RouteView], leased: Sequence[str]) -> Reach:
    """The predicted reach of a run on a deployment. leased: deployments under an override now."""
    moved = moved_share(playbook)
    mine = [route for route in routes if any(entry.deployment == deployment for entry in route.deployments)]
    healthy = {
        route.alias: [
            entry.deployment
            for entry in route.deployments
            if entry.healthy and entry.deployment != deployment and entry.deployment not in leased
        ]
        for route in mine
    }
    shares = [entry.share for route in mine for entry in route.deployments if entry.deployment == deployment]
    others = sum(
        entry.share
        for route in routes
        for entry in route.deployments
        if entry.deployment in leased and entry.deployment != deployment
    )
    return Reach(
        aliases=tuple(route.alias for route in mine),
        failover=tuple(dict.fromkeys(name for names in healthy.values() for name in names)),
        healthy_targets=min((len(names) for names in healthy.values()), default=0),
        route_share=max(shares, default=0.0) * moved,
        total_share=(sum(shares) * moved + others) / max(len(routes), 1),
        overridden=len(set(leased) - {deployment}),
    )


def too_far(playbook: Playbook, predicted: Reach, *, leases_max: int) -> str:
    """Why the predicted reach is too far; empty if it is not."""
    radius = playbook.blast_radius
    if not predicted.aliases:
        return "no route has the deployment"
    if predicted.route_share > radius.max_per_run:
        return f"it would move {predicted.route_share:.0%} of a route's calls, more than {radius.max_per_run:.0%}"
    if predicted.total_share > radius.max_concurrent_global:
        return f"{predicted.total_share:.0%} of all calls would be under overrides, more than {radius.max_concurrent_global:.0%}"
    if predicted.healthy_targets < radius.min_healthy_targets:
        return f"a route would be left with {predicted.healthy_targets} healthy deployments of {radius.min_healthy_targets}"
    if predicted.overridden + 1 > leases_max:
        return f"{predicted.overridden} deployments are under overrides, no more than {leases_max} may be"
    return ""


FACTS = ("targets.failover.count", "leases.active.count")
"""Facts that conditions may name."""


def facts(predicted: Reach) -> dict[str, float]:
    """The facts about a reach, by name."""
    return {"targets.failover.count": predicted.healthy_targets, "leases.active.count": predicted.overridden}


def entities(
    condition: Condition, *, target: str, aliases: Sequence[str], failover: Sequence[str]
) -> list[dict[str, str]]:
    """The targets that a condition's metric is read for."""
    if condition.metric is None:
        return []
    if METRICS[condition.metric] == "alias":
        return [{"alias": alias} for alias in aliases]
    names = failover if condition.of is Of.FAILOVER else [target]
    return [{"deployment": name} for name in names]


class Reading(msgspec.Struct, frozen=True):
    """What was read for one condition, one measurement per target."""

    condition: Condition
    measurements: tuple[Measurement, ...]


def judge(
    readings: Sequence[Reading],
    *,
    baseline: Mapping[str, float],
    known: Mapping[str, float],
    max_age_s: float,
    on_missing: Missing = Missing.ERROR,
    harms: bool = False,
) -> Verdict:
    """Whether all conditions hold (or, with `harms`, whether one does: then it is named in `harm`).

    baseline: by `baseline_key`; known: facts by name. A condition that cannot be judged follows its own `on_missing`, else the one given.
    """
    values: dict[str, float] = {}
    failed, unknown = "", ""
    for reading in readings:
        said = _holds(
            reading, baseline=baseline, known=known, max_age_s=max_age_s, on_missing=on_missing, any_target=harms
        )
        if (value := _worst(reading, known, max_age_s, harms=harms)) is not None:
            values[reading.condition.name] = value
        if harms and said:
            return Verdict(good=False, harm=_said(reading, values), values=values)
        if said is False:
            failed = failed or _said(reading, values)
        elif said is None:
            unknown = unknown or f"{reading.condition.name}: no fresh data"
    good = True if harms else (False if failed else (None if unknown else True))
    return Verdict(good=good, which=failed or unknown, values=values, samples=_samples(readings, max_age_s))


def _said(reading: Reading, values: Mapping[str, float]) -> str:
    name = reading.condition.name
    return f"{name} (is {values[name]:.4g})" if name in values else name


def _holds(
    reading: Reading,
    *,
    baseline: Mapping[str, float],
    known: Mapping[str, float],
    max_age_s: float,
    on_missing: Missing,
    any_target: bool,
) -> bool | None:
    condition = reading.condition
    limit = condition.value.value(baseline.get(baseline_key(condition)))
    said: list[bool] = []
    if condition.fact is not None and condition.fact in known and limit is not None:
        said = [_compare(known[condition.fact], condition.op, limit)]
    elif limit is not None:
        said = [_compare(measured.value, condition.op, limit) for measured in _usable(reading, max_age_s)]
    if said:
        return any(said) if any_target else all(said)
    missing = condition.on_missing or on_missing
    return None if missing is Missing.ERROR else missing is Missing.TRUE


def _usable(reading: Reading, max_age_s: float) -> list[Measurement]:
    """Measurements that are numbers, with enough samples, and fresh enough: stale telemetry is no telemetry."""
    least = max(reading.condition.min_samples, 1)
    return [m for m in reading.measurements if m.samples >= least and m.age_s <= max_age_s and math.isfinite(m.value)]


def _worst(reading: Reading, known: Mapping[str, float], max_age_s: float, *, harms: bool) -> float | None:
    """The value that speaks most against success, or most for harm."""
    condition = reading.condition
    if condition.fact is not None:
        return known.get(condition.fact)
    values = [measured.value for measured in _usable(reading, max_age_s)]
    if not values:
        return None
    low_is_worst = (condition.op in {Op.AT_LEAST, Op.ABOVE}) != harms
    return min(values) if low_is_worst else max(values)


def _samples(readings: Sequence[Reading], max_age_s: float) -> int:
    """The samples behind the metric that has fewest."""
    counts = [
        sum(measured.samples for measured in reading.measurements if measured.age_s <= max_age_s)
        for reading in readings
        if reading.condition.metric is not None
    ]
    return min(counts, default=0)


def _compare(value: float, op: Op, limit: float) -> bool:
    if op is Op.AT_LEAST:
        return value >= limit
    if op is Op.AT_MOST:
        return value <= limit
    if op is Op.ABOVE:
        return value > limit
    if op is Op.BELOW:
        return value < limit
    return value == limit


def baseline_key(condition: Condition) -> str:
    """Under which name a condition's baseline is kept in the plan."""
    return f"{condition.metric}@{condition.of}"


def _us(seconds: float) -> int:
    return round(seconds * US_PER_S)

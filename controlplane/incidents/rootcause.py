"""What may be behind an incident: recent changes that touch it first, then whatever explains most of its signals and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from controlplane.clock import US_PER_S
from controlplane.incidents.signal import Raised
from controlplane.incidents.topology import Topology

CauseKind = Literal["change", "provider", "deployment", "alias"]
CAUSES_MAX = 5
ONSET_TAU_S = 60.0
_DEPTH = {"provider": 1.0, "deployment": 0.5, "alias": 0.0}


class Change(msgspec.Struct, frozen=True):
    """Something that people or healing changed. names: every text in it, among which are those of what it touched."""

    position: int
    at_us: int
    type: str
    actor: str = ""
    names: frozenset[str] = frozenset()


class Cause(msgspec.Struct, frozen=True):
    """One candidate. entity: the upstream, deployment or alias, or the type of the change; position: of the change in the journal."""

    kind: CauseKind
    entity: str
    score: float
    reasons: tuple[str, ...]
    position: int = 0


def rank(
    signals: Sequence[Raised], changes: Sequence[Change], topology: Topology, *, change_window_s: float
) -> tuple[Cause, ...]:
    """At most five causes, the likeliest first: changes that touch the incident, then its entities, then other changes.

    An entity scores by the share of signals it explains (0.4), the share of what depends on it that is affected (0.3), how early it
    was affected (0.2) and how deep it lies (0.1). A change counts when it came at most `change_window_s` before the first signal began.
    """
    if not signals:
        return ()
    onset_us = min(signal.started_us for signal in signals)
    entities = sorted(_candidates(signals, topology), key=lambda one: (-one.score, one.entity))
    names = frozenset(name for signal in signals for name in _names(signal, topology))
    touching: list[Cause] = []
    other: list[Cause] = []
    for change in changes:
        before_s = (onset_us - change.at_us) / US_PER_S
        if 0.0 <= before_s <= change_window_s:
            touched = sorted(change.names & names)
            (touching if touched else other).append(_changed(change, touched, before_s, change_window_s))
    return (*sorted(touching, key=_likeliest), *entities, *sorted(other, key=_likeliest))[:CAUSES_MAX]


def _likeliest(cause: Cause) -> tuple[float, int]:
    """Sorts by score, of equals the newest change first."""
    return -cause.score, -cause.position


def _changed(change: Change, touched: list[str], before_s: float, window_s: float) -> Cause:
    """A change as a cause: the closer before the onset, the likelier."""
    nearness = 1.0 - before_s / window_s if window_s else 1.0
    reasons = [f"{before_s:.0f} s before the first signal"]
    if touched:
        reasons.append(f"touches {', '.join(touched[:3])}")
    if change.actor:
        reasons.append(f"by {change.actor}")
    score = 0.6 + 0.4 * nearness if touched else 0.3 * nearness
    return Cause(
        kind="change", entity=change.type, score=round(score, 4), reasons=tuple(reasons), position=change.position
    )


def _names(signal: Raised, topology: Topology) -> frozenset[str]:
    """What a change must name to touch the signal: its causes, and the aliases that use its deployments."""
    deployments = topology.deployments_of(signal)
    aliases = {alias for alias, members in topology.aliases.items() if members & deployments}
    return frozenset(aliases | {entity.split(":", 1)[1] for entity in topology.causes_of(signal)})


def _candidates(signals: Sequence[Raised], topology: Topology) -> list[Cause]:
    """Every entity a signal may have flowed from, scored."""
    first_us = min(signal.started_us for signal in signals)
    sick = frozenset(signal.deployment for signal in signals if signal.deployment)
    causes: list[Cause] = []
    for candidate in sorted({entity for signal in signals for entity in topology.causes_of(signal)}):
        prefix, name = candidate.split(":", 1)
        kind: CauseKind = "provider" if prefix == "upstream" else "alias" if prefix == "alias" else "deployment"
        explained = [signal for signal in signals if candidate in topology.causes_of(signal)]
        dependants = topology.siblings(name) or sick if kind == "provider" else frozenset({name})
        affected = dependants & (sick if kind != "alias" else frozenset({name}))
        own = [signal for signal in explained if kind == "alias" or signal.deployment] or explained
        late_s = (min(signal.started_us for signal in own) - first_us) / US_PER_S
        share, covered = len(explained) / len(signals), len(affected) / len(dependants)
        score = 0.4 * share + 0.3 * covered + 0.2 * math.exp(-late_s / ONSET_TAU_S) + 0.1 * _DEPTH[kind]
        reasons = (
            f"explains {len(explained)} of {len(signals)} signals",
            f"{len(affected)} of {len(dependants)} that depend on it are affected" if kind == "provider" else "",
            f"affected {late_s:.0f} s after the first signal" if late_s > 0 else "affected first",
        )
        causes.append(Cause(kind=kind, entity=name, score=round(score, 4), reasons=tuple(filter(None, reasons))))
    return causes

"""When two signals are one problem: near in time, alike in labels, joined in the topology, alike in words."""

from __future__ import annotations

import math

import msgspec

from controlplane.clock import US_PER_S
from controlplane.incidents.incident import Incident, IncidentPolicy
from controlplane.incidents.signal import Raised
from controlplane.incidents.topology import Topology

WEIGHT_TIME, WEIGHT_LABELS, WEIGHT_TOPOLOGY, WEIGHT_TEXT = 0.35, 0.25, 0.30, 0.10
TAU_S = 300.0  # after five minutes nearness in time is worth 1/e


class Link(msgspec.Struct, frozen=True):
    """How strongly a signal belongs to an incident; each part in [0, 1], score their weighted sum."""

    score: float
    time: float
    labels: float
    topology: float
    text: float


def link(signal: Raised, incident: Incident, topology: Topology, *, now_us: int, policy: IncidentPolicy) -> Link:
    """The signal's link to an open incident: to whichever of its signals it is closest to.

    An incident's aliases are its symptoms: while it has signals of deployments, only those attract others, or two providers behind one
    alias would always be one incident. Signals further apart than `group_window_s` are not linked at all.
    """
    apart_s = _apart_s(signal, incident, now_us)
    if apart_s > policy.group_window_s:
        return Link(score=0.0, time=0.0, labels=0.0, topology=0.0, text=0.0)
    time = math.exp(-apart_s / TAU_S)
    known = [state.signal for state in incident.signals]
    causal = [other for other in known if other.deployment] or known
    return max((_pair(signal, other, topology, time) for other in causal), key=lambda one: one.score)


def best(
    signal: Raised, incidents: list[Incident], topology: Topology, *, now_us: int, policy: IncidentPolicy
) -> tuple[Incident, Link] | None:
    """The open incident that the signal belongs to, if any link is strong enough; of equals the oldest."""
    links = [(one, link(signal, one, topology, now_us=now_us, policy=policy)) for one in incidents if one.is_open]
    strong = [pair for pair in links if pair[1].score >= policy.link_min]
    return max(strong, key=lambda pair: (pair[1].score, -pair[0].opened_us), default=None)


def _pair(signal: Raised, other: Raised, topology: Topology, time: float) -> Link:
    """The link of two signals, given their nearness in time."""
    labels = _jaccard(topology.causes_of(signal), topology.causes_of(other))
    hops = topology.hops(signal, other)
    near = 0.0 if hops is None else 1.0 / (1.0 + hops)
    text = _jaccard(frozenset(signal.kind.split("_")), frozenset(other.kind.split("_")))
    score = WEIGHT_TIME * time + WEIGHT_LABELS * labels + WEIGHT_TOPOLOGY * near + WEIGHT_TEXT * text
    return Link(score=score, time=time, labels=labels, topology=near, text=text)


def _apart_s(signal: Raised, incident: Incident, now_us: int) -> float:
    """Seconds between the signal's begin and the time the incident was active; 0 within it."""
    end_us = now_us if incident.raised else max(known.since_us for known in incident.signals)
    return max(0, incident.onset_us - signal.started_us, signal.started_us - end_us) / US_PER_S


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared over all."""
    return len(left & right) / len(left | right) if left | right else 0.0

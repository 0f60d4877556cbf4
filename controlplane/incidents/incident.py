"""An incident: its events, what it is after them, and what happens to it next. Pure; the journal is the register's business.

pending -> firing -> resolved, and from resolved back to pending while it may be reopened. A pending incident whose signals go away
before they are confirmed is dismissed, which is resolved without ever having fired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from controlplane.clock import US_PER_S
from controlplane.incidents.rootcause import Cause
from controlplane.incidents.signal import Raised, Severity, worst
from controlplane.journal.events import Codec, Event
from controlplane.settings import IncidentSettings

State = Literal["pending", "firing", "resolved"]
STREAM_PREFIX = "incident-"


class Opened(msgspec.Struct, frozen=True, tag="incident.opened"):
    """A signal that belongs to no open incident made one. link: to the incident's other signals, here 1."""

    incident_id: str
    at_us: int
    fingerprint: str
    title: str
    signal: Raised


class SignalAttached(msgspec.Struct, frozen=True, tag="incident.signal_attached"):
    """Another signal turned out to be the same problem. link: how sure that is, in [0, 1]."""

    at_us: int
    signal: Raised
    link: float


class SignalRaised(msgspec.Struct, frozen=True, tag="incident.signal_raised"):
    """A signal of this incident that had cleared is back."""

    at_us: int
    signal: Raised


class SignalCleared(msgspec.Struct, frozen=True, tag="incident.signal_cleared"):
    """A signal of this incident is over. by: telemetry, breaker, probe, silence, retired, expired."""

    at_us: int
    signal_id: str
    by: str


class Fired(msgspec.Struct, frozen=True, tag="incident.fired"):
    """Enough independent signals agreed for long enough. confidence: of the surest one."""

    at_us: int
    sources: tuple[str, ...]
    confidence: float


class CausesRanked(msgspec.Struct, frozen=True, tag="incident.causes_ranked"):
    """What may be behind it, the likeliest first."""

    at_us: int
    causes: tuple[Cause, ...]


class Resolved(msgspec.Struct, frozen=True, tag="incident.resolved"):
    """All its signals stayed clear for long enough."""

    at_us: int


class Dismissed(msgspec.Struct, frozen=True, tag="incident.dismissed"):
    """Its signals went away before they were confirmed; nobody was told."""

    at_us: int


class Reopened(msgspec.Struct, frozen=True, tag="incident.reopened"):
    """A signal of it came back soon after it was resolved."""

    at_us: int
    signal: Raised


IncidentEvent = (
    Opened | SignalAttached | SignalRaised | SignalCleared | Fired | CausesRanked | Resolved | Dismissed | Reopened
)
EVENT_TYPES: tuple[type[msgspec.Struct], ...] = (
    Opened, SignalAttached, SignalRaised, SignalCleared, Fired, CausesRanked, Resolved, Dismissed, Reopened,
)  # fmt: skip
CODEC: Codec[IncidentEvent] = Codec(IncidentEvent)


class SignalState(msgspec.Struct, frozen=True):
    """A signal of the incident as it was last raised, and whether it still is. since_us: of that."""

    signal: Raised
    raised: bool
    since_us: int


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """An incident after its events. onset_us: when the earliest signal began; the other times are 0 until they happen."""

    id: str = ""
    state: State = "pending"
    fingerprint: str = ""
    title: str = ""
    severity: Severity = "low"
    opened_us: int = 0
    onset_us: int = 0
    pending_us: int = 0
    fired_us: int = 0
    resolved_us: int = 0
    reopened: int = 0
    sources: tuple[str, ...] = ()
    signals: tuple[SignalState, ...] = ()
    causes: tuple[Cause, ...] = ()
    version: int = 0  # of its stream

    @property
    def is_open(self) -> bool:
        """Whether it is not resolved."""
        return self.state != "resolved"

    @property
    def raised(self) -> tuple[SignalState, ...]:
        """Its signals that have not cleared."""
        return tuple(known for known in self.signals if known.raised)

    @property
    def deployments(self) -> tuple[str, ...]:
        """The deployments its signals name, sorted."""
        return tuple(sorted({known.signal.deployment for known in self.signals if known.signal.deployment}))

    def signal(self, signal_id: str) -> SignalState | None:
        """One of its signals."""
        return next((known for known in self.signals if known.signal.signal_id == signal_id), None)


class IncidentPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an incident fires, is over, and may come back."""

    pending_s: float = 0.0
    resolve_after_s: float = 30.0
    group_window_s: float = 120.0
    open_max: int = 500
    require_sources: int = 2  # independent sources that must agree,
    confidence_alone: float = 0.95  # or one signal at least this sure
    reopen_s: float = 900.0
    silent_s: float = 30.0  # a signal not repeated for this long is silent: a good probe may then speak for it
    expire_s: float = 21_600.0  # a signal silent for this long is over whatever it was
    link_min: float = 0.55
    kept_max: int = 1_000  # resolved incidents that lists show; older ones are found by their id
    change_window_s: float = 1_800.0

    @classmethod
    def of(cls, settings: IncidentSettings) -> IncidentPolicy:
        """What the operator set; the rest as it is."""
        return cls(
            pending_s=settings.pending_s,
            resolve_after_s=settings.resolve_after_s,
            group_window_s=settings.group_window_s,
            open_max=settings.open_max,
        )


def evolve(incident: Incident, event: IncidentEvent) -> Incident:
    """The incident after one more event; raises nothing, whatever the order."""
    changed = msgspec.structs.replace(incident, version=incident.version + 1)
    match event:
        case Opened():
            return _with_signal(
                msgspec.structs.replace(
                    changed,
                    id=event.incident_id,
                    state="pending",
                    fingerprint=event.fingerprint,
                    title=event.title,
                    opened_us=event.at_us,
                    pending_us=event.at_us,
                ),
                event.signal,
                at_us=event.at_us,
            )
        case SignalAttached() | SignalRaised():
            return _with_signal(changed, event.signal, at_us=event.at_us)
        case SignalCleared():
            return _without_signal(changed, event.signal_id, at_us=event.at_us)
        case Fired():
            return msgspec.structs.replace(changed, state="firing", fired_us=event.at_us, sources=event.sources)
        case CausesRanked():
            return msgspec.structs.replace(changed, causes=event.causes)
        case Resolved() | Dismissed():
            return msgspec.structs.replace(changed, state="resolved", resolved_us=event.at_us)
        case Reopened():
            reopened = msgspec.structs.replace(
                changed, state="pending", pending_us=event.at_us, resolved_us=0, reopened=incident.reopened + 1
            )
            return _with_signal(reopened, event.signal, at_us=event.at_us)


def next_events(
    incident: Incident, live: Mapping[str, Raised], *, now_us: int, policy: IncidentPolicy
) -> tuple[IncidentEvent, ...]:
    """What the passing of time and the present signals do to the incident: fire, resolve, dismiss, or nothing.

    live: what sources say now, by signal id; a raised signal they do not mention counts as it was last recorded.
    """
    raised = [live.get(known.signal.signal_id, known.signal) for known in incident.raised]
    if not incident.is_open:
        return ()
    if not raised:
        quiet_us = now_us - max((known.since_us for known in incident.signals), default=incident.opened_us)
        if quiet_us < policy.resolve_after_s * US_PER_S:
            return ()
        return (Resolved(at_us=now_us),) if incident.state == "firing" else (Dismissed(at_us=now_us),)
    if incident.state == "firing" or now_us - incident.pending_us < policy.pending_s * US_PER_S:
        return ()
    sources = tuple(sorted({signal.source for signal in raised}))
    confidence = max(signal.score for signal in raised)
    if len(sources) < policy.require_sources and confidence < policy.confidence_alone:
        return ()
    return (Fired(at_us=now_us, sources=sources, confidence=confidence),)


def history(events: Iterable[Event]) -> Iterator[tuple[Event, IncidentEvent, Incident]]:
    """Each event of one incident's stream with its payload and the incident after it; for timelines and copies.

    Raises UnknownEvent for an event this version cannot read.
    """
    incident = Incident()
    for event in events:
        payload = CODEC.decode(event)
        incident = evolve(incident, payload)
        yield event, payload, incident


def stream_of(incident_id: str) -> str:
    """The journal stream of an incident."""
    return f"{STREAM_PREFIX}{incident_id}"


def _with_signal(incident: Incident, signal: Raised, *, at_us: int) -> Incident:
    """The incident with a signal raised."""
    others = tuple(known for known in incident.signals if known.signal.signal_id != signal.signal_id)
    signals = (*others, SignalState(signal=signal, raised=True, since_us=at_us))
    onset_us = min(incident.onset_us or signal.started_us, signal.started_us)
    severity = worst([incident.severity, signal.severity])
    return msgspec.structs.replace(incident, signals=signals, onset_us=onset_us, severity=severity)


def _without_signal(incident: Incident, signal_id: str, *, at_us: int) -> Incident:
    """The incident with a signal cleared; one it does not have, or that has cleared, changes nothing."""
    signals = tuple(
        msgspec.structs.replace(known, raised=False, since_us=at_us)
        if known.signal.signal_id == signal_id and known.raised
        else known
        for known in incident.signals
    )
    return msgspec.structs.replace(incident, signals=signals)

"""Incident events and titles in words, for `incidents show`, the console and alerts."""

from __future__ import annotations

from controlplane.incidents.incident import (
    CausesRanked,
    Dismissed,
    Fired,
    IncidentEvent,
    Opened,
    Reopened,
    Resolved,
    SignalAttached,
    SignalCleared,
    SignalRaised,
)
from controlplane.incidents.signal import Raised

_TITLES = {
    "success_ratio": "calls to {target} fail",
    "alias_success_ratio": "calls for {target} fail",
    "first_token_p95": "{target} is slow to begin",
    "breaker_open": "breaker of {target} is open",
    "probe_failed": "probes of {target} fail",
}
_CLEARED_BY = {
    "telemetry": "traffic is well again",
    "breaker": "breakers are closed again",
    "probe": "probes succeed again",
    "silence": "what caused it is over, and nobody reports it any more",
    "retired": "its target is no longer configured",
    "expired": "nobody has reported it for too long",
}


def title_of(signal: Raised) -> str:
    """What is wrong, in a few words."""
    target = signal.alias or signal.deployment
    return _TITLES.get(signal.kind, f"{signal.kind.replace('_', ' ')} of {{target}}").format(target=target)


def narrate(event: IncidentEvent) -> str:
    """One event as a sentence."""
    match event:
        case Opened():
            return f"opened: {event.title}; {_evidence(event.signal)}"
        case SignalAttached():
            return f"joined by {event.signal.signal_id} (link {event.link:.2f}); {_evidence(event.signal)}"
        case SignalRaised():
            return f"{event.signal.signal_id} is back; {_evidence(event.signal)}"
        case SignalCleared():
            return f"{event.signal_id} cleared: {_CLEARED_BY.get(event.by, event.by)}"
        case Fired():
            verb = "agree" if len(event.sources) > 1 else "is sure"
            return f"fires: {' and '.join(event.sources)} {verb}, confidence {event.confidence:.2f}"
        case CausesRanked():
            return "likely cause: " + "; ".join(
                f"{cause.kind} {cause.entity} ({', '.join(cause.reasons)})" for cause in event.causes[:2]
            )
        case Resolved():
            return "resolved: all signals stayed clear"
        case Dismissed():
            return "dismissed: its signals went away before they were confirmed"
        case Reopened():
            return f"reopened: {title_of(event.signal)} again; {_evidence(event.signal)}"


def _evidence(signal: Raised) -> str:
    return "; ".join(signal.evidence) or f"score {signal.score:.2f}"

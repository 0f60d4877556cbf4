"""What incidents are made of: signals that something is wrong, or right again, each from one source about one target.

Detection speaks the same words; the app hands them over as plain data, since the two do not know each other.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
PROBE_OK = "probe_ok"  # a clear of this kind is a statement about the deployment as a whole


class Raised(msgspec.Struct, frozen=True, kw_only=True, tag="anomaly"):
    """Something is wrong, as one source sees it.

    signal_id: the same for the same thing watched of the same target, always. score: confidence in [0, 1]. value, expected: None where
    unknown. started_us: when it began; at_us: when it was last seen. Exactly one of deployment and alias is set.
    """

    signal_id: str
    kind: str
    source: str
    severity: Severity
    score: float
    started_us: int
    at_us: int
    deployment: str = ""
    upstream: str = ""
    alias: str = ""
    value: float | None = None
    expected: float | None = None
    evidence: tuple[str, ...] = ()


class Cleared(msgspec.Struct, frozen=True, kw_only=True, tag="cleared"):
    """The source sees, with data, that it is right."""

    signal_id: str
    kind: str
    source: str
    at_us: int
    deployment: str = ""
    upstream: str = ""
    alias: str = ""
    evidence: tuple[str, ...] = ()


Signal = Raised | Cleared


def signal_of(document: object) -> Signal:
    """A signal from plain data (`msgspec.to_builtins` of one of detection's); raises msgspec.ValidationError."""
    signal: Signal = msgspec.convert(document, Raised | Cleared)
    if isinstance(signal, Raised):
        return msgspec.structs.replace(signal, value=_known(signal.value), expected=_known(signal.expected))
    return signal


def fingerprint(signal: Raised) -> str:
    """16 hex characters of what is identical whenever this problem comes again: kind and target, never values or times."""
    identity = f"{signal.kind}\n{signal.deployment}\n{signal.upstream}\n{signal.alias}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def worst(severities: list[Severity]) -> Severity:
    """The most severe; at least one must be given."""
    return max(severities, key=SEVERITIES.index)


def _known(value: float | None) -> float | None:
    """NaN as None, which survives JSON."""
    return None if value is None or value != value else value

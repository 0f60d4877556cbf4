"""What detection says: something is wrong with a deployment or an alias, or it is right again.

Signals are repeated with every sweep while they hold and carry no memory, so that nothing is lost when a process starts anew; whoever listens
remembers by `signal_id`. Silence is no signal: where there is no data, detection says neither.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["low", "medium", "high", "critical"]
Source = Literal["telemetry", "breaker", "probe"]

BREAKER_OPEN = "breaker_open"
PROBE_FAILED = "probe_failed"
PROBE_OK = "probe_ok"


class Anomaly(msgspec.Struct, frozen=True, kw_only=True, tag="anomaly"):
    """Something is wrong, as one source sees it.

    signal_id: the same for the same watch of the same target, always. score: confidence in [0, 1]. value, expected: in the unit of the watch,
    NaN where there is none. started_us: when it began, at_us: when it was last seen. evidence: sentences for people.
    """

    signal_id: str
    kind: str
    source: Source
    severity: Severity
    score: float
    started_us: int
    at_us: int
    deployment: str = ""
    upstream: str = ""
    alias: str = ""
    value: float = float("nan")
    expected: float = float("nan")
    evidence: tuple[str, ...] = ()


class Cleared(msgspec.Struct, frozen=True, kw_only=True, tag="cleared"):
    """The source sees, with data, that it is right; kind `probe_ok` is a statement about the deployment as a whole."""

    signal_id: str
    kind: str
    source: Source
    at_us: int
    deployment: str = ""
    upstream: str = ""
    alias: str = ""
    evidence: tuple[str, ...] = ()


Signal = Anomaly | Cleared


def signal_id(kind: str, target: str) -> str:
    """The identity of a signal: what is watched, and of whom; never a value or a time."""
    return f"{kind}/{target}"

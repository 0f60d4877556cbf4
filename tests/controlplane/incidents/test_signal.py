"""Signals as they come from detection."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.detection.signals import Anomaly
from controlplane.detection.signals import Cleared as DetectionCleared
from controlplane.incidents.signal import Cleared, Raised, fingerprint, signal_of, worst
from tests.controlplane.incidents.fakes import raised


def test_detections_words_are_understood() -> None:
    """What detection says, handed over as plain data, is a signal with every field; NaN is unknown."""
    anomaly = Anomaly(
        signal_id="s", kind="success_ratio", source="telemetry", severity="high", score=0.9, started_us=1, at_us=2, deployment="a/m",
        upstream="a", value=0.5, evidence=("e",),
    )  # fmt: skip
    signal = signal_of(msgspec.to_builtins(anomaly))
    assert Raised(
        signal_id="s", kind="success_ratio", source="telemetry", severity="high", score=0.9, started_us=1, at_us=2, deployment="a/m",
        upstream="a", value=0.5, expected=None, evidence=("e",),
    ) == signal  # fmt: skip
    cleared = DetectionCleared(signal_id="s", kind="probe_ok", source="probe", at_us=2, deployment="a/m")
    assert Cleared(signal_id="s", kind="probe_ok", source="probe", at_us=2, deployment="a/m") == signal_of(
        msgspec.to_builtins(cleared)
    )


@pytest.mark.parametrize("document", [{}, {"type": "rumour"}, {"type": "anomaly", "signal_id": 5}, None])
def test_anything_else_is_refused(document: object) -> None:
    """Half a signal is none."""
    with pytest.raises(msgspec.ValidationError):
        signal_of(document)


def test_a_fingerprint_is_of_what_not_of_when() -> None:
    """The same problem tomorrow, worse or not, has the same fingerprint; another target has another."""
    assert fingerprint(raised(score=0.9)) == fingerprint(raised(score=0.99, at_s=1000))
    assert fingerprint(raised()) != fingerprint(raised(deployment="a/m2"))
    assert fingerprint(raised()) != fingerprint(raised("breaker_open"))


def test_the_worst_severity() -> None:
    """Critical is worse than high, medium and low."""
    assert "critical" == worst(["low", "critical", "high", "medium"])

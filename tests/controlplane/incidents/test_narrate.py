"""Incidents in words."""

from __future__ import annotations

import pytest

from controlplane.incidents.incident import (
    CausesRanked,
    Dismissed,
    Fired,
    IncidentEvent,
    Reopened,
    SignalAttached,
    SignalCleared,
    SignalRaised,
)
from controlplane.incidents.narrate import narrate, title_of
from controlplane.incidents.rootcause import Cause
from controlplane.incidents.signal import Raised
from tests.controlplane.incidents.fakes import alias_raised, raised


@pytest.mark.parametrize(
    ("signal", "title"),
    [
        (raised(), "calls to a/m1 fail"),
        (alias_raised("fast"), "calls for fast fail"),
        (raised("first_token_p95"), "a/m1 is slow to begin"),
        (raised("breaker_open"), "breaker of a/m1 is open"),
        (raised("probe_failed"), "probes of a/m1 fail"),
        (raised("queue_depth"), "queue depth of a/m1"),
    ],
)
def test_titles(signal: Raised, title: str) -> None:
    """A title says what is wrong with what; a kind of the future is spelt out."""
    assert title == title_of(signal)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (
            SignalAttached(at_us=0, signal=raised(), link=0.65),
            "joined by success_ratio/a/m1 (link 0.65); seen in a test",
        ),
        (SignalRaised(at_us=0, signal=raised()), "success_ratio/a/m1 is back; seen in a test"),
        (SignalCleared(at_us=0, signal_id="s", by="probe"), "s cleared: probes succeed again"),
        (SignalCleared(at_us=0, signal_id="s", by="magic"), "s cleared: magic"),
        (
            Fired(at_us=0, sources=("breaker", "telemetry"), confidence=0.9),
            "fires: breaker and telemetry agree, confidence 0.90",
        ),
        (
            CausesRanked(at_us=0, causes=(Cause(kind="provider", entity="a", score=1.0, reasons=("affected first",)),)),
            "likely cause: provider a (affected first)",
        ),
        (Dismissed(at_us=0), "dismissed: its signals went away before they were confirmed"),
        (Reopened(at_us=0, signal=raised()), "reopened: calls to a/m1 fail again; seen in a test"),
    ],
)
def test_sentences(event: IncidentEvent, sentence: str) -> None:
    """Every event is a sentence an operator can read."""
    assert sentence == narrate(event)

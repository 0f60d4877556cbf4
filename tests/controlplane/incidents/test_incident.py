"""The state machine: its table, and the properties of its fold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.clock import US_PER_S
from controlplane.incidents.incident import (
    CODEC,
    CausesRanked,
    Dismissed,
    Fired,
    Incident,
    IncidentEvent,
    IncidentPolicy,
    Opened,
    Reopened,
    Resolved,
    SignalAttached,
    SignalCleared,
    SignalRaised,
    evolve,
    next_events,
)
from controlplane.incidents.rootcause import Cause
from controlplane.incidents.signal import Raised
from controlplane.journal.events import Event, UnknownEvent, tag_of
from controlplane.journal.fold import fold
from controlplane.settings import IncidentSettings
from tests.controlplane.incidents.fakes import START_US, alias_raised, raised

POLICY = IncidentPolicy(pending_s=10.0, resolve_after_s=30.0)


def _at(seconds: float) -> int:
    return START_US + round(seconds * US_PER_S)


def _opened(signal: Raised | None = None) -> Opened:
    return Opened(incident_id="inc_1", at_us=_at(0), fingerprint="f", title="t", signal=signal or raised())


UNSURE, SURE = raised(score=0.9), raised(score=0.96)
SECOND = raised("breaker_open", score=0.9)
CLEAR = SignalCleared(at_us=_at(10), signal_id="success_ratio/a/m1", by="telemetry")
FIRED = Fired(at_us=_at(10), sources=("telemetry",), confidence=0.99)


@pytest.mark.parametrize(
    ("past", "seconds", "happens"),
    [
        ([_opened(SURE)], 9, None),  # not for long enough
        ([_opened(SURE)], 10, Fired),
        ([_opened(UNSURE)], 10, None),  # one unsure source
        ([_opened(UNSURE), SignalAttached(at_us=_at(5), signal=SECOND, link=0.9)], 10, Fired),
        (
            [_opened(UNSURE), SignalAttached(at_us=_at(5), signal=raised("first_token_p95", score=0.9), link=0.9)],
            60,
            None,
        ),
        ([_opened(SURE), CLEAR], 39, None),
        ([_opened(SURE), CLEAR], 40, Dismissed),  # never confirmed
        ([_opened(SURE), FIRED], 3600, None),  # as long as it is raised
        ([_opened(SURE), FIRED, CLEAR], 39, None),
        ([_opened(SURE), FIRED, CLEAR], 40, Resolved),
        ([_opened(SURE), FIRED, CLEAR, SignalRaised(at_us=_at(20), signal=SURE)], 3600, None),
        ([_opened(SURE), FIRED, CLEAR, Resolved(at_us=_at(40))], 3600, None),
        ([_opened(SURE), CLEAR, Dismissed(at_us=_at(40))], 3600, None),
        ([_opened(SURE), FIRED, CLEAR, Resolved(at_us=_at(40)), Reopened(at_us=_at(50), signal=SURE)], 59, None),
        ([_opened(SURE), FIRED, CLEAR, Resolved(at_us=_at(40)), Reopened(at_us=_at(50), signal=SURE)], 60, Fired),
    ],
)
def test_what_time_does(past: list[IncidentEvent], seconds: float, happens: type | None) -> None:
    """Each state waits for its own condition, and only for that."""
    incident = fold(Incident(), past, evolve)
    events = next_events(incident, {}, now_us=_at(seconds), policy=POLICY)
    assert ([] if happens is None else [happens]) == [type(event) for event in events]


def test_what_sources_say_now_counts_more_than_what_was_recorded() -> None:
    """A signal that was unsure when it was attached and is sure by now confirms."""
    incident = fold(Incident(), [_opened(UNSURE)], evolve)
    live = {SURE.signal_id: SURE}
    (event,) = next_events(incident, live, now_us=_at(10), policy=POLICY)
    assert isinstance(event, Fired)
    assert 0.96 == event.confidence


def test_severity_and_onset_are_the_worst_and_the_earliest() -> None:
    """A later critical symptom raises the severity; an earlier beginning moves the onset."""
    earlier = msgspec.structs.replace(alias_raised("fast"), started_us=_at(-20))
    incident = fold(Incident(), [_opened(), SignalAttached(at_us=_at(5), signal=earlier, link=0.7)], evolve)
    assert ("critical", _at(-20)) == (incident.severity, incident.onset_us)


def test_the_policy_takes_what_the_operator_set() -> None:
    """Settings reach the policy, the rest keeps its default."""
    policy = IncidentPolicy.of(IncidentSettings(pending_s=7.0, resolve_after_s=8.0, group_window_s=9.0, open_max=10))
    assert IncidentPolicy(pending_s=7.0, resolve_after_s=8.0, group_window_s=9.0, open_max=10) == policy


SIGNALS = st.builds(
    raised,
    st.sampled_from(["success_ratio", "breaker_open"]),
    st.sampled_from(["a/m1", "a/m2"]),
    at_s=st.integers(0, 100),
)
TIMES = st.integers(0, 1000).map(_at)
EVENTS: st.SearchStrategy[IncidentEvent] = st.one_of(
    st.builds(
        Opened, incident_id=st.just("inc_1"), at_us=TIMES, fingerprint=st.just("f"), title=st.just("t"), signal=SIGNALS
    ),
    st.builds(SignalAttached, at_us=TIMES, signal=SIGNALS, link=st.just(0.6)),
    st.builds(SignalRaised, at_us=TIMES, signal=SIGNALS),
    st.builds(SignalCleared, at_us=TIMES, signal_id=SIGNALS.map(lambda one: one.signal_id), by=st.just("telemetry")),
    st.builds(Fired, at_us=TIMES, sources=st.just(("telemetry",)), confidence=st.just(0.99)),
    st.builds(CausesRanked, at_us=TIMES, causes=st.just((Cause(kind="provider", entity="a", score=1.0, reasons=()),))),
    st.builds(Resolved, at_us=TIMES),
    st.builds(Dismissed, at_us=TIMES),
    st.builds(Reopened, at_us=TIMES, signal=SIGNALS),
)


@given(st.lists(EVENTS, max_size=30))
def test_a_fold_never_fails_and_counts_its_events(events: list[IncidentEvent]) -> None:
    """Whatever the order, each event gives a state; the version is the number of events; signals are never doubled."""
    incident = fold(Incident(), events, evolve)
    assert len(events) == incident.version
    ids = [known.signal.signal_id for known in incident.signals]
    assert len(ids) == len(set(ids))


@given(st.lists(EVENTS, max_size=30), st.integers(0, 30))
def test_a_fold_in_two_parts_is_the_fold_of_the_whole(events: list[IncidentEvent], cut: int) -> None:
    """State is nothing but its events, so it can be kept and continued."""
    assert fold(Incident(), events, evolve) == fold(fold(Incident(), events[:cut], evolve), events[cut:], evolve)


@given(st.lists(EVENTS, max_size=20))
def test_events_survive_the_journal(events: list[IncidentEvent]) -> None:
    """Written as JSON and read again, each event is the same."""
    for version, event in enumerate(events, start=1):
        row = Event(
            global_pos=version, stream_id="incident-inc_1", version=version, event_id="e", type=tag_of(event), schema_ver=1,
            data=msgspec.json.encode(event), occurred_us=event.at_us,
        )  # fmt: skip
        assert event == CODEC.decode(row)


def test_an_event_of_another_version_stops_the_fold() -> None:
    """What cannot be read is never skipped."""
    row = Event(
        global_pos=1, stream_id="incident-inc_1", version=1, event_id="e", type="incident.sung", schema_ver=1,
        data=b'{"type": "incident.sung"}', occurred_us=0,
    )  # fmt: skip
    with pytest.raises(UnknownEvent):
        CODEC.decode(row)

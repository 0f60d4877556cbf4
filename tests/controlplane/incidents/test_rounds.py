"""Properties of the register under any mix of signals, time and restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.incidents.signal import Signal
from tests.controlplane.incidents.fakes import Rig, alias_raised, cleared, raised

TARGETS = ["a/m1", "a/m2", "z/m9"]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("raise"),
            st.sampled_from(TARGETS),
            st.sampled_from(["success_ratio", "breaker_open", "probe_failed"]),
        ),
        st.tuples(
            st.just("clear"), st.sampled_from(TARGETS), st.sampled_from(["success_ratio", "breaker_open", "probe_ok"])
        ),
        st.tuples(st.just("alias"), st.sampled_from(["fast", "odd"]), st.just("")),
        st.tuples(st.just("wait"), st.sampled_from(["1", "20", "60", "1000"]), st.just("")),
        st.tuples(st.just("restart"), st.just(""), st.just("")),
    ),
    max_size=25,
)


def _signal(rig: Rig, step: tuple[str, str, str]) -> Signal | None:
    word, target, kind = step
    if word == "raise":
        return raised(kind, target, at_s=rig.now_s, score=0.9)
    if word == "clear":
        return cleared(kind, target, at_s=rig.now_s)
    return alias_raised(target, at_s=rig.now_s) if word == "alias" else None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_the_register_is_always_the_fold_of_the_journal(steps: list[tuple[str, str, str]]) -> None:
    """After any history the register holds what the journal says, no signal is in two open incidents, and none was resolved too early."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        for step in steps:
            if step[0] == "wait":
                rig.clock.move(float(step[1]))
            if step[0] == "restart":
                rig.restart()
            signal = _signal(rig, step)
            rig.see(*([] if signal is None else [signal]))
            owned = [one.signal.signal_id for incident in rig.incidents.open() for one in incident.signals]
            assert len(owned) == len(set(owned))
            assert all(not incident.raised for incident in rig.incidents.list(state="resolved"))
        for incident in rig.incidents.list():
            assert incident == rig.incidents.show(incident.id).incident
        rig.journal.verify_chain()
        rig.close()

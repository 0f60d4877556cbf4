"""The fold of a run, for any order of events."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.healing import events as e
from controlplane.healing.run import Done, Inputs, Wait, decide
from controlplane.healing.state import Happened, RunState, Status, evolve
from controlplane.journal.fold import fold
from tests.controlplane.healing.fakes import INCIDENT, quick_library

(LOADED,) = quick_library()
STEPS = ("probe", "drain")
PLAN = e.Planned(
    steps=tuple(
        e.PlannedStep(step, action, "alpha/m", "run_1", f"run_1/{step}", "change", leased=leased)
        for step, action, leased in (("probe", "deployment.probe", False), ("drain", "routing.drain", True))
    ),
    aliases=("chat",),
    failover=("beta/m",),
    route_share=1.0,
    total_share=1.0,
    baseline={},
    plan_hash="p",
)
MATCHED = e.Matched(
    incident=INCIDENT,
    playbook_id=LOADED.playbook.id,
    playbook_hash=LOADED.hash,
    playbook=LOADED.text,
    level="auto",
)
SIMPLE = (
    e.ApprovalExpired,
    e.Queued,
    e.ValidationStarted,
    e.Succeeded,
    e.ProbationStarted,
    e.RollbackCompleted,
    e.Cancelled,
    e.Closed,
)
step_ids = st.sampled_from(STEPS)
any_event = st.one_of(
    st.sampled_from([MATCHED, PLAN, *(kind() for kind in SIMPLE)]),
    st.builds(e.Suppressed, st.just("g"), st.just("r")),
    st.builds(e.ApprovalRequested, st.just("p"), st.integers(0, 10**9)),
    st.builds(e.ApprovalGranted, st.just("ann"), st.just("p")),
    st.builds(e.Deferred, st.just("g"), st.just("r")),
    st.builds(e.Started, st.just(())),
    st.builds(e.StepDispatched, step_ids, st.just("k")),
    st.builds(e.LeaseGranted, step_ids, st.just("lease_1"), st.integers(0, 10**9)),
    st.builds(e.StepConfirmed, step_ids, st.just(2)),
    st.builds(e.StepSucceeded, step_ids),
    st.builds(e.StepFailed, step_ids, st.just("r"), st.one_of(st.none(), st.integers(0, 10**9)), st.booleans()),
    st.builds(e.StepOutcomeUnknown, step_ids),
    st.builds(e.StepReconciled, step_ids, st.booleans()),
    st.builds(e.LeaseRenewed, step_ids, st.just("lease_1"), st.integers(0, 10**9)),
    st.builds(e.LeaseExpired, step_ids, st.just("lease_1")),
    st.builds(e.ProbesCounted, st.integers(0, 5)),
    st.builds(e.ReleaseStarted, st.just("r")),
    st.builds(e.ValidationInconclusive, st.just("w"), st.just({}), st.just(3)),
    st.builds(e.LeaseRevoked, step_ids, st.just("lease_1")),
    st.builds(e.RevertConfirmed, step_ids, st.just("lease_1")),
    st.builds(e.RollbackStarted, st.just("c"), st.booleans()),
    st.builds(e.CancelRequested, st.just("ann")),
    st.builds(e.Escalated, st.just("r")),
)
histories = st.lists(st.builds(Happened, any_event, st.integers(0, 10**9)), max_size=25)


@given(history=histories)
def test_a_fold_is_total_and_counts_every_event(history: list[Happened]) -> None:
    """Any events in any order give a state; its version is their number; the same again gives the same."""
    state = fold(RunState(), history, evolve)
    assert len(history) == state.version
    assert state == fold(RunState(), history, evolve)


@given(history=histories)
def test_events_survive_their_way_through_the_journal(history: list[Happened]) -> None:
    """Folding what was encoded and decoded gives the same state."""
    decoder = msgspec.json.Decoder(e.RunEvent)
    again = [Happened(decoder.decode(msgspec.json.encode(happened.event)), happened.at_us) for happened in history]
    assert fold(RunState(), history, evolve) == fold(RunState(), again, evolve)


@settings(max_examples=300)
@given(history=histories, now_us=st.integers(0, 10**12), stop=st.booleans(), is_open=st.booleans())
def test_every_state_has_a_next_task(history: list[Happened], now_us: int, *, stop: bool, is_open: bool) -> None:
    """Whatever happened, a run that matched and has a plan can decide; it ends, or does something, or waits for a moment to come."""
    start = [Happened(MATCHED, 0), Happened(PLAN, 0)]
    state = fold(RunState(), [*start, *history], evolve)
    inputs = Inputs(now_us=now_us, stop="switch" if stop else "", incident_open=is_open)
    task = decide(state, LOADED.playbook, inputs)
    assert state.ended == isinstance(task, Done) or state.status is Status.NEW
    if isinstance(task, Wait):
        assert task.until_us > now_us


@given(history=histories)
def test_a_stopped_run_that_holds_something_gives_it_back(history: list[Happened]) -> None:
    """With the kill switch engaged no open run waits while it holds an override, unless it already waits for proxies to drop it."""
    start = [Happened(MATCHED, 0), Happened(PLAN, 0), Happened(e.Started(()), 0)]
    state = fold(RunState(), [*start, *history], evolve)
    acting = state.status in {Status.RUNNING, Status.VALIDATING, Status.HOLDING}
    task = decide(state, LOADED.playbook, Inputs(now_us=0, stop="switch"))
    if acting:
        assert isinstance(getattr(task, "events", [None])[0], e.RollbackStarted)

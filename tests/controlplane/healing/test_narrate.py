"""Every event of a run is a sentence for people."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from controlplane.healing import events as e
from controlplane.healing.narrate import narrate
from tests.controlplane.healing.fakes import INCIDENT

STEP = e.PlannedStep(
    step="drain",
    action="routing.drain",
    deployment="a/m",
    change="send a/m no calls",
    idem_key="k",
    run_id="run_1",
    leased=True,
)
PLAN = e.Planned(
    steps=(STEP,), aliases=("chat",), failover=("b/m",), route_share=0.5, total_share=0.25, baseline={}, plan_hash="h"
)
MATCHED = e.Matched(incident=INCIDENT, playbook_id="p", playbook_hash="h", playbook="{}", level="auto", why_level="")
SAID = [
    (MATCHED, "playbook p matches, level auto"),
    (msgspec.structs.replace(MATCHED, why_level="the settings"), "playbook p matches, level auto (the settings)"),
    (e.Suppressed(guard="cooldown", reason="too soon"), "not run: cooldown, too soon"),
    (e.Blocked(guard="probe", reason="it answers"), "not run: probe, it answers"),
    (PLAN, "plan: send a/m no calls; 50% of the route's calls move to b/m"),
    (
        msgspec.structs.replace(PLAN, failover=()),
        "plan: send a/m no calls; 50% of the route's calls move to nobody",
    ),
    (e.Shadowed(reason="shadow mode"), "nothing applied: shadow mode"),
    (e.ApprovalRequested(plan_hash="h", expires_us=1), "waits for a person's approval"),
    (e.ApprovalGranted(by="ann", plan_hash="h"), "approved by ann"),
    (e.ApprovalRejected(by="ann"), "rejected by ann"),
    (e.ApprovalRejected(by="ann", reason="not now"), "rejected by ann: not now"),
    (e.ApprovalExpired(), "nobody answered in time"),
    (e.Queued(), "queued"),
    (e.Deferred(guard="g", reason="busy"), "deferred: g, busy"),
    (e.Started(scopes=()), "guards taken, steps begin"),
    (e.StepDispatched(step="drain", idem_key="k"), "step drain begins"),
    (e.LeaseGranted(step="drain", lease_id="l1", expires_us=1), "step drain: lease l1 granted"),
    (e.StepConfirmed(step="drain", proxies=2), "step drain: 2 proxies have it"),
    (e.StepSucceeded(step="drain"), "step drain done"),
    (e.StepSucceeded(step="probe", out="0 of 5"), "step probe done: 0 of 5"),
    (e.StepFailed(step="drain", reason="no"), "step drain failed: no"),
    (e.StepFailed(step="drain", reason="no", retry_at_us=1), "step drain failed: no; it is tried again"),
    (e.StepOutcomeUnknown(step="drain"), "step drain: outcome unknown, it is checked"),
    (e.StepReconciled(step="drain", present=True), "step drain: checked, its effect is there"),
    (e.StepReconciled(step="drain", present=False), "step drain: checked, its effect is not there"),
    (e.LeaseRenewed(step="drain", lease_id="l1", expires_us=1), "lease l1 renewed"),
    (e.LeaseExpired(step="drain", lease_id="l1"), "lease l1 expired by itself"),
    (e.LeaseRevoked(step="drain", lease_id="l1"), "lease l1 taken back"),
    (e.RevertConfirmed(step="drain", lease_id="l1"), "step drain: no proxy has it any more"),
    (e.ValidationStarted(), "validation begins"),
    (e.ValidationSampled(values={"b": 0.5, "a": 1.0}, samples=3), "measured over 3 calls: a 1, b 0.5"),
    (e.ValidationSampled(values={}, samples=0), "measured over 0 calls: nothing measured"),
    (e.ValidationPassed(values={"a": 1.0}, samples=30), "validated over 30 calls: a 1"),
    (
        e.ValidationFailed(which="a < 1", harm=False, values={"a": 2.0}, samples=9),
        "no help: a < 1 (a 2, 9 calls)",
    ),
    (e.ValidationFailed(which="a < 1", harm=True, values={}, samples=9), "harm: a < 1 (nothing measured, 9 calls)"),
    (
        e.ValidationInconclusive(which="only 3 of 20 samples", values={}, samples=3),
        "cannot be validated: only 3 of 20 samples (3 calls); held until probes succeed",
    ),
    (e.Succeeded(), "mitigated; the override is held until the deployment is well"),
    (e.ProbesCounted(streak=2), "2 good probes in a row"),
    (e.ProbesCounted(streak=0, detail="status 503"), "0 good probes in a row; status 503"),
    (e.ReleaseStarted(reason="it is well"), "released: it is well"),
    (e.ProbationStarted(), "on probation without the override"),
    (e.Regressed(which="a < 1", values={}), "bad again: a < 1"),
    (e.RollbackStarted(cause="it did harm", escalate=True), "rolled back because it did harm"),
    (e.RollbackCompleted(), "nothing of it is left"),
    (e.RollbackFailed(step="drain", reason="deaf"), "step drain could not be taken back: deaf"),
    (e.CancelRequested(by="ann"), "ann wants it to stop"),
    (e.CancelRequested(by="ann", reason="drill"), "ann wants it to stop: drill"),
    (e.Cancelled(), "cancelled"),
    (e.Escalated(reason="harm"), "people are called: harm"),
    (e.Closed(), "healed and closed"),
]


@pytest.mark.parametrize(("event", "sentence"), SAID, ids=lambda value: type(value).__name__)
def test_an_event_is_a_sentence(event: e.RunEvent, sentence: str) -> None:
    """What happened, to what, and why."""
    assert sentence == narrate(event)


def test_no_event_is_without_words() -> None:
    """A new kind of event needs its sentence here."""
    assert set(get_args(e.RunEvent)) == {type(event) for event, _ in SAID}

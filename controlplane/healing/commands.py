"""What a person can tell a run: yes, no, stop. Appends to the journal, so it works from any process; the worker sees it at its next turn."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.errors import Conflict, NotFound
from controlplane.healing import events as e
from controlplane.healing.state import Happened, RunState, Status, evolve
from controlplane.journal.events import Event, NewEvent, NewTimer
from controlplane.journal.fold import Changes, execute
from controlplane.journal.journal import Journal


class Commands:
    """Operator commands on runs. All block shortly; all raise NotFound or Conflict with what to do."""

    def __init__(self, journal: Journal, now_us: Callable[[], int]) -> None:
        self._journal = journal
        self._now_us = now_us
        self._codec = HappenedCodec()

    def approve(self, run_id: str, *, by: str, plan_hash: str | None = None) -> None:
        """Say yes to a waiting run. plan_hash: of the plan that was looked at; a plan that is another one by now is not approved."""

        def decide(state: RunState) -> e.RunEvent | None:
            plan = "" if state.plan is None else state.plan.plan_hash
            if state.approved_by:
                return None
            self._must_wait(run_id, state)
            if plan_hash is not None and plan_hash != plan:
                raise Conflict(f"run {run_id} has another plan by now ({plan}); look at it again")
            return e.ApprovalGranted(by=by, plan_hash=plan)

        self._execute(run_id, by, decide)

    def reject(self, run_id: str, *, by: str, reason: str = "") -> None:
        """Say no to a waiting run."""

        def decide(state: RunState) -> e.RunEvent | None:
            self._must_wait(run_id, state)
            if state.approved_by:
                raise Conflict(f"run {run_id} was approved by {state.approved_by}; cancel it instead")
            return e.ApprovalRejected(by=by, reason=reason)

        self._execute(run_id, by, decide)

    def cancel(self, run_id: str, *, by: str, reason: str = "") -> None:
        """Stop a run; what it applied is rolled back. Harmless when it was cancelled before."""

        def decide(state: RunState) -> e.RunEvent | None:
            if state.ended:
                raise Conflict(f"run {run_id} has ended as {state.status}")
            return None if state.cancelled_by else e.CancelRequested(by=by, reason=reason)

        self._execute(run_id, by, decide)

    def _must_wait(self, run_id: str, state: RunState) -> None:
        if state.status is not Status.AWAITING_APPROVAL:
            raise Conflict(f"run {run_id} does not wait for approval; it is {state.status}")
        if self._now_us() >= state.approval_expires_us:
            raise Conflict(f"run {run_id} waited too long; its approval has expired")

    def _execute(self, run_id: str, by: str, decide: Callable[[RunState], e.RunEvent | None]) -> None:
        stream = e.stream_of(run_id)

        def changes(state: RunState) -> Changes:
            if state.status is Status.NEW:
                raise NotFound(f"there is no run {run_id!r}; `hephaestus playbooks runs` lists them")
            event = decide(state)
            if event is None:
                return Changes()
            now_us = self._now_us()
            new = [NewEvent(event, actor=by, occurred_us=now_us)]
            if evolve(state, Happened(event, now_us)).ended:
                return Changes(new, timers_done=[stream], guards_released=[run_id])
            return Changes(new, timers=[NewTimer(stream, now_us, "command")])

        execute(self._journal, stream, changes, initial=RunState(), evolve=evolve, codec=self._codec)


class HappenedCodec:
    """Reads run events together with their moment."""

    def __init__(self) -> None:
        self._codec = e.run_codec()

    def decode(self, event: Event) -> Happened:
        """The event and when it happened; raises UnknownEvent."""
        return Happened(self._codec.decode(event), event.occurred_us)

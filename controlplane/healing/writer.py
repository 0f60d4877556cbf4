"""Appends the events of runs with all they cause: the run's timer, its guard tokens, and what people are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controlplane.alerts.alert import AlertRouter
from controlplane.clock import US_PER_S
from controlplane.healing import events as e
from controlplane.healing.announce import announce
from controlplane.healing.playbook import Playbook
from controlplane.healing.run import Inputs, Wait, decide
from controlplane.healing.state import Happened, RunState, evolve
from controlplane.journal.events import Guard, NewEvent, NewOutbox, NewTimer
from controlplane.journal.fold import Changes, append_changes
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics


class RunWriter:
    """The one way in which the worker writes. Blocking."""

    def __init__(
        self, journal: Journal, *, alerts: AlertRouter, metrics: HealingMetrics, now_us: Callable[[], int]
    ) -> None:
        self._journal = journal
        self._alerts = alerts
        self._metrics = metrics
        self._now_us = now_us

    def append(
        self,
        run_id: str,
        state: RunState,
        playbook: Playbook,
        events: Sequence[e.RunEvent],
        *,
        guards: Sequence[Guard] = (),
    ) -> RunState:
        """Append events to a run that is in `state`; the run after them.

        An open run always has exactly one timer, and an ended one has none and holds no guard token.
        Raises VersionConflict when the run moved on meanwhile, and GuardRefused.
        """
        now_us = self._now_us()
        stream, before = e.stream_of(run_id), state
        outbox: list[NewOutbox] = []
        for event in events:
            state = evolve(state, Happened(event, now_us))
            said = announce(run_id, state, event, at_us=now_us)
            outbox += self._alerts.entries(said) if said is not None else []
        changes = Changes(
            events=[NewEvent(event, actor="healing", occurred_us=now_us) for event in events],
            outbox=outbox,
            timers=() if state.ended else (NewTimer(stream, due_us(state, playbook), state.status),),
            timers_done=(stream,) if state.ended else (),
            guards=guards,
            guards_released=(run_id,) if state.ended else (),
        )
        append_changes(self._journal, stream, before.version, changes)
        if state.ended:
            self._metrics.runs.labels(playbook=state.playbook_id, result=state.status).inc()
        return state


def due_us(state: RunState, playbook: Playbook) -> int:
    """When the run should be looked at again if nobody says otherwise: now, unless its next decision is to wait."""
    task = decide(state, playbook, Inputs(now_us=state.since_us))
    return task.until_us if isinstance(task, Wait) else state.since_us


def life_us(playbook: Playbook) -> int:
    """Longer than any run of the playbook can last; its guard tokens free themselves after that, whatever happened."""
    spec = playbook.spec
    seconds = (
        spec.approval.ttl
        + spec.preconditions.wait
        + spec.guards.max_runtime
        + playbook.lease_ttl_max_s
        + spec.probation.span
        + 3600.0
    )
    return round(seconds * US_PER_S)


def fingerprint_token(run_id: str, playbook: Playbook, fingerprint: str, now_us: int) -> Guard:
    """The guard token that a run holds from its first event on."""
    limit = playbook.spec.guards.max_concurrent_runs.per_fingerprint
    return Guard(f"healing/fingerprint/{fingerprint}", run_id, limit, now_us + life_us(playbook))


def acting_tokens(run_id: str, state: RunState, playbook: Playbook, now_us: int) -> tuple[Guard, ...]:
    """The guard tokens of a run that acts; two runs never override the same deployment."""
    limits, expires_us = playbook.spec.guards.max_concurrent_runs, now_us + life_us(playbook)
    return (
        Guard(f"healing/playbook/{playbook.id}", run_id, limits.per_playbook, expires_us),
        Guard("healing/global", run_id, limits.globally, expires_us),
        Guard(f"healing/deployment/{state.target}", run_id, 1, expires_us),
    )

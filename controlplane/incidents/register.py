"""The register of incidents: takes signals, keeps what is open, writes what happens to the journal, and answers what there is.

The journal is the truth; the register holds a fold of it and can be made anew from it at any time. One process writes incidents at a time;
should another have been faster, the incident is read anew and judged with the next signals.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import msgspec

from controlplane.clock import US_PER_S, Clock
from controlplane.contract.ids import ulid
from controlplane.errors import NotFound
from controlplane.incidents.changes import ChangeLog
from controlplane.incidents.incident import (
    CODEC,
    EVENT_TYPES,
    STREAM_PREFIX,
    Dismissed,
    Incident,
    IncidentEvent,
    IncidentPolicy,
    Opened,
    Reopened,
    Resolved,
    evolve,
    history,
    next_events,
    stream_of,
)
from controlplane.incidents.metrics import SignalMetrics
from controlplane.incidents.narrate import narrate, title_of
from controlplane.incidents.rounds import Round
from controlplane.incidents.signal import Cleared, Raised, Signal, fingerprint
from controlplane.incidents.topology import Topology
from controlplane.journal.events import NewEvent, NewOutbox, VersionConflict, tag_of
from controlplane.journal.journal import Journal
from controlplane.metrics import IncidentMetrics

Outbox = Callable[[Incident, IncidentEvent], Sequence[NewOutbox]]
"""What must leave because of an event, given the incident after it; appended in the event's own transaction."""

_PAGE = 1_000
_TYPES = tuple(str(kind.__struct_config__.tag) for kind in EVENT_TYPES)


class TimelineEntry(msgspec.Struct, frozen=True):
    """One thing that happened to an incident. kind: the event's type; text: a sentence about it."""

    at_us: int
    kind: str
    text: str
    actor: str = ""


class IncidentView(msgspec.Struct, frozen=True):
    """An incident with all that happened to it, oldest first."""

    incident: Incident
    timeline: tuple[TimelineEntry, ...]


class Incidents:
    """All incidents that are open, and the newest of those that are not. Blocks on the journal; safe from any thread."""

    def __init__(
        self,
        journal: Journal,
        *,
        topology: Callable[[], Topology],
        policy: IncidentPolicy,
        metrics: IncidentMetrics,
        signal_metrics: SignalMetrics,
        clock: Clock,
        outbox: Outbox = lambda _incident, _event: (),
    ) -> None:
        self._journal = journal
        self._topology = topology
        self._policy = policy
        self._metrics = metrics
        self._signal_metrics = signal_metrics
        self._clock = clock
        self._outbox = outbox
        self._changes = ChangeLog(journal)
        self._writing = threading.Lock()
        self._known: dict[str, Incident] = {}
        self._live: dict[str, Raised] = {}  # what sources last said; lost at a restart, and said again
        self._heard_us: dict[str, int] = {}
        self._probed_us: dict[str, int] = {}  # when probes last said that a deployment is well
        self._started_us = clock.now_us()

    def load(self) -> int:
        """Folds the whole journal; called once at start. Returns how many incidents are open."""
        with self._writing:
            position = 0
            while page := self._journal.read(position, _PAGE, _TYPES):
                for event in page:
                    incident_id = event.stream_id.removeprefix(STREAM_PREFIX)
                    before = self._known.get(incident_id, Incident())
                    self._known[incident_id] = evolve(before, CODEC.decode(event))
                position = page[-1].global_pos
                self._forget_old()
            self._gauge()
            return len(self.open())

    def observe(self, signals: Sequence[Signal]) -> tuple[Incident, ...]:
        """Takes what sources say now, and lets time pass; returns the incidents that changed, after it.

        Called with every sweep, also with no signals at all, since incidents fire and resolve by time.
        """
        now_us = self._clock.now_us()
        with self._writing:
            round_ = Round(
                known=self._known,
                live=self._live,
                heard_us=self._heard_us,
                probed_us=self._probed_us,
                started_us=self._started_us,
                topology=self._topology(),
                policy=self._policy,
                now_us=now_us,
                make=lambda signal: self._opened(signal, now_us),
            )
            raised = sorted((one for one in signals if isinstance(one, Raised)), key=lambda one: one.started_us)
            for signal in raised:
                round_.take_raised(signal)
            for cleared in (one for one in signals if isinstance(one, Cleared)):
                round_.take_cleared(cleared)
            round_.let_silence_speak()
            round_.let_time_pass(lambda incident: next_events(incident, self._live, now_us=now_us, policy=self._policy))
            round_.rank_causes(self._changes.recent)
            self._count(round_)
            changed = tuple(self._write(incident, round_.events[incident.id]) for incident in round_.changed())
            self._forget_old()
            self._gauge()
            return changed

    def open(self) -> tuple[Incident, ...]:
        """Incidents that are pending or firing, oldest first."""
        return tuple(sorted((one for one in list(self._known.values()) if one.is_open), key=_oldest_first))

    def list(self, *, state: str | None = None, limit: int = 100) -> tuple[Incident, ...]:
        """At most `limit` incidents, newest first."""
        wanted = (one for one in list(self._known.values()) if state is None or one.state == state)
        return tuple(sorted(wanted, key=_oldest_first, reverse=True)[:limit])

    def state(self, incident_id: str) -> Incident:
        """One incident, whatever its age; raises NotFound."""
        known = self._known.get(incident_id)
        return known if known is not None else self.show(incident_id).incident

    def show(self, incident_id: str) -> IncidentView:
        """One incident with its timeline, read from the journal; raises NotFound."""
        steps = list(history(self._journal.load(stream_of(incident_id))))
        if not steps:
            raise NotFound(f"there is no incident {incident_id!r}; `hephaestus incidents list` shows those there are")
        timeline = tuple(
            TimelineEntry(at_us=event.occurred_us, kind=event.type, text=narrate(payload), actor=event.actor)
            for event, payload, _ in steps
        )
        return IncidentView(incident=steps[-1][2], timeline=timeline)

    def sick_deployments(self) -> dict[str, str]:
        """Deployments that open incidents are about, with their upstreams: what must be probed."""
        topology = self._topology()
        sick = {
            deployment
            for incident in self.open()
            for known in incident.signals
            for deployment in topology.deployments_of(known.signal)
        }
        return {one: topology.upstreams[one] for one in sorted(sick) if one in topology.upstreams}

    def _opened(self, signal: Raised, now_us: int) -> Opened:
        """The first event of a new incident."""
        return Opened(
            incident_id=f"inc_{ulid(now_ms=now_us // 1000, entropy=os.urandom(10))}",
            at_us=now_us,
            fingerprint=fingerprint(signal),
            title=title_of(signal),
            signal=signal,
        )

    def _write(self, incident: Incident, events: Sequence[IncidentEvent]) -> Incident:
        """Appends what happened to one incident; on a conflict nothing, and the incident is read anew."""
        before = self._known.get(incident.id, Incident())
        outbox: list[NewOutbox] = []
        after = before
        for event in events:
            after = evolve(after, event)
            outbox.extend(self._outbox(after, event))
        news = [NewEvent(payload=event, actor="detection", occurred_us=event.at_us) for event in events]
        try:
            self._journal.append(stream_of(incident.id), before.version, news, outbox=outbox)
        except VersionConflict:
            self._signal_metrics.conflicts.inc()
            after = self.show(incident.id).incident
        else:
            self._count_events(after, events)
        self._known[incident.id] = after
        return after

    def _count(self, round_: Round) -> None:
        self._metrics.joined.inc(round_.joined)
        for by, count in round_.given_up.items():
            self._signal_metrics.expired.labels(by).inc(count)

    def _count_events(self, incident: Incident, events: Sequence[IncidentEvent]) -> None:
        """Counts what was written."""
        for event in events:
            if isinstance(event, Opened):
                self._metrics.opened.inc()
            elif isinstance(event, Reopened):
                self._signal_metrics.reopened.inc()
            elif isinstance(event, Dismissed):
                self._signal_metrics.dismissed.inc()
            elif isinstance(event, Resolved):
                self._metrics.resolved.inc()
                self._metrics.seconds.observe((event.at_us - incident.onset_us) / US_PER_S)

    def _forget_old(self) -> None:
        """Keeps all open incidents and the newest `kept_max` others."""
        over = [one for one in self._known.values() if not one.is_open]
        for incident in sorted(over, key=_oldest_first)[: max(0, len(over) - self._policy.kept_max)]:
            del self._known[incident.id]
        open_signals = {known.signal.signal_id for one in self._known.values() if one.is_open for known in one.signals}
        for signal_id in [one for one in self._heard_us if one not in open_signals]:
            del self._heard_us[signal_id]
            self._live.pop(signal_id, None)
        upstreams = self._topology().upstreams
        for deployment in [one for one in self._probed_us if one not in upstreams]:
            del self._probed_us[deployment]

    def _gauge(self) -> None:
        states = [incident.state for incident in self._known.values()]
        for state in ("pending", "firing"):
            self._metrics.open.labels(state).set(states.count(state))


def event_type(event: IncidentEvent) -> str:
    """The event's name in the journal, such as `incident.fired`."""
    return tag_of(event)


def _oldest_first(incident: Incident) -> tuple[int, str]:
    return incident.opened_us, incident.id

"""One round of judging: what the present signals, silence and time do to the incidents, as events that are not written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from controlplane.clock import US_PER_S
from controlplane.incidents.correlate import best
from controlplane.incidents.incident import (
    CausesRanked,
    Fired,
    Incident,
    IncidentEvent,
    IncidentPolicy,
    Opened,
    Reopened,
    SignalAttached,
    SignalCleared,
    SignalRaised,
    SignalState,
    evolve,
)
from controlplane.incidents.rootcause import Change, rank
from controlplane.incidents.signal import PROBE_OK, Cleared, Raised
from controlplane.incidents.topology import Topology


class Round:
    """Collects events per incident; each event is folded at once, so that the next decision sees it.

    live, heard_us and probed_us belong to the register and are updated; known is read only.
    """

    def __init__(
        self,
        *,
        known: Mapping[str, Incident],
        live: dict[str, Raised],
        heard_us: dict[str, int],
        probed_us: dict[str, int],
        started_us: int,
        topology: Topology,
        policy: IncidentPolicy,
        now_us: int,
        make: Callable[[Raised], Opened],
    ) -> None:
        self._incidents = dict(known)
        self._live = live
        self._heard_us = heard_us
        self._probed_us = probed_us
        self._started_us = started_us
        self._topology = topology
        self._policy = policy
        self._now_us = now_us
        self._make = make
        self._open_of = {
            state.signal.signal_id: incident.id
            for incident in self._incidents.values()
            if incident.is_open
            for state in incident.signals
        }
        self.events: dict[str, list[IncidentEvent]] = {}
        self.joined = 0
        self.given_up: Counter[str] = Counter()

    def changed(self) -> list[Incident]:
        """The incidents with events, as they are after them."""
        return [self._incidents[incident_id] for incident_id in self.events]

    def take_raised(self, signal: Raised) -> None:
        """Finds the incident a signal belongs to, or makes one; a signal that is raised already changes nothing."""
        if self._overruled(signal):
            return
        self._live[signal.signal_id] = signal
        self._heard_us[signal.signal_id] = self._now_us
        incident_id = self._open_of.get(signal.signal_id)
        if incident_id is not None:
            state = self._incidents[incident_id].signal(signal.signal_id)
            if state is not None and not state.raised:
                self._happen(incident_id, SignalRaised(at_us=self._now_us, signal=signal))
            return
        open_ = self._open()
        found = best(signal, open_, self._topology, now_us=self._now_us, policy=self._policy)
        if found is not None:
            self._happen(found[0].id, SignalAttached(at_us=self._now_us, signal=signal, link=round(found[1].score, 4)))
            return
        earlier = self._recently_resolved(signal)
        if earlier is not None:
            self._happen(earlier.id, Reopened(at_us=self._now_us, signal=signal))
        elif len(open_) >= self._policy.open_max:
            self.joined += 1
            newest = max(open_, key=lambda one: one.opened_us)
            self._happen(newest.id, SignalAttached(at_us=self._now_us, signal=signal, link=0.0))
        else:
            opened = self._make(signal)
            self._happen(opened.incident_id, opened)

    def take_cleared(self, signal: Cleared) -> None:
        """Clears the signal; a good probe also clears whatever else was said of the deployment and is silent now."""
        if signal.kind == PROBE_OK:
            self._probed_us[signal.deployment] = self._now_us
            for incident in self._open():
                for state in incident.raised:
                    own = state.signal.signal_id == signal.signal_id
                    about = state.signal.deployment == signal.deployment
                    if own or (about and (self._silent(state) or self._overruled(state.signal))):
                        self._clear(incident.id, state, by="probe")
            return
        incident_id = self._open_of.get(signal.signal_id, "")
        known = self._incidents[incident_id].signal(signal.signal_id) if incident_id else None
        if known is not None and known.raised:
            self._clear(incident_id, known, by=signal.source)

    def let_silence_speak(self) -> None:
        """Clears signals nobody speaks for any more: gone targets, symptoms whose cause is over, and the very old."""
        for incident in self._open():
            causes_left = any(state.signal.deployment for state in incident.raised)
            had_causes = any(state.signal.deployment for state in incident.signals)
            for state in incident.raised:
                if self._topology.upstreams and not self._topology.knows(state.signal):
                    self._give_up(incident.id, state, by="retired")
                elif not self._silent(state):
                    continue
                elif state.signal.alias and not causes_left and (had_causes or self._probed_well(state)):
                    self._clear(incident.id, state, by="silence")
                elif self._silent_us(state) >= self._policy.expire_s * US_PER_S:
                    self._give_up(incident.id, state, by="expired")

    def let_time_pass(self, judge: Callable[[Incident], Iterable[IncidentEvent]]) -> None:
        """Lets incidents fire, resolve or be dismissed."""
        for incident in self._open():
            for event in judge(incident):
                self._happen(incident.id, event)

    def rank_causes(self, changes: Callable[[], Sequence[Change]]) -> None:
        """Ranks the causes of incidents that fire now or that fire and got another signal; writes them when the likeliest changed."""
        for incident_id, events in list(self.events.items()):
            incident = self._incidents[incident_id]
            news = any(isinstance(event, Fired | SignalAttached) for event in events)
            if incident.state != "firing" or not news:
                continue
            signals = [state.signal for state in incident.signals]
            causes = rank(signals, changes(), self._topology, change_window_s=self._policy.change_window_s)
            if [(one.kind, one.entity) for one in causes[:1]] != [
                (one.kind, one.entity) for one in incident.causes[:1]
            ]:
                self._happen(incident_id, CausesRanked(at_us=self._now_us, causes=causes))

    def _happen(self, incident_id: str, event: IncidentEvent) -> None:
        """Folds an event and keeps it for the journal."""
        after = evolve(self._incidents.get(incident_id, Incident()), event)
        self._incidents[incident_id] = after
        self.events.setdefault(incident_id, []).append(event)
        for state in after.signals:
            if after.is_open:
                self._open_of[state.signal.signal_id] = incident_id
            else:
                self._open_of.pop(state.signal.signal_id, None)

    def _clear(self, incident_id: str, state: SignalState, *, by: str) -> None:
        self._live.pop(state.signal.signal_id, None)
        self._happen(incident_id, SignalCleared(at_us=self._now_us, signal_id=state.signal.signal_id, by=by))

    def _give_up(self, incident_id: str, state: SignalState, *, by: str) -> None:
        self.given_up[by] += 1
        self._clear(incident_id, state, by=by)

    def _open(self) -> list[Incident]:
        return [incident for incident in self._incidents.values() if incident.is_open]

    def _overruled(self, signal: Raised) -> bool:
        """Whether a breaker's word is older than good probes: without traffic a breaker never closes by itself."""
        return signal.source == "breaker" and self._probed_us.get(signal.deployment, 0) > signal.started_us

    def _silent_us(self, state: SignalState) -> int:
        """How long nobody has repeated the signal; after a restart everyone gets time to speak."""
        return self._now_us - max(self._heard_us.get(state.signal.signal_id, 0), state.since_us, self._started_us)

    def _silent(self, state: SignalState) -> bool:
        return self._silent_us(state) >= self._policy.silent_s * US_PER_S

    def _probed_well(self, state: SignalState) -> bool:
        """Whether probes found a deployment of the signal well since it was raised."""
        deployments = self._topology.deployments_of(state.signal)
        return any(self._probed_us.get(deployment, 0) > state.since_us for deployment in deployments)

    def _recently_resolved(self, signal: Raised) -> Incident | None:
        """The newest incident that had this very signal and ended a short while ago."""
        since_us = self._now_us - round(self._policy.reopen_s * US_PER_S)
        candidates = [
            incident
            for incident in self._incidents.values()
            if not incident.is_open
            and incident.resolved_us >= since_us
            and incident.signal(signal.signal_id) is not None
        ]
        return max(candidates, key=lambda one: one.resolved_us, default=None)

"""Signals and a register over a real journal, with a clock that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from controlplane.clock import US_PER_S, ManualClock
from controlplane.incidents.incident import Incident, IncidentEvent, IncidentPolicy
from controlplane.incidents.metrics import SignalMetrics
from controlplane.incidents.register import Incidents
from controlplane.incidents.signal import Cleared, Raised, Severity, Signal
from controlplane.incidents.topology import Topology
from controlplane.journal.events import NewOutbox
from controlplane.journal.journal import Journal
from controlplane.metrics import IncidentMetrics

START_US = 1_800_000_000 * US_PER_S
SOURCES = {"breaker_open": "breaker", "probe_failed": "probe", "probe_ok": "probe"}

# Upstream `a` serves m1 and m2, `b` serves m3, `z` serves m9, which nothing else touches.
TOPOLOGY = Topology(
    upstreams={"a/m1": "a", "a/m2": "a", "b/m3": "b", "z/m9": "z"},
    aliases={"fast": frozenset({"a/m1", "b/m3"}), "cheap": frozenset({"a/m2"}), "odd": frozenset({"z/m9"})},
)


def raised(
    kind: str = "success_ratio",
    deployment: str = "a/m1",
    *,
    alias: str = "",
    at_s: float = 0.0,
    started_s: float | None = None,
    score: float = 0.99,
    severity: Severity = "high",
) -> Raised:
    """A signal that something is wrong, `at_s` seconds into the test."""
    return Raised(
        signal_id=f"{kind}/{alias or deployment}",
        kind=kind,
        source=SOURCES.get(kind, "telemetry"),
        severity=severity,
        score=score,
        started_us=START_US + round((at_s if started_s is None else started_s) * US_PER_S),
        at_us=START_US + round(at_s * US_PER_S),
        deployment="" if alias else deployment,
        upstream="" if alias else deployment.split("/", maxsplit=1)[0],
        alias=alias,
        evidence=("seen in a test",),
    )


def alias_raised(alias: str = "fast", *, at_s: float = 0.0, score: float = 0.99) -> Raised:
    """A signal that clients of an alias get no answers."""
    return raised("alias_success_ratio", alias=alias, at_s=at_s, score=score, severity="critical")


def cleared(kind: str = "success_ratio", deployment: str = "a/m1", *, alias: str = "", at_s: float = 0.0) -> Cleared:
    """A signal that it is right again."""
    target = alias or deployment
    return Cleared(
        signal_id=f"{'probe_failed' if kind == 'probe_ok' else kind}/{target}",
        kind=kind,
        source=SOURCES.get(kind, "telemetry"),
        at_us=START_US + round(at_s * US_PER_S),
        deployment="" if alias else deployment,
        upstream="" if alias else deployment.split("/", maxsplit=1)[0],
        alias=alias,
    )


class Rig:
    """A register over a journal in a folder; `restart` makes a new one over the same journal."""

    def __init__(self, folder: Path, *, topology: Topology = TOPOLOGY, **policy: float) -> None:
        self.clock = ManualClock(START_US)
        self.journal = Journal.open(f"sqlite:///{folder}/journal.db", now_us=self.clock.now_us)
        self.topology = topology
        self.policy = IncidentPolicy(**policy)  # type: ignore[arg-type]  # some bounds are whole numbers
        self.told: list[str] = []
        self.restart()

    def restart(self) -> None:
        """A register that knows nothing but the journal."""
        self.registry = CollectorRegistry()
        self.incidents = Incidents(
            self.journal,
            topology=lambda: self.topology,
            policy=self.policy,
            metrics=IncidentMetrics(self.registry),
            signal_metrics=SignalMetrics(self.registry),
            clock=self.clock,
            outbox=self._outbox,
        )
        self.incidents.load()

    @property
    def now_s(self) -> float:
        """Seconds into the test."""
        return self.clock.monotonic()

    def see(self, *signals: Signal) -> tuple[Incident, ...]:
        """Signals now."""
        return self.incidents.observe(signals)

    def wait(self, seconds: float, *signals: Signal, every_s: float = 5.0) -> None:
        """Time passes with the same signals in each sweep."""
        for _ in range(round(seconds / every_s)):
            self.clock.move(every_s)
            self.see(*signals)

    def only(self) -> Incident:
        """The one incident there is."""
        (incident,) = self.incidents.list()
        return incident

    def types(self, incident: Incident) -> list[str]:
        """Its events by name."""
        return [entry.kind.removeprefix("incident.") for entry in self.incidents.show(incident.id).timeline]

    def metric(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.registry.get_sample_value(name, labels)

    def close(self) -> None:
        """Gives the journal up."""
        self.journal.close()

    def _outbox(self, incident: Incident, event: IncidentEvent) -> Sequence[NewOutbox]:
        tag = str(event.__struct_config__.tag)
        if tag not in {"incident.fired", "incident.resolved"}:
            return ()
        return (
            NewOutbox(id=f"{incident.id}/{incident.version}", sink="ops", payload=f"{tag} {incident.state}".encode()),
        )

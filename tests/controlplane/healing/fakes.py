"""A world in memory for healing to act on: it implements every protocol of `controlplane.healing.actions`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry

from controlplane.alerts.alert import AlertRouter, AlertSink
from controlplane.clock import US_PER_S, ManualClock
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import NotFound, StoreUnavailable
from controlplane.healing.actions import (
    Confirmation,
    IncidentState,
    Measurement,
    ProbeResult,
    RouteShare,
    RouteView,
    World,
)
from controlplane.healing.events import IncidentView
from controlplane.healing.lint import LoadedPlaybook, load_library
from controlplane.healing.worker import Healing
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics
from controlplane.settings import HealingSettings

SICK, WELL = "alpha/m", "beta/m"
INCIDENT = IncidentView(
    id="incident_1",
    fingerprint="success_ratio/alpha/m",
    kind="success_ratio",
    severity="critical",
    deployment=SICK,
    upstream="alpha",
    aliases=("chat",),
    sources=("telemetry",),
    confidence=0.9,
)
QUICK: Mapping[str, str | int | float | bool] = {
    "validate.bake": "10s",
    "validate.every": "5s",
    "validate.timeout": "30s",
    "recovery.probe_every": "5s",
    "recovery.successes": 2,
    "probation.for": "10s",
    "steps.drain.lease.ttl": "20s",
    "steps.drain.lease.max_ttl": "10m",
    "steps.drain.timeout": "5s",
    "rollback.per_step_timeout": "5s",
    "guards.max_runtime": "2m",
    "preconditions.wait": "20s",
    "approval.ttl": "30s",
}


class FakeLeases:
    """Overrides in memory. Granting is not idempotent, so that a step done twice is seen."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self.held: dict[str, Lease] = {}
        self.grants: list[Lease] = []
        self.revoked: list[str] = []
        self.renewed = 0

    def grant(self, kind: LeaseKind, deployment: str, *, ttl_s: float, run_id: str, reason: str, share: float) -> Lease:
        """A new override."""
        lease = Lease(
            id=f"lease_{next(self._numbers)}",
            kind=kind,
            deployment=deployment,
            expires_us=self._clock.now_us() + round(ttl_s * US_PER_S),
            run_id=run_id,
            share=share,
            reason=reason,
        )
        self.held[lease.id] = lease
        self.grants.append(lease)
        return lease

    def renew(self, lease_id: str, ttl_s: float) -> Lease:
        """The override, lasting longer."""
        held = next((lease for lease in self.active() if lease.id == lease_id), None)
        if held is None:
            raise NotFound(f"no lease {lease_id}")
        self.renewed += 1
        lease = Lease(
            id=held.id,
            kind=held.kind,
            deployment=held.deployment,
            expires_us=self._clock.now_us() + round(ttl_s * US_PER_S),
            run_id=held.run_id,
            share=held.share,
            reason=held.reason,
        )
        self.held[lease_id] = lease
        return lease

    def revoke(self, lease_id: str) -> None:
        """End an override."""
        self.revoked.append(lease_id)
        self.held.pop(lease_id, None)

    def active(self) -> Sequence[Lease]:
        """What is in force."""
        return [lease for lease in self.held.values() if lease.expires_us > self._clock.now_us()]


class FakeWorld:
    """One route `chat` with a sick and a well deployment; tests turn its knobs."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.leases = FakeLeases(self.clock)
        self.sick = True
        self.fix_helps = True
        self.failover_breaks = False
        self.proxies = 2
        self.deaf = False  # proxies take no news: neither new leases nor their end
        self.calls_per_s = 10.0
        self.telemetry_age_s = 1.0
        self.telemetry_down = False
        self.incident: IncidentState = "firing"
        self.probes = 0
        self.seen: set[str] = set()
        self.routes_now: tuple[RouteView, ...] = (
            RouteView("chat", (RouteShare(SICK, 1.0, healthy=False), RouteShare(WELL, 0.0))),
        )
        self.on_probe: Callable[[], None] = lambda: None

    def view(self) -> World:
        """The world as healing sees it."""
        return World(
            clock=self.clock,
            leases=self.leases,
            confirmations=self.confirmations,
            prober=self.probe,
            metrics=self,
            routes=lambda: self.routes_now,
            incidents=self,
        )

    @property
    def drained(self) -> bool:
        """Whether the sick deployment gets no calls."""
        return any(lease.deployment == SICK for lease in self.leases.active())

    def state(self, incident_id: str) -> IncidentState:
        """The state of the one incident."""
        return self.incident

    def confirmations(self, lease_id: str) -> Confirmation:
        """What the proxies report."""
        if not self.deaf:
            self.seen = {lease.id for lease in self.leases.active()}
        return Confirmation(live=self.proxies, having=self.proxies if lease_id in self.seen else 0)

    async def probe(self, deployment: str) -> ProbeResult:
        """A probe of a deployment."""
        self.probes += 1
        self.on_probe()
        ok = not (deployment == SICK and self.sick)
        return ProbeResult(ok, "" if ok else "status 503")

    async def read(self, metric: str, target: Mapping[str, str], window_s: float) -> Measurement:
        """Telemetry: the route is well when nothing sick takes its calls."""
        if self.telemetry_down:
            raise StoreUnavailable("the store is away")
        samples = round(self.calls_per_s * min(window_s, 60.0))
        if metric.endswith("calls"):
            return Measurement(float(samples), samples, self.telemetry_age_s)
        if metric == "route.cost_usd_per_h":
            return Measurement(1.0, samples, self.telemetry_age_s)
        bad = self.sick and (not self.drained or not self.fix_helps)
        if target.get("deployment") == WELL:
            bad = self.failover_breaks
        return Measurement(0.1 if bad else 1.0, samples, self.telemetry_age_s)


@cache  # reading YAML costs more than most of these tests
def quick_library(**more: str | int | float | bool) -> tuple[LoadedPlaybook, ...]:
    """The built-in playbook with short times, read once for all; `more` replaces values, with `__` for a dot."""
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return load_library(overrides={"provider-outage-failover": {**QUICK, **changes}})


def make_healing(
    world: FakeWorld,
    journal: Journal,
    *,
    settings: HealingSettings | None = None,
    library: Sequence[LoadedPlaybook] | None = None,
) -> Healing:
    """A worker on a world and a journal."""
    registry = CollectorRegistry()
    return Healing(
        journal,
        world.view(),
        quick_library() if library is None else library,
        settings or HealingSettings(),
        alerts=AlertRouter([AlertSink(name="ops", url="https://alerts.example/hook")]),
        metrics=HealingMetrics(registry),
        registry=registry,
    )

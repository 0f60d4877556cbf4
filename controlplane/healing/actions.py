"""What a step can do, and the seams through which it does it.

An action never touches a proxy: it puts a leased override into the catalog, and its step is done when the proxies report that they have it.
`apply` is called only after `step.dispatched` is in the journal; after a crash `check` says whether it took effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import msgspec
from msgspec import Meta

from controlplane.clock import Clock
from controlplane.contract.snapshot import Lease, LeaseKind
from controlplane.errors import Conflict, NotFound
from controlplane.healing.events import PlannedStep
from controlplane.healing.playbook import Playbook, Step, Strict
from controlplane.healing.values import Share, parse_value


class Leases(Protocol):
    """Overrides in the catalog. Blocking and thread-safe; healing calls it in threads."""

    def grant(self, kind: LeaseKind, deployment: str, *, ttl_s: float, run_id: str, reason: str, share: float) -> Lease:
        """Put an override into the catalog; durable when it returns."""
        ...

    def renew(self, lease_id: str, ttl_s: float) -> Lease | None:
        """Make an override last `ttl_s` from now; None, NotFound or Conflict when it is gone."""
        ...

    def revoke(self, lease_id: str) -> None:
        """Take an override back; harmless when it is gone."""
        ...

    def active(self) -> Sequence[Lease]:
        """All overrides that have not expired and were not revoked."""
        ...


class Confirmation(msgspec.Struct, frozen=True):
    """How many proxy workers are live, and how many of them report a lease."""

    live: int
    having: int


Confirmations = Callable[[str], Confirmation]
"""Asks what proxies report about a lease id; answers at once, from memory."""


class ProbeResult(msgspec.Struct, frozen=True):
    """How one active probe went."""

    ok: bool
    detail: str = ""


Prober = Callable[[str], Awaitable[ProbeResult]]
"""Sends one small real request to a deployment, past breakers and overrides."""


class Measurement(msgspec.Struct, frozen=True):
    """A metric over a window. samples: calls behind it; age_s: since the newest of them (or since telemetry last arrived)."""

    value: float
    samples: int
    age_s: float


class Metrics(Protocol):
    """Measured truth, from telemetry; see METRICS for the names."""

    async def read(self, metric: str, target: Mapping[str, str], window_s: float) -> Measurement:
        """One metric of one target over the last `window_s`; samples 0 when there is nothing."""
        ...


METRICS: Mapping[str, Literal["alias", "deployment"]] = {
    "route.calls": "alias",
    "route.success_ratio": "alias",
    "route.latency_p95_s": "alias",
    "route.ttft_p95_s": "alias",
    "route.cost_usd_per_h": "alias",
    "deployment.calls": "deployment",
    "deployment.success_ratio": "deployment",
    "deployment.latency_p95_s": "deployment",
}
"""Metrics that conditions may name, with the key of the target they are read for."""


class RouteShare(msgspec.Struct, frozen=True):
    """A deployment on a route. share: of the route's calls as configured, 0..1; healthy: it could take calls now."""

    deployment: str
    share: float
    healthy: bool = True


class RouteView(msgspec.Struct, frozen=True):
    """A model alias and who serves it."""

    alias: str
    deployments: tuple[RouteShare, ...]


Routes = Callable[[], Sequence[RouteView]]
"""The routes as they are now."""

IncidentState = Literal["pending", "firing", "resolved"]


class Incidents(Protocol):
    """Whether the trouble is still there."""

    def state(self, incident_id: str) -> IncidentState:
        """The state of an incident; `resolved` for one that is not known."""
        ...


class World(msgspec.Struct, frozen=True):
    """Everything outside healing that a run touches or looks at."""

    clock: Clock
    leases: Leases
    confirmations: Confirmations
    prober: Prober
    metrics: Metrics
    routes: Routes
    incidents: Incidents


class ActionFailed(Exception):
    """A step did not do what it should. retryable: another try may help; contradicted: there seems to be no fault."""

    def __init__(self, reason: str, *, retryable: bool = False, contradicted: bool = False) -> None:
        super().__init__(reason)
        self.retryable, self.contradicted = retryable, contradicted


class Action(Protocol):
    """One way to change the world, or to look at it."""

    name: ClassVar[str]
    leased: ClassVar[bool]
    params: ClassVar[type[Strict]]

    def plan(self, step: Step, *, deployment: str, run_id: str) -> PlannedStep:
        """What the step will do to its target; pure."""
        ...

    async def check(self, world: World, planned: PlannedStep) -> Lease | None:
        """The override that this step put in place, if it did."""
        ...

    async def apply(self, world: World, step: Step, planned: PlannedStep) -> tuple[Lease | None, str]:
        """Act; returns the override, if it makes one, and a line about what came out. Raises ActionFailed."""
        ...


class ProbeParams(Strict, frozen=True):
    """deployment: a reference; count: probes; expect: what at least one (`failing`) or each (`healthy`) probe must show."""

    deployment: Literal["target.deployment"]
    count: Annotated[int, Meta(ge=1, le=20)] = 3
    expect: Literal["any", "failing", "healthy"] = "any"


class DrainParams(Strict, frozen=True):
    """deployment: a reference to who gets no more calls."""

    deployment: Literal["target.deployment"]


class ShareParams(Strict, frozen=True):
    """deployment: a reference to who gets at most `share` of its route's calls."""

    deployment: Literal["target.deployment"]
    share: Share


class Probe:
    """Looks at the deployment with real requests; changes nothing."""

    name: ClassVar[str] = "deployment.probe"
    leased: ClassVar[bool] = False
    params: ClassVar[type[Strict]] = ProbeParams

    def plan(self, step: Step, *, deployment: str, run_id: str) -> PlannedStep:
        """How often it is probed."""
        params = msgspec.convert(step.params, ProbeParams, dec_hook=parse_value)
        return _planned(self, step, deployment, run_id, f"probe {deployment} {params.count} times")

    async def check(self, world: World, planned: PlannedStep) -> Lease | None:
        """Nothing: a probe leaves nothing behind and may be repeated."""
        del world, planned
        return None

    async def apply(self, world: World, step: Step, planned: PlannedStep) -> tuple[Lease | None, str]:
        """Probe; raises ActionFailed when what it sees is not what the step expects."""
        params = msgspec.convert(step.params, ProbeParams, dec_hook=parse_value)
        results = [await world.prober(planned.deployment) for _ in range(params.count)]
        good = sum(result.ok for result in results)
        detail = next((result.detail for result in results if not result.ok and result.detail), "")
        out = f"{good} of {params.count} probes succeeded" + (f": {detail}" if detail else "")
        if (params.expect == "failing" and good == params.count) or (
            params.expect == "healthy" and good < params.count
        ):
            raise ActionFailed(out, retryable=True, contradicted=params.expect == "failing")
        return None, out


class _Override:
    """What drain and share have in common: an override that names its run and step, so that it can be found again."""

    leased: ClassVar[bool] = True

    async def check(self, world: World, planned: PlannedStep) -> Lease | None:
        """The lease of this run and step that is active, if any."""
        active = await asyncio.to_thread(world.leases.active)
        mine = [lease for lease in active if lease.run_id == planned.run_id and lease.reason == planned.idem_key]
        return mine[0] if mine else None

    async def _grant(
        self, world: World, step: Step, planned: PlannedStep, *, kind: LeaseKind, share: float
    ) -> tuple[Lease, str]:
        if step.lease is None:
            raise ActionFailed(f"step {step.id} has no lease, so it may not override anything")
        lease = await asyncio.to_thread(
            world.leases.grant,
            kind,
            planned.deployment,
            ttl_s=float(step.lease.ttl),
            run_id=planned.run_id,
            reason=planned.idem_key,
            share=share,
        )
        return lease, planned.change


class Drain(_Override):
    """The deployment gets no calls, but for breaker probes."""

    name: ClassVar[str] = "routing.drain"
    params: ClassVar[type[Strict]] = DrainParams

    def plan(self, step: Step, *, deployment: str, run_id: str) -> PlannedStep:
        """Who is drained."""
        return _planned(self, step, deployment, run_id, f"send {deployment} no calls")

    async def apply(self, world: World, step: Step, planned: PlannedStep) -> tuple[Lease | None, str]:
        """Grant the lease."""
        return await self._grant(world, step, planned, kind=LeaseKind.DRAIN, share=0.0)


class LimitShare(_Override):
    """The deployment gets at most a share of its route's calls."""

    name: ClassVar[str] = "routing.share"
    params: ClassVar[type[Strict]] = ShareParams

    def plan(self, step: Step, *, deployment: str, run_id: str) -> PlannedStep:
        """Who is limited to how much."""
        params = msgspec.convert(step.params, ShareParams, dec_hook=parse_value)
        change = f"let {deployment} have at most {params.share:.0%} of its route's calls"
        return _planned(self, step, deployment, run_id, change)

    async def apply(self, world: World, step: Step, planned: PlannedStep) -> tuple[Lease | None, str]:
        """Grant the lease."""
        params = msgspec.convert(step.params, ShareParams, dec_hook=parse_value)
        return await self._grant(world, step, planned, kind=LeaseKind.SHARE, share=float(params.share))


ACTIONS: Mapping[str, Action] = {action.name: action for action in (Probe(), Drain(), LimitShare())}
"""Actions that steps may name."""


async def renew(world: World, lease_id: str, ttl_s: float) -> Lease | None:
    """Make an override last longer; None when it is gone."""
    try:
        return await asyncio.to_thread(world.leases.renew, lease_id, ttl_s)
    except (NotFound, Conflict):
        return None


async def revoke(world: World, lease_id: str) -> None:
    """Take an override back; harmless when it is gone."""
    try:
        await asyncio.to_thread(world.leases.revoke, lease_id)
    except (NotFound, Conflict):
        return


def moved_share(playbook: Playbook) -> float:
    """The part of the target's calls that the playbook takes away at most, 0..1."""
    remaining = [
        float(msgspec.convert(step.params, ShareParams, dec_hook=parse_value).share)
        for step in playbook.spec.steps
        if step.action == LimitShare.name
    ]
    if any(step.action == Drain.name for step in playbook.spec.steps):
        return 1.0
    return 1.0 - min(remaining, default=1.0)


def _planned(action: Action, step: Step, deployment: str, run_id: str, change: str) -> PlannedStep:
    return PlannedStep(
        step=step.id,
        action=action.name,
        deployment=deployment,
        run_id=run_id,
        idem_key=f"{run_id}/{step.id}",
        change=change,
        leased=action.leased,
    )

"""What a playbook says: schema `heal/v1`, typed to the last value, with a hash of its contents.

A playbook is data. A run carries the whole playbook it began with, so a changed file changes later runs only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from controlplane.healing.values import Duration, Rate, Share, Threshold, parse_value
from controlplane.settings import Autonomy

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Count = Annotated[int, Meta(ge=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all parts of a playbook: an unknown key is an error."""


class Op(StrEnum):
    """How a measurement is compared with its threshold."""

    AT_LEAST = ">="
    AT_MOST = "<="
    ABOVE = ">"
    BELOW = "<"
    EQUAL = "=="


class Missing(StrEnum):
    """What a condition says when there is nothing to compare: no data, too few samples, or data that is too old."""

    ERROR = "error"  # it cannot be said: wait, and fail in the end
    TRUE = "true"
    FALSE = "false"


class Of(StrEnum):
    """Whose metric it is."""

    TARGET = "target"  # the sick deployment
    FAILOVER = "failover"  # each deployment that takes over
    ROUTES = "routes"  # each route that has the sick deployment


class Condition(Strict, frozen=True):
    """One comparison; either `metric` or `fact` is set."""

    op: Op
    value: Threshold
    metric: str | None = None
    fact: str | None = None
    of: Of = Of.ROUTES
    window: Duration | None = None
    on_missing: Missing | None = None
    min_samples: Annotated[int, Meta(ge=0)] = 1

    @property
    def name(self) -> str:
        """How a person would say which condition it is."""
        return f"{self.metric or self.fact} {self.op.value} {_shown(self.value)}"


class Metadata(Strict, frozen=True):
    """Who the playbook is and what it is for."""

    id: Name
    version: Count
    owner: str
    fault_class: str
    risk: Literal["low", "medium", "high"] = "low"


class AutonomySpec(Strict, frozen=True):
    """How far it may go by itself, before settings and guards lower it."""

    default: Autonomy


class IncidentMatch(Strict, frozen=True):
    """Which incidents it answers; empty means any."""

    kind: tuple[str, ...] = ()
    severity: tuple[str, ...] = ()
    min_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Trigger(Strict, frozen=True):
    """When a run begins. require_sources: independent signals, unless the confidence alone is enough."""

    incident: IncidentMatch
    require_sources: Count = 1
    or_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.95


class Preconditions(Strict, frozen=True):
    """What must hold when the run starts to act, measured then."""

    all: tuple[Condition, ...] = ()
    on_missing: Missing = Missing.ERROR
    wait: Duration = Duration(300)


class BlastRadius(Strict, frozen=True):
    """How much may be touched: share of calls taken from the sick deployment, on each of its routes and over all routes."""

    unit: Literal["traffic_share"]
    max_per_run: Share
    max_concurrent_global: Share
    min_healthy_targets: Annotated[int, Meta(ge=0)] = 1


class Concurrency(Strict, frozen=True):
    """How many runs may be under way at once."""

    per_fingerprint: Count = 1
    per_playbook: Count = 2
    globally: Count = field(name="global", default=10)


class Cooldown(Strict, frozen=True):
    """How long a fingerprint is left alone after a run ended."""

    per_fingerprint: Duration = Duration(900)
    after_rollback: Duration = Duration(7200)


class Rates(Strict, frozen=True):
    """How many runs may begin."""

    per_playbook: Rate = Rate(6, 3600)
    globally: Rate = field(name="global", default=Rate(30, 3600))


class Flap(Strict, frozen=True):
    """A fingerprint that comes back this often is not left to automation alone."""

    max_runs: Count = 3
    window: Duration = Duration(3600)
    then: Literal["approve", "suggest"] = "approve"


class Circuit(Strict, frozen=True):
    """A playbook that failed this often in a row is not run again for a while."""

    open_after_failed_runs: Count = 2
    reset_after: Duration = Duration(86_400)


class Guards(Strict, frozen=True):
    """What keeps automation on a leash."""

    max_concurrent_runs: Concurrency = Concurrency()
    cooldown: Cooldown = Cooldown()
    rate: Rates = Rates()
    flap: Flap = Flap()
    circuit: Circuit = Circuit()
    max_runtime: Duration = Duration(1200)
    telemetry_max_age: Duration = Duration(60)


class LeaseSpec(Strict, frozen=True):
    """How long an override lasts, and until when it may be renewed."""

    ttl: Duration
    max_ttl: Duration
    renew_while: Literal["incident_open"] = "incident_open"


class Retry(Strict, frozen=True):
    """How often a failed step is tried again; the wait doubles each time."""

    max: Annotated[int, Meta(ge=0, le=5)] = 2
    base: Duration = Duration(1)


class Gate(Strict, frozen=True):
    """What must be measured after a step before the next one."""

    passes: tuple[Condition, ...] = field(name="pass")
    window: Duration
    timeout: Duration


class Step(Strict, frozen=True):
    """One action. params are checked against the action's own struct by the linter."""

    id: Name
    action: str
    timeout: Duration
    params: dict[str, Any] = {}  # checked and typed by `lint` and `plan`, by the action's own struct
    effect: Literal["none", "lease"] = "lease"
    lease: LeaseSpec | None = None
    retry: Retry = Retry()
    gate: Gate | None = None


class All(Strict, frozen=True):
    """Conditions that must all hold."""

    all: tuple[Condition, ...]


class Any_(Strict, frozen=True):  # noqa: N801 - `Any` is taken
    """Conditions of which one is enough."""

    any: tuple[Condition, ...]


class Validate(Strict, frozen=True):
    """How success is measured, independent of the action. harm: any one rolls back at once."""

    bake: Duration
    min_samples: Count
    success: All
    harm: Any_ = Any_(any=())
    every: Duration = Duration(10)
    timeout: Duration | None = None  # None: twice the bake time


class Recovery(Strict, frozen=True):
    """When the sick deployment counts as well again: so many probes in a row."""

    probe_every: Duration = Duration(30)
    successes: Count = 3


class Probation(Strict, frozen=True):
    """How long success is watched after the leases are gone."""

    span: Duration = field(name="for", default=Duration(300))


class Rollback(Strict, frozen=True):
    """How leases are taken back."""

    order: Literal["reverse"] = "reverse"
    per_step_timeout: Duration = Duration(10)


class Approval(Strict, frozen=True):
    """How long a person has to decide, and what no answer means."""

    ttl: Duration = Duration(1800)
    on_expire: Literal["reject", "escalate"] = "reject"


class Spec(Strict, frozen=True):
    """What the playbook does. What must be there but is not is the linter's to say, in words."""

    autonomy: AutonomySpec
    trigger: Trigger
    steps: tuple[Step, ...]
    preconditions: Preconditions = Preconditions()
    blast_radius: BlastRadius | None = None
    guards: Guards = Guards()
    validation: Validate | None = field(name="validate", default=None)
    recovery: Recovery = Recovery()
    probation: Probation = Probation()
    rollback: Rollback | None = None
    irreversible: bool = False
    approval: Approval = Approval()


class Playbook(Strict, frozen=True):
    """One answer to one class of fault."""

    api_version: Literal["heal/v1"] = field(name="apiVersion")
    kind: Literal["Playbook"]
    metadata: Metadata
    spec: Spec

    @property
    def id(self) -> str:
        """Its name."""
        return self.metadata.id

    @property
    def validation(self) -> Validate:
        """How success is measured; the linter has made sure that it is there."""
        if self.spec.validation is None:
            raise ValueError(f"playbook {self.id} was not linted: it has no `validate`")
        return self.spec.validation

    @property
    def blast_radius(self) -> BlastRadius:
        """How much may be touched; the linter has made sure that it is there."""
        if self.spec.blast_radius is None:
            raise ValueError(f"playbook {self.id} was not linted: it has no `blast_radius`")
        return self.spec.blast_radius

    @property
    def validation_timeout_s(self) -> float:
        """When a validation that cannot decide has failed."""
        timeout = self.validation.timeout
        return 2 * self.validation.bake if timeout is None else timeout

    @property
    def lease_ttl_max_s(self) -> float:
        """The longest that any of its leases may be kept."""
        return max((step.lease.max_ttl for step in self.spec.steps if step.lease is not None), default=0.0)

    def step(self, step_id: str) -> Step:
        """The step with an id; raises KeyError."""
        for step in self.spec.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)


def decode_playbook(data: object) -> Playbook:
    """Plain data to a playbook; raises msgspec.ValidationError with a path."""
    return msgspec.convert(data, Playbook, dec_hook=parse_value)


def canonical(data: object) -> str:
    """Plain data as one canonical text, the same for the same contents."""
    return msgspec.json.encode(data, order="deterministic").decode()


def content_hash(text: str) -> str:
    """The hash of a canonical text that runs carry."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def override(data: Any, overrides: Mapping[str, str | int | float | bool]) -> Any:  # plain data in, plain data out
    """The same document with single values below `spec` replaced, e.g. {"validate.bake": "10s"}; lists by their `id`.

    Raises KeyError with the path whose parent is not in the document.
    """
    changed = msgspec.json.decode(msgspec.json.encode(data))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = changed["spec"]
        for name in parents:
            place = _child(place, name, path)
        if not isinstance(place, dict):
            raise KeyError(path)
        place[last] = value
    return changed


def _child(place: Any, name: str, path: str) -> Any:  # plain data
    if isinstance(place, dict):
        return place.setdefault(name, {})
    if isinstance(place, list):
        found = [item for item in _mappings(place) if item.get("id") == name]
        if found:
            return found[0]
    raise KeyError(path)


def _mappings(items: Iterable[object]) -> list[dict[str, Any]]:  # plain data
    return [item for item in items if isinstance(item, dict)]


def _shown(threshold: Threshold) -> str:
    if not threshold.of_baseline:
        return f"{threshold.number:g}"
    return f"baseline * {threshold.factor:g} + {threshold.offset:g}"

"""A snapshot compiled for look-ups. Immutable: a new snapshot makes a new Runtime, swapped by one assignment; a call keeps the one it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.contract.snapshot import Deployment, KeyEntry, Lease, Route, Snapshot, TenantPolicy, Upstream


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """Who calls: the tenant and the key, found by one look-up of the key's hash."""

    tenant: TenantPolicy
    key: KeyEntry
    models: frozenset[str] | None  # aliases both tenant and key allow; None: all


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment ready to be tried."""

    deployment: Deployment
    upstream: Upstream
    lease: Lease | None  # a DRAIN or SHARE override; the route stage checks its expiry for each call


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route with its candidates in groups of equal `order`, smallest first."""

    route: Route
    groups: tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the stages look things up in."""

    snapshot: Snapshot
    keys: Mapping[str, KeyIdentity]  # by key hash
    routes: Mapping[str, RouteEntry]  # by alias

    @property
    def version(self) -> int:
        """The snapshot's version."""
        return self.snapshot.version

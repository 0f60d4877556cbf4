"""What the HTTP face needs from the rest of the control plane, and nothing more.

The app joins real parts to these protocols; tests join small ones. Whatever may wait is asynchronous.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from controlplane.api.views import (
    CachedCount,
    IncidentDetail,
    IncidentSummary,
    KillSwitch,
    Overview,
    RunDetail,
    RunSummary,
)
from controlplane.catalog.invalidations import Selection
from controlplane.catalog.keys import IssuedKey
from controlplane.catalog.state import KeyRecord
from controlplane.clock import Clock
from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import CacheInvalidation, ProxyStatus, Snapshot
from controlplane.costs.report import CostReport, Reconciliation
from controlplane.costs.savings import Savings
from controlplane.metrics import Metrics
from controlplane.secrets import ServerSecrets
from controlplane.settings import ConsoleSettings, Settings
from controlplane.store.queries.calls import CallFilter


class Publisher(Protocol):
    """The catalog's publisher: the current snapshot, a way to wait for a newer one, and what proxies say about it."""

    @property
    def current(self) -> Snapshot:
        """The snapshot that proxies should have now."""
        ...

    async def wait_newer(self, have: int, timeout_s: float) -> Snapshot | None:
        """The first snapshot newer than `have`, or None when none came in time."""
        ...

    def confirm(self, status: ProxyStatus) -> None:
        """Takes a proxy's word about itself."""
        ...

    def statuses(self) -> Sequence[ProxyStatus]:
        """The last status of each proxy."""
        ...


class Ingest(Protocol):
    """Where batches of records and the words of proxies about themselves are kept."""

    async def accept(self, token: str, body: bytes) -> object:
        """Returns once the batch is durably stored, now or earlier under the same token."""
        ...

    async def status(self, status: ProxyStatus) -> object:
        """Keeps what is new in a proxy's status."""
        ...


class Incidents(Protocol):
    """Incidents, newest first."""

    async def list(self, *, state: str | None, limit: int) -> Sequence[IncidentSummary]:
        """At most `limit` incidents, newest first."""
        ...

    async def show(self, incident_id: str) -> IncidentDetail:
        """One incident with its timeline; raises NotFound."""
        ...


class Runs(Protocol):
    """Playbook runs and the people who decide about them."""

    async def list(self, *, state: str | None, limit: int) -> Sequence[RunSummary]:
        """At most `limit` runs, newest first."""
        ...

    async def show(self, run_id: str) -> RunDetail:
        """One run with its events; raises NotFound."""
        ...

    async def approve(self, run_id: str, *, actor: str, reason: str) -> None:
        """Lets a run go on that waits for a person; raises Conflict when it does not wait."""
        ...

    async def reject(self, run_id: str, *, actor: str, reason: str) -> None:
        """Refuses what a run waits for; raises Conflict when it does not wait."""
        ...

    async def abort(self, run_id: str, *, actor: str, reason: str) -> None:
        """Stops a run and rolls back what it did; raises Conflict when it has ended."""
        ...

    async def kill_switch(self) -> KillSwitch:
        """Whether healing may act."""
        ...

    async def engage(self, *, actor: str, reason: str) -> None:
        """Stops all healing until released."""
        ...

    async def release(self, *, actor: str, reason: str) -> None:
        """Lets healing act again."""
        ...


class Calls(Protocol):
    """Calls as they are remembered."""

    async def list(self, wanted: CallFilter) -> Sequence[CallRecord]:
        """Matching calls without attempts, newest first."""
        ...

    async def show(self, call_id: str) -> CallRecord:
        """One call with its attempts; raises NotFound."""
        ...


class Costs(Protocol):
    """Where money went."""

    async def report(self, *, dimensions: tuple[str, ...], from_us: int, to_us: int, tenant: str) -> CostReport:
        """Cost by dimensions; raises BadRequest for an unknown dimension."""
        ...

    async def savings(self, *, from_us: int, to_us: int, tenant: str) -> Savings:
        """What was saved."""
        ...

    async def reconcile(self, statuses: Sequence[ProxyStatus]) -> Reconciliation:
        """The proxies' rows beside their ledgers."""
        ...


class Keys(Protocol):
    """Virtual keys. Blocking; handlers ask from a thread."""

    def create(
        self,
        tenant: str,
        *,
        name: str = "",
        models: tuple[str, ...] | None = None,
        expires_us: int | None = None,
        addresses: tuple[str, ...] | None = None,
        actor: str = "",
    ) -> IssuedKey:
        """A fresh key; raises NotFound for an unknown tenant or model."""
        ...

    def rotate(self, key_id: str, *, grace_us: int, actor: str = "") -> IssuedKey:
        """A key's new secret; raises NotFound."""
        ...

    def revoke(self, key_id: str, *, reason: str = "", actor: str = "") -> KeyRecord:
        """Makes a key worthless; raises NotFound."""
        ...

    def list(self, *, tenant: str | None = None) -> list[KeyRecord]:
        """All keys, revoked ones too."""
        ...


class StoredAnswers(Protocol):
    """Answers that proxies keep."""

    async def count(self, selection: Selection) -> CachedCount:
        """At most so many fit a selection; raises BadRequest."""
        ...

    async def invalidate(self, selection: Selection, *, reason: str, actor: str) -> CacheInvalidation:
        """A rule by which they are not served again; raises BadRequest or TooMany."""
        ...

    async def active(self) -> Sequence[CacheInvalidation]:
        """The rules in force."""
        ...


class Health(Protocol):
    """The first page."""

    async def overview(self) -> Overview:
        """Everything on the console's first page, as of now."""
        ...


ReadyCheck = Callable[[], Awaitable[str]]
"""Returns an empty string when fine, else one sentence about what is wrong."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the API is made of. ready: named checks that `/readyz` asks; metrics: their registry is what `/metrics` shows.
    stopping: set when the server begins to stop, so that long polls end at once and it need not wait for them.
    """

    publisher: Publisher
    ingest: Ingest
    incidents: Incidents
    runs: Runs
    calls: Calls
    costs: Costs
    keys: Keys
    cache: StoredAnswers
    health: Health
    secrets: ServerSecrets
    clock: Clock
    metrics: Metrics
    settings: Settings = field(default_factory=Settings)
    console: ConsoleSettings = field(default_factory=ConsoleSettings)
    ready: dict[str, ReadyCheck] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


PartsOf = NamedDependency[SkipValidation[Parts]]
"""How a handler asks for the parts."""

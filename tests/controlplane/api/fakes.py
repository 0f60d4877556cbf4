"""A control plane in memory for the tests of its HTTP face: each part small, real and without I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from prometheus_client import CollectorRegistry

from controlplane.api.parts import Parts
from controlplane.api.views import (
    CachedCount,
    CacheSavings,
    DeploymentView,
    IncidentDetail,
    IncidentSummary,
    KillSwitch,
    Ledger,
    Overview,
    ProxyView,
    RunDetail,
    RunSummary,
    Spend,
    SpendLine,
    TimelineEntry,
    Traffic,
    TrafficPoint,
)
from controlplane.catalog.invalidations import Selection
from controlplane.catalog.keys import IssuedKey
from controlplane.catalog.state import KeyRecord
from controlplane.clock import US_PER_S, ManualClock
from controlplane.contract.pricing import NO_TOKENS
from controlplane.contract.records import CacheState, CallRecord, Outcome
from controlplane.contract.snapshot import CacheInvalidation, ProxyStatus, Route, Snapshot, TenantPolicy
from controlplane.costs.report import CostReport, Reconciliation, build, reconcile
from controlplane.costs.savings import Confidence, Savings, SavingsLine
from controlplane.errors import BadRequest, Conflict, HephaestusError, NotFound, StoreUnavailable, TooLarge
from controlplane.metrics import Metrics
from controlplane.secrets import Secret, ServerSecrets
from controlplane.settings import ConsoleSettings, Settings
from controlplane.store.queries.calls import CallFilter
from controlplane.store.queries.costs import CostRow

OPERATOR = "operator-token-of-the-tests"
INTERNAL = "internal-token-of-the-tests"
HOSTILE = "<script>alert('agent')</script>\"><img src=x onerror=alert(1)>"
START_US = 1_800_000_000 * US_PER_S


class MemoryPublisher:
    """A publisher whose snapshot the test replaces."""

    def __init__(self) -> None:
        self.current = Snapshot(
            version=7,
            created_us=START_US,
            tenants=(TenantPolicy(id="acme"),),
            routes=(Route(alias="gpt-4o-mini", deployments=()),),
        )
        self.said: dict[str, ProxyStatus] = {}
        self._changed = asyncio.Event()

    async def wait_newer(self, have: int, timeout_s: float) -> Snapshot | None:
        """The current one when it is newer, else the next that is published."""
        if self.current.version > have:
            return self.current
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return None
        return self.current

    def publish(self, snapshot: Snapshot) -> None:
        """Replaces the snapshot and wakes who waits."""
        self.current = snapshot
        self._changed.set()

    def confirm(self, status: ProxyStatus) -> None:
        """Remembers the status."""
        self.said[status.proxy_id] = status

    def statuses(self) -> Sequence[ProxyStatus]:
        """All that was said."""
        return list(self.said.values())


class MemoryIngest:
    """Keeps batches by token; fails with `trouble` while it is set."""

    def __init__(self) -> None:
        self.batches: dict[str, bytes] = {}
        self.trouble: Exception | None = None

    async def accept(self, token: str, body: bytes) -> None:
        """Keeps the batch."""
        if self.trouble is not None:
            raise self.trouble
        if len(body) > 10_000_000:
            raise TooLarge("too large")
        self.batches.setdefault(token, body)

    async def status(self, status: ProxyStatus) -> None:
        """Keeps nothing."""
        if self.trouble is not None:
            raise self.trouble


class MemoryIncidents:
    """A list of incidents."""

    def __init__(self, details: Sequence[IncidentDetail]) -> None:
        self.details = list(details)

    async def list(self, *, state: str | None, limit: int) -> list[IncidentSummary]:
        """Newest first."""
        found = [one.summary for one in self.details if state in {None, one.summary.state}]
        return sorted(found, key=lambda one: -one.opened_us)[:limit]

    async def show(self, incident_id: str) -> IncidentDetail:
        """One of them."""
        for one in self.details:
            if one.summary.id == incident_id:
                return one
        raise NotFound(f"there is no incident {incident_id}")


class MemoryRuns:
    """One run that waits for an approval, and a kill switch."""

    def __init__(self) -> None:
        self.run = RunSummary(
            id="run_1",
            playbook="provider-outage-failover",
            state="waiting",
            incident_id="inc_1",
            opened_us=START_US,
            waits_for="approval",
        )
        self.switch = KillSwitch(engaged=False)
        self.decisions: list[tuple[str, str, str]] = []

    async def list(self, *, state: str | None, limit: int) -> list[RunSummary]:
        """The one run."""
        return [self.run][:limit] if state in {None, self.run.state} else []

    async def show(self, run_id: str) -> RunDetail:
        """The one run."""
        if run_id != self.run.id:
            raise NotFound(f"there is no run {run_id}")
        return RunDetail(self.run)

    async def approve(self, run_id: str, *, actor: str, reason: str) -> None:
        """Once."""
        await self.show(run_id)
        if self.decisions:
            raise Conflict("the run waits for nobody")
        self.decisions.append(("approve", actor, reason))

    async def reject(self, run_id: str, *, actor: str, reason: str) -> None:
        """Notes it."""
        await self.show(run_id)
        self.decisions.append(("reject", actor, reason))

    async def abort(self, run_id: str, *, actor: str, reason: str) -> None:
        """Notes it."""
        await self.show(run_id)
        self.decisions.append(("abort", actor, reason))

    async def kill_switch(self) -> KillSwitch:
        """As it is."""
        return self.switch

    async def engage(self, *, actor: str, reason: str) -> None:
        """On."""
        self.switch = KillSwitch(engaged=True, since_us=START_US, actor=actor, reason=reason)

    async def release(self, *, actor: str, reason: str) -> None:
        """Off."""
        self.switch = KillSwitch(engaged=False, since_us=START_US, actor=actor, reason=reason)


class MemoryCalls:
    """Calls in a list; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[CallFilter] = []
        self.calls = [
            CallRecord(
                call_id=f"call_{number}",
                started_us=START_US - number * US_PER_S,
                latency_us=1000,
                operation="chat",
                outcome=Outcome.OK,
                status=200,
                tenant="acme",
                agent=HOSTILE,
            )
            for number in range(5)
        ]

    async def list(self, wanted: CallFilter) -> list[CallRecord]:
        """Newest first."""
        self.asked.append(wanted)
        return [call for call in self.calls if wanted.tenant in {"", call.tenant}][: wanted.limit]

    async def show(self, call_id: str) -> CallRecord:
        """One of them."""
        for call in self.calls:
            if call.call_id == call_id:
                return call
        raise NotFound(f"there is no call {call_id}")


class MemoryCosts:
    """A report of two rows."""

    async def report(self, *, dimensions: tuple[str, ...], from_us: int, to_us: int, tenant: str) -> CostReport:
        """Always the same money."""
        if unknown := set(dimensions) - {"tenant", "agent", "model", "day", "session"}:
            raise BadRequest(f"unknown dimension {min(unknown)}")
        rows = [
            _cost_row(("=1+1",) * len(dimensions), calls=2, nanousd=1_500_000_000, saved=1),
            _cost_row((tenant or "acme",) * len(dimensions), calls=1, nanousd=7),
        ]
        return build(dimensions, rows, from_us=from_us, to_us=to_us, generated_us=to_us, price_book="test")

    async def savings(self, *, from_us: int, to_us: int, tenant: str) -> Savings:
        """One hit."""
        line = SavingsLine(tenant or "acme", CacheState.HIT, Confidence.EXACT, 1, 5)
        return Savings(from_us, to_us, (line,), 5, 7)

    async def reconcile(self, statuses: Sequence[ProxyStatus]) -> Reconciliation:
        """The rows know one call more than no proxy at all."""
        return reconcile(_cost_row((), calls=1, nanousd=7), statuses)


def _cost_row(by: tuple[str, ...], *, calls: int, nanousd: int, saved: int = 0) -> CostRow:
    return CostRow(by, calls, NO_TOKENS, nanousd, saved, calls, 0, 0)


class MemoryKeys:
    """Keys in a dict."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyRecord] = {}
        self.actors: list[str] = []

    def list(self, *, tenant: str | None = None) -> list[KeyRecord]:
        """All."""
        return [key for key in self.keys.values() if tenant in {None, key.tenant}]

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
        """A key for acme."""
        if tenant != "acme":
            raise NotFound(f"there is no tenant {tenant}")
        record = KeyRecord(
            f"key_{len(self.keys)}", tenant, "hash", name, models, START_US, expires_us, addresses=addresses
        )
        self.keys[record.id] = record
        self.actors.append(actor)
        return IssuedKey(record, Secret("sk-heph-secret"))

    def rotate(self, key_id: str, *, grace_us: int, actor: str = "") -> IssuedKey:
        """Another secret."""
        if key_id not in self.keys:
            raise NotFound(f"there is no key {key_id}")
        self.keys[key_id] = msgspec.structs.replace(
            self.keys[key_id], former_hash="hash", rotated_us=START_US, grace_until_us=START_US + grace_us
        )
        self.actors.append(actor)
        return IssuedKey(self.keys[key_id], Secret("sk-heph-other"))

    def revoke(self, key_id: str, *, reason: str = "", actor: str = "") -> KeyRecord:
        """Marks it."""
        if key_id not in self.keys:
            raise NotFound(f"there is no key {key_id}")
        self.keys[key_id] = msgspec.structs.replace(self.keys[key_id], revoked_us=START_US)
        self.actors.append(actor)
        return self.keys[key_id]


class MemoryHealth:
    """An overview that the test replaces; fails with `trouble` while it is set."""

    def __init__(self, overview: Overview) -> None:
        self.now = overview
        self.trouble: HephaestusError | None = None
        self.readings = 0

    async def overview(self) -> Overview:
        """As it is."""
        self.readings += 1
        if self.trouble is not None:
            raise self.trouble
        return self.now


def healed_outage(*, title: str = "openai-eu/gpt-4o-mini fails", resolved: bool = True) -> IncidentDetail:
    """An incident with the whole story of a healed outage, or its first half."""
    story = (
        (0, "incident.opened", "Success ratio of openai-eu/gpt-4o-mini fell to 12.4 % (score 0.98)", ""),
        (2, "incident.fired", "Two watches agree; probable cause: the deployment", ""),
        (3, "run.matched", "provider-outage-failover v1", "healing"),
        (3, "run.lease_granted", "Drain openai-eu/gpt-4o-mini for 60 s", "healing"),
        (4, "step.confirmed", "Both proxies run snapshot 42", ""),
        (24, "validation.passed", "Success ratio of gpt-4o-mini is 99.8 % over 20 s", "healing"),
        (95, "run.lease_revoked", "Probes succeed; traffic returns", "healing"),
        (125, "incident.resolved", "Nothing was anomalous for 30 s", ""),
    )
    timeline = tuple(
        TimelineEntry(at_us=START_US - 300 * US_PER_S + second * US_PER_S, kind=kind, text=text, actor=actor)
        for second, kind, text, actor in (story if resolved else story[:4])
    )
    summary = IncidentSummary(
        id="inc_1" if resolved else "inc_2",
        title=title,
        state="resolved" if resolved else "firing",
        opened_us=timeline[0].at_us,
        resolved_us=timeline[-1].at_us if resolved else 0,
        cause="deployment openai-eu/gpt-4o-mini",
        severity="critical",
        run_ids=("run_1",),
    )
    return IncidentDetail(summary, timeline)


def busy_overview(*, incidents: tuple[IncidentDetail, ...] = ()) -> Overview:
    """A first page with something in every corner, hostile names among it."""
    points = tuple(
        TrafficPoint(START_US - (59 - minute) * 60 * US_PER_S, 40 + minute * 7 % 31, 18 if 40 < minute < 44 else 0)
        for minute in range(60)
    )
    calls = sum(point.calls for point in points)
    return Overview(
        at_us=START_US,
        snapshot_version=42,
        traffic=Traffic(
            window_s=3600,
            calls=calls,
            errors=sum(point.errors for point in points),
            latency_us_p50=812_000,
            latency_us_p95=2_410_000,
            first_token_us_p50=241_000,
            first_token_us_p95=702_000,
            points=points,
        ),
        spend=Spend(
            today_nanousd=12_403_118_250,
            hour_nanousd=1_202_000_417,
            unpriced_calls=3,
            by_tenant=(SpendLine("acme", 2100, 9_403_118_250), SpendLine("globex", 701, 3_000_000_000)),
            by_model=(SpendLine("gpt-4o-mini", 2400, 4_103_118_250), SpendLine("gpt-4o", 401, 8_300_000_000)),
            by_agent=(SpendLine(HOSTILE, 1200, 8_403_118_250), SpendLine("", 1601, 4_000_000_000)),
        ),
        cache=CacheSavings(calls=2801, hits=702, coalesced=33, saved_nanousd=2_150_400_000),
        ledger=Ledger(2801, 12_403_118_250, 2801, 12_403_118_250),
        kill_switch=KillSwitch(engaged=False),
        deployments=(
            DeploymentView(
                id="openai-eu/gpt-4o-mini",
                upstream="openai-eu",
                model="gpt-4o-mini",
                aliases=("gpt-4o-mini",),
                breaker="open",
                breaker_reason="error ratio 0.91 of 22 calls",
                lease="drained by run_1",
                lease_expires_us=START_US + 43 * US_PER_S,
                attempts=104,
                failures=91,
                latency_us_p95=5_012_000,
            ),
            DeploymentView(
                "openai-us/gpt-4o-mini",
                "openai-us",
                "gpt-4o-mini",
                ("gpt-4o-mini",),
                attempts=900,
                failures=1,
                latency_us_p95=1_900_000,
            ),
            DeploymentView("mini/embed", "mini", "text-embedding-3-small", ("embed",)),
        ),
        proxies=(ProxyView("proxy-1", START_US - US_PER_S, 42, 14, 12_400, 0, 2801, 12_403_118_250),),
        incidents=incidents,
    )


class MemoryAnswers:
    """Stored answers that are counted and invalidated. actors: who invalidated."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self.rules: list[CacheInvalidation] = []
        self.counted: list[Selection] = []
        self.actors: list[str] = []
        self.uncountable = False

    async def count(self, selection: Selection) -> CachedCount:
        """Three of a kilobyte each."""
        if self.uncountable:
            raise StoreUnavailable("the store does not answer")
        self.counted.append(selection)
        return CachedCount(entries_at_most=3, bytes_at_most=3072)

    async def invalidate(self, selection: Selection, *, reason: str, actor: str) -> CacheInvalidation:
        """A rule for a day."""
        before_us = selection.before_us or self.now_us()
        rule = CacheInvalidation(
            f"inval_{len(self.rules)}",
            before_us,
            before_us + 86_400 * US_PER_S,
            tenant=selection.tenant,
            tag=selection.tag,
            alias=selection.alias,
            model=selection.model,
            agent=selection.agent,
            reason=reason,
        )
        self.rules.append(rule)
        self.actors.append(actor)
        return rule

    async def active(self) -> list[CacheInvalidation]:
        """All of them."""
        return self.rules


class World:
    """Parts over memory, with handles on each."""

    def __init__(self, *, console: ConsoleSettings | None = None, settings: Settings | None = None) -> None:
        self.clock = ManualClock(START_US)
        self.publisher = MemoryPublisher()
        self.ingest = MemoryIngest()
        self.incidents = MemoryIncidents([healed_outage()])
        self.runs = MemoryRuns()
        self.calls = MemoryCalls()
        self.keys = MemoryKeys()
        self.cache = MemoryAnswers(self.clock.now_us)
        self.health = MemoryHealth(busy_overview(incidents=(healed_outage(),)))
        self.metrics = Metrics(CollectorRegistry())
        self.not_ready = ""
        self.parts = Parts(
            publisher=self.publisher,
            ingest=self.ingest,
            incidents=self.incidents,
            runs=self.runs,
            calls=self.calls,
            costs=MemoryCosts(),
            keys=self.keys,
            cache=self.cache,
            health=self.health,
            secrets=ServerSecrets(
                key_pepper=Secret("00" * 32), internal_token=Secret(INTERNAL), operator_token=Secret(OPERATOR)
            ),
            clock=self.clock,
            metrics=self.metrics,
            settings=settings or Settings(),
            console=console or ConsoleSettings(),
            ready={"store": self.ready},
        )

    async def ready(self) -> str:
        """The one readiness check."""
        return self.not_ready

"""What the control plane tells the proxies: one versioned, immutable document.

It holds no secret: upstream credentials are references that each proxy resolves in its own environment, and virtual keys are keyed
hashes. A proxy keeps the last good one on disk and starts from it when the control plane is down.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.contract.issuers import Issuer
from controlplane.contract.pricing import Price
from controlplane.contract.routing import (
    Affinity,
    AllOpen,
    BreakerWeights,
    Canary,
    Concurrency,
    Fallbacks,
    Hedge,
    Priority,
    Retries,
    Shadow,
    Strategy,
)

OUTPUT_TOKENS_USUAL = 16_384
_YEAR_S = 31_536_000


class Window(StrEnum):
    """The period after which a budget starts anew, in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"  # never


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ceiling per window for a tenant; one of the two amounts is set."""

    id: str
    window: Window
    nanousd: int | None = None
    tokens: int | None = None


class QuotaScope(StrEnum):
    """Whose use one instance of a quota counts."""

    TENANT = "tenant"
    KEY = "key"
    AGENT = "agent"
    USER = "user"
    SESSION = "session"
    MODEL = "model"  # the alias that serves: the one asked for, unless a quota or a fallback chose another
    TAG = "tag"


class QuotaAction(StrEnum):
    """What happens to a call that would pass a quota."""

    HARD = "hard"  # refused
    SOFT = "soft"  # served, with a warning
    DOWNGRADE = "downgrade"  # served by another alias


class QuotaMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which calls a quota is about; what is left out matches all."""

    models: Annotated[tuple[str, ...], Meta(max_length=100, description="Aliases that serve.")] = ()
    keys: Annotated[tuple[str, ...], Meta(max_length=100, description="Ids of virtual keys.")] = ()
    agents: Annotated[tuple[str, ...], Meta(max_length=100, description="Agents.")] = ()
    users: Annotated[tuple[str, ...], Meta(max_length=100, description="Users.")] = ()
    tags: Annotated[dict[str, str], Meta(max_length=32, description="Tags and the values they must have.")] = {}


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ceiling for each value of a scope; one of the four amounts is set, and concurrency has no window."""

    id: str
    per: QuotaScope = QuotaScope.TENANT
    tag: str = ""  # with TAG: its name
    window: Window = Window.MONTH
    timezone: str = "UTC"  # whose midnights begin days and months
    requests: int | None = None
    tokens: int | None = None
    nanousd: int | None = None
    concurrency: int | None = None
    action: QuotaAction = QuotaAction.HARD
    to: str = ""  # with DOWNGRADE: the alias
    match: QuotaMatch = msgspec.field(default_factory=QuotaMatch)


class CoalesceCost(StrEnum):
    """Who pays for an answer that several identical calls in flight shared."""

    LEADER = "leader"  # the call that asked
    SPLIT = "split"  # all that got it, in equal parts


class CachePolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether and for how long answers are kept, and what may be served past that."""

    enabled: bool = True
    ttl_s: int = 3600
    stale_while_revalidate_s: Annotated[
        int, Meta(ge=0, le=_YEAR_S, description="Past its time an answer is served for so long while it is asked anew.")
    ] = 0
    stale_if_error_s: Annotated[
        int, Meta(ge=0, le=_YEAR_S, description="Past its time an answer is served for so long where upstreams fail.")
    ] = 0
    negative_ttl_s: Annotated[
        int, Meta(ge=0, le=3600, description="How long an upstream's permanent refusal is kept; 0: not at all.")
    ] = 0
    coalesce_cost: Annotated[
        CoalesceCost, Meta(description="Who pays for an answer that identical calls in flight share.")
    ] = CoalesceCost.LEADER


class PayloadPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether request and response bodies are kept, and for how long."""

    store: bool = False
    retention_days: int = 7


class Unpriced(StrEnum):
    """What happens to a call whose deployment has no price."""

    ALLOW = "allow"  # served, recorded as unpriced, token budgets still count
    REFUSE = "refuse"


class PassthroughGrant(msgspec.Struct, frozen=True, omit_defaults=True):
    """An upstream of which a tenant may ask what no operation of ours covers. Allow-lists of models do not hold there."""

    upstream: str
    paths: tuple[str, ...] = ()  # below its base address, each with all below it; empty: everything


class TenantPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who pays, and within which limits; None: no limit."""

    id: str
    models: tuple[str, ...] | None = None  # aliases this tenant may use; None: all
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budgets: tuple[Budget, ...] = ()
    max_output_tokens: int | None = None
    cache: CachePolicy = CachePolicy()
    payloads: PayloadPolicy = PayloadPolicy()
    unpriced: Unpriced = Unpriced.ALLOW
    priority_max: Priority = Priority.NORMAL  # the best that `x-heph-priority` can ask for
    quotas: tuple[Quota, ...] = ()
    fair_weights: dict[str, int] | None = None  # of agents, 1 for those not named; None: first come, first served
    passthrough: tuple[PassthroughGrant, ...] = ()


class KeyEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A virtual key as proxies know it: by its keyed hash (32 hex characters, see `controlplane.contract.keys`)."""

    hash: str
    id: str
    tenant: str
    models: tuple[str, ...] | None = None
    expires_us: int | None = None
    addresses: tuple[str, ...] | None = None  # networks in CIDR notation that it may be used from; None: any


class Upstream(msgspec.Struct, frozen=True, omit_defaults=True):
    """A provider endpoint. credential: a reference such as `env:OPENAI_API_KEY` or `file:/path`, never the secret.

    options: what else the litellm transport tells litellm about this provider; a value may be a reference too.
    """

    id: str
    dialect: str
    base_url: str
    credential: str | None = None
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 120.0
    connections_max: int = 1024
    reports_cost: bool = False  # its answers say what they cost: `usage.cost`, in USD
    options: dict[str, str] = {}
    passthrough_nanousd: int | None = (
        None  # held for each call that is passed through; None: what is known of its worst case
    )


class Deployment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model at an upstream. order: smaller first; weight: share among equals of one order."""

    id: str
    upstream: str
    model: str
    price: Price | None = None
    weight: int = 1
    order: int = 0
    max_output_tokens: int = OUTPUT_TOKENS_USUAL  # what one answer can reach when the client sets no ceiling
    concurrency: Concurrency | None = None  # None: no limit
    output_tokens_max: int | None = None  # the model's longest answer; None: not known


class BatchPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How embeddings calls of one tenant that come at about the same time are asked as one."""

    window_s: Annotated[
        float, Meta(gt=0, le=1, description="The longest that a call waits for others; in quiet times none waits.")
    ] = 0.01
    items_max: Annotated[int, Meta(ge=2, le=2048, description="Inputs of one request to the upstream.")] = 256


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model alias to its deployments, with policy."""

    alias: str
    deployments: tuple[Deployment, ...]
    timeout_s: float = 600.0
    attempts_max: int = 3
    cache_ttl_s: int | None = None  # None: the tenant's
    cache_stale_while_revalidate_s: int | None = None  # None: the tenant's
    cache_stale_if_error_s: int | None = None  # None: the tenant's
    batch: BatchPolicy | None = None  # None: every call goes alone
    strategy: Strategy = Strategy.WEIGHTED
    retries: Retries = Retries()  # what it leaves out is as the snapshot's own has it
    fallbacks: Fallbacks = Fallbacks()
    hedge: Hedge | None = None
    canary: Canary | None = None
    affinity: Affinity | None = None
    shadow: Shadow | None = None


class LeaseKind(StrEnum):
    """What an override does while it lasts."""

    DRAIN = "drain"  # send the deployment no calls but breaker probes
    SHARE = "share"  # let the deployment have at most `share` of its route's calls


class Lease(msgspec.Struct, frozen=True, omit_defaults=True):
    """An override with an expiry; proxies drop it by themselves when `expires_us` has passed."""

    id: str
    kind: LeaseKind
    deployment: str
    expires_us: int
    run_id: str = ""
    share: float = 0.0  # with SHARE: 0..1
    reason: str = ""


class CacheInvalidation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stored answers that must not be served again: those asked for before a moment that fit every selector which is set.

    A rule without selectors is an epoch: it fits all answers before its moment. expires_us: when no answer can be that old any more.
    """

    id: str
    before_us: int
    expires_us: int
    tenant: str = ""
    tag: str = ""  # `name=value`, or `name` for any value
    alias: str = ""  # the route
    model: str = ""  # the model that served
    agent: str = ""
    reason: str = ""


class BreakerPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a deployment's breaker opens and how it is probed."""

    window_s: float = 20.0
    requests_min: int = 10
    error_ratio: float = 0.5
    slow_s: float = 300.0  # a whole answer of a model that thinks takes minutes and is no sign of sickness
    slow_ratio: float = 0.8
    open_s: float = 5.0
    probes: int = 2
    failures_in_row: float = 5.0  # opens after so many without a success between them, by weight
    weights: BreakerWeights = BreakerWeights()
    all_open: AllOpen = AllOpen.REFUSE
    probe_idle: bool = True  # a sick deployment that no call would probe gets copies of calls that others answered


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything a proxy needs to serve calls. version grows by one with each change; hash is of the content."""

    version: int
    created_us: int
    hash: str = ""
    tenants: tuple[TenantPolicy, ...] = ()
    keys: tuple[KeyEntry, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    routes: tuple[Route, ...] = ()
    leases: tuple[Lease, ...] = ()
    breaker: BreakerPolicy = BreakerPolicy()
    issuers: tuple[Issuer, ...] = ()
    label_aliases: bool = True  # accept other proxies' label headers
    invalidations: tuple[CacheInvalidation, ...] = ()
    retries: Retries = Retries()  # of all routes


class BreakerStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A breaker as one worker sees it."""

    deployment: str
    state: str  # "closed", "open", "half_open"
    since_us: int
    reason: str = ""
    error_ratio: float = 0.0
    calls: int = 0


class BudgetStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One budget window as one worker's ledger has it."""

    tenant: str
    budget: str
    window_start_us: int
    settled_nanousd: int = 0
    reserved_nanousd: int = 0
    settled_tokens: int = 0
    reserved_tokens: int = 0
    value: str = ""  # of the quota's scope: an agent's name, a key's id; empty for the tenant as a whole
    window_end_us: int = 0
    settled_requests: int = 0
    reserved_requests: int = 0  # calls in flight
    degraded: bool = False  # Redis is out, and the worker goes on with its part of the limit
    unit: str = ""  # what the limit is about: "nanousd", "tokens", "requests" or "calls"
    limit: int = 0  # of all workers


class ProxyStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says about itself every few seconds; the proof that a snapshot was applied."""

    proxy_id: str
    at_us: int
    snapshot_version: int
    lease_ids: tuple[str, ...] = ()
    breakers: tuple[BreakerStatus, ...] = ()
    budgets: tuple[BudgetStatus, ...] = ()
    calls_inflight: int = 0
    ledger_calls: int = 0  # settled by this worker since its first start
    ledger_nanousd: int = 0  # cost of those, all tenants; equals the sum of its rows once all are shipped
    spool_bytes: int = 0
    spool_dropped: int = 0
    calls_total: int = 0


encode_snapshot = msgspec.json.Encoder().encode
decode_snapshot = msgspec.json.Decoder(Snapshot).decode

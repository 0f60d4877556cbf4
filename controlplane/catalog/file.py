"""The configuration file as structs: what may be written in it, with bounds. `load` reads it, docs/reference/configuration.md shows it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.catalog.bind import DAY, DECIMAL, REFERENCE
from controlplane.contract.routing import (
    Affinity,
    Canary,
    Concurrency,
    Fallbacks,
    Priority,
    Retries,
    Shadow,
    Strategy,
)
from controlplane.contract.snapshot import (
    BatchPolicy,
    BreakerPolicy,
    CachePolicy,
    PayloadPolicy,
    QuotaAction,
    QuotaMatch,
    QuotaScope,
    Unpriced,
    Window,
)
from controlplane.settings import Settings

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}\Z"
_NAME_TITLE = "letters, digits and `. _ : @ / + -`, at most 128, beginning with a letter or digit"

Name = Annotated[str, Meta(pattern=_NAME, title=_NAME_TITLE)]
Url = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^\s/@]+(/[^\s?#]*)?\Z",
        title="an address such as https://host/v1, without user, password, query or fragment",
    ),
]
OptionValue = Annotated[str, Meta(min_length=1, max_length=500, title="a text of at most 500 characters")]
Reference = Annotated[str, Meta(extra={REFERENCE: True})]
Usd = Annotated[int, Meta(ge=0, lt=10**18, title="from 0 up to a billion", extra={DECIMAL: 9})]
"""US dollars, kept as nano-USD."""
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10**12)]


class Dialect(StrEnum):
    """The wire language of an upstream."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    LITELLM = "litellm"  # whatever litellm speaks: the model's name says which provider


class UpstreamEntry(msgspec.Struct, frozen=True):
    """A provider endpoint."""

    name: Annotated[Name, Meta(description="What deployments call it.")]
    base_url: Annotated[
        Url | None,
        Meta(
            description="Address as an SDK takes it; ends with `/v1` for OpenAI, without it for Anthropic. "
            "Only litellm knows where its providers are."
        ),
    ] = None
    dialect: Annotated[Dialect, Meta(description="Its wire language.")] = Dialect.OPENAI
    credential: Annotated[Reference | None, Meta(description="Reference to its API key, resolved by each proxy.")] = (
        None
    )
    connect_timeout_s: Annotated[Seconds, Meta(description="How long connecting may take.")] = 5.0
    first_byte_timeout_s: Annotated[
        Seconds,
        Meta(
            description="How long the first content of a stream may take, or the head of a whole answer, "
            "which providers send when all of it is written. Then the next deployment is tried."
        ),
    ] = 300.0
    idle_timeout_s: Annotated[
        Seconds, Meta(description="Longest silence within an answer; models that reason are silent for long.")
    ] = 120.0
    connections_max: Annotated[int, Meta(ge=1, le=100_000, description="Connections one worker holds to it.")] = 1024
    reports_cost: Annotated[
        bool,
        Meta(description="Its answers say in `usage.cost` what they cost, as OpenRouter's do; compared, never billed."),
    ] = False
    passthrough_usd_per_call: Annotated[
        Usd | None,
        Meta(
            description="What one call that is passed through may cost at most: held against budgets while it runs, "
            "instead of what its request tells. One that costs more is booked in full and counted."
        ),
    ] = None
    options: Annotated[
        dict[str, OptionValue],
        Meta(
            max_length=20,
            title="a mapping of at most 20 entries",
            description="What else litellm must know, such as `api_version` or `aws_region_name`; only with `dialect: litellm`. "
            "A value may be a reference, and one that is a secret must be.",
        ),
    ] = {}


class PriceKinds(msgspec.Struct, frozen=True):
    """A price in US dollars per million tokens, kind by kind, as exact decimals."""

    input: Annotated[Usd, Meta(description="Text input.")]
    output: Annotated[Usd, Meta(description="Visible output.")]
    cache_read: Annotated[Usd | None, Meta(description="Input read from a prompt cache.")] = None
    cache_write: Annotated[Usd | None, Meta(description="Input written to a prompt cache for five minutes.")] = None
    cache_write_1h: Annotated[Usd | None, Meta(description="Input written to a prompt cache for an hour.")] = None
    reasoning: Annotated[Usd | None, Meta(description="Hidden reasoning; as output when it is left out.")] = None
    audio_input: Annotated[Usd | None, Meta(description="Audio in.")] = None
    audio_output: Annotated[Usd | None, Meta(description="Audio out.")] = None
    image_input: Annotated[Usd | None, Meta(description="Images in.")] = None
    image_output: Annotated[Usd | None, Meta(description="Images out.")] = None
    second: Annotated[Usd | None, Meta(description="One second of sound heard, where tokens are not counted.")] = None
    character: Annotated[Usd | None, Meta(description="One character spoken, where tokens are not counted.")] = None
    picture: Annotated[Usd | None, Meta(description="One picture drawn, where tokens are not counted.")] = None
    search: Annotated[
        Usd | None, Meta(description="One search of the web that the provider makes, beside the tokens.")
    ] = None
    file_search: Annotated[
        Usd | None, Meta(description="One search in files that the provider makes, beside the tokens.")
    ] = None
    container: Annotated[
        Usd | None,
        Meta(
            description="A container in which the provider runs code, for each gigabyte of its memory and for as long as is billed at once."
        ),
    ] = None
    pictures: Annotated[
        dict[str, Usd] | None,
        Meta(
            description="One picture of a quality and size, by `quality/WIDTHxHEIGHT` or `WIDTHxHEIGHT`; comes before `picture`.",
            max_length=100,
            title="a mapping of at most 100 entries",
        ),
    ] = None


class LongPriceEntry(PriceKinds, frozen=True, kw_only=True):
    """What a call costs whose input is longer than a threshold, all its tokens included; a kind left out costs as without."""

    above_tokens: Annotated[Count, Meta(description="The threshold, prompt cache included, such as 200000.")]


class ServicePriceEntry(PriceKinds, frozen=True, kw_only=True):
    """What a call costs in another service class; a kind left out costs as in the standard one."""

    long: Annotated[tuple[LongPriceEntry, ...], Meta(max_length=5, title="a list of at most 5")] = ()


class PriceChangeEntry(ServicePriceEntry, frozen=True, kw_only=True):
    """A whole price that holds from a day on, in UTC."""

    start: Annotated[
        str,
        Meta(
            description="The day, as in 2026-12-01.",
            pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\Z",
            title="a day such as 2026-12-01",
            extra={DAY: True},
        ),
    ] = msgspec.field(name="from")
    service: Annotated[dict[str, ServicePriceEntry], Meta(description="By service class, as in `prices`.")] = {}


class PriceEntry(ServicePriceEntry, frozen=True, kw_only=True):
    """A price of your own, in US dollars per million tokens, as an exact decimal."""

    service: Annotated[
        dict[str, ServicePriceEntry],
        Meta(
            description="By the provider's name for a service class: `batch`, `flex`, `priority`; for Anthropic also `fast` and `us` "
            "(data that stays there), and `fast+us` for both."
        ),
    ] = {}
    changes: Annotated[
        tuple[PriceChangeEntry, ...],
        Meta(
            description="Prices that replace this one, each from its day on.",
            max_length=50,
            title="a list of at most 50",
        ),
    ] = ()


class DeploymentEntry(msgspec.Struct, frozen=True):
    """A model at an upstream."""

    upstream: Annotated[Name, Meta(description="Name of the upstream.")]
    model: Annotated[Name, Meta(description="The model's name there.")]
    id: Annotated[Name | None, Meta(description="`upstream/model` unless set.")] = None
    weight: Annotated[int, Meta(ge=1, le=1_000_000, description="Share among deployments of one order.")] = 1
    order: Annotated[int, Meta(ge=0, le=100, description="Smaller is tried first.")] = 0
    max_output_tokens: Annotated[
        Count | None,
        Meta(
            description="The model's longest answer: held against budgets when the client sets no ceiling, and where a request is "
            "translated, the most it asks for. Unless set: the price book's for its model, of which 16384 at most are held."
        ),
    ] = None
    price: PriceEntry | None = None
    concurrency: Concurrency | None = None

    @property
    def deployment_id(self) -> str:
        """How the deployment is called everywhere."""
        return self.id or f"{self.upstream}/{self.model}"


class HedgeEntry(msgspec.Struct, frozen=True):
    """A second try on another deployment when the first shows no content for long; the loser is cancelled, and both are billed."""

    after_ms: Annotated[int | None, Meta(ge=1, le=600_000, description="When a call is late.")] = None
    after_percentile: Annotated[
        float | None,
        Meta(
            gt=0, lt=100, description="Or: when it takes longer than this part of the deployment's calls, in percent."
        ),
    ] = None
    budget_ratio: Annotated[
        float, Meta(gt=0, le=1, description="Hedges are at most this share of the route's calls, over ten seconds.")
    ] = 0.05
    max_extra_usd: Annotated[Usd | None, Meta(description="What a second try may cost by expectation.")] = None
    second_worth_usd: Annotated[
        Usd | None,
        Meta(description="What one second less of waiting is worth; then a second try must be worth its price."),
    ] = None


class ModelEntry(msgspec.Struct, frozen=True):
    """A model alias and where its calls go."""

    name: Annotated[Name, Meta(description="What clients ask for.")]
    deployments: Annotated[
        tuple[DeploymentEntry, ...], Meta(min_length=1, max_length=100, title="a list of 1 to 100 deployments")
    ]
    timeout_s: Annotated[Seconds, Meta(description="Deadline of a call, retries included.")] = 600.0
    attempts_max: Annotated[int, Meta(ge=1, le=20, description="Tries at most.")] = 3
    cache_ttl_s: Annotated[
        int | None, Meta(ge=0, le=31_536_000, description="How long answers are kept; the tenant's policy unless set.")
    ] = None
    cache_stale_while_revalidate_s: Annotated[
        int | None, Meta(ge=0, le=31_536_000, description="As in `cache`; the tenant's policy unless set.")
    ] = None
    cache_stale_if_error_s: Annotated[
        int | None, Meta(ge=0, le=31_536_000, description="As in `cache`; the tenant's policy unless set.")
    ] = None
    batch: Annotated[
        BatchPolicy | None,
        Meta(description="Whether embeddings calls that come together are asked as one; not unless set."),
    ] = None
    strategy: Annotated[Strategy, Meta(description="Which deployment of one order comes first.")] = Strategy.WEIGHTED
    retries: Annotated[Retries, Meta(description="As the file's own `retries`, for this model.")] = Retries()
    fallbacks: Fallbacks = Fallbacks()
    hedge: HedgeEntry | None = None
    canary: Canary | None = None
    affinity: Affinity | None = None
    shadow: Shadow | None = None


class BudgetEntry(msgspec.Struct, frozen=True):
    """A ceiling per window: an amount of money or a number of tokens."""

    window: Annotated[Window, Meta(description="When it begins anew, in UTC.")]
    usd: Annotated[Usd | None, Meta(description="The amount.")] = None
    tokens: Annotated[Count | None, Meta(description="Or the number of tokens.")] = None
    id: Annotated[Name | None, Meta(description="Its name in messages and reports; unit and window unless set.")] = None

    @property
    def budget_id(self) -> str:
        """How the budget is called everywhere."""
        return self.id or f"{'usd' if self.usd is not None else 'tokens'}-{self.window}"


class Limits(msgspec.Struct, frozen=True):
    """What a tenant may do at once; no limit where none is set."""

    requests_per_minute: Annotated[Count | None, Meta(description="Calls a minute.")] = None
    tokens_per_minute: Annotated[Count | None, Meta(description="Tokens a minute.")] = None
    concurrency: Annotated[Count | None, Meta(description="Calls at once.")] = None
    max_output_tokens: Annotated[Count | None, Meta(description="Longest answer of one call.")] = None


Zone = Annotated[
    str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_+/-]{0,63}\Z", title="a time zone such as `America/Sao_Paulo`")
]
Weight = Annotated[int, Meta(ge=1, le=1_000)]
Label = Annotated[str, Meta(min_length=1, max_length=256)]


class QuotaEntry(msgspec.Struct, frozen=True):
    """A ceiling for each agent, key, user... of a tenant: an amount of money, of tokens or of requests in a window, or calls at once."""

    per: Annotated[QuotaScope, Meta(description="Each of what has its own.")] = QuotaScope.TENANT
    tag: Annotated[
        Annotated[str, Meta(min_length=1, max_length=64)] | None, Meta(description="With `per: tag`, the tag's name.")
    ] = None
    usd: Annotated[Usd | None, Meta(description="The amount.")] = None
    tokens: Annotated[Count | None, Meta(description="Or the number of tokens.")] = None
    requests: Annotated[Count | None, Meta(description="Or the number of calls that reach an upstream.")] = None
    concurrency: Annotated[Count | None, Meta(description="Or how many calls at once; it has no window.")] = None
    window: Annotated[Window | None, Meta(description="When it begins anew.")] = None
    timezone: Annotated[Zone, Meta(description="Whose midnights begin days and months.")] = "UTC"
    action: Annotated[
        QuotaAction, Meta(description="`hard` refuses, `soft` serves with a warning, `downgrade` lets `to` serve.")
    ] = QuotaAction.HARD
    to: Annotated[Name | None, Meta(description="With `downgrade`, the model that serves instead.")] = None
    match: QuotaMatch = QuotaMatch()
    id: Annotated[Name | None, Meta(description="Its name in messages; scope, unit and window unless set.")] = None

    @property
    def quota_id(self) -> str:
        """How the quota is called everywhere."""
        if self.id is not None:
            return self.id
        scope = self.per.value if self.tag is None else f"tag-{self.tag}"
        unit = next((name for name in ("usd", "tokens", "requests") if getattr(self, name) is not None), "concurrency")
        return f"{scope}-{unit}" if self.window is None else f"{scope}-{unit}-{self.window}"


class FairShare(msgspec.Struct, frozen=True):
    """How the agents of a tenant share its rate and its concurrency when there is not enough for all."""

    weights: Annotated[
        dict[Label, Weight], Meta(max_length=1_000, description="Weights by agent; 1 for those not named.")
    ] = {}


class PassthroughEntry(msgspec.Struct, frozen=True):
    """An upstream of which a tenant may ask any path, on the operator's credential. Allow-lists of models do not hold there."""

    upstream: Annotated[Name, Meta(description="Name of the upstream.")]
    paths: Annotated[
        tuple[
            Annotated[
                str,
                Meta(pattern=r"^(/[A-Za-z0-9._~-]+)+\Z", title="a path such as `/files`, without a slash behind it"),
            ],
            ...,
        ],
        Meta(
            max_length=100, description="Paths below its base address, each with all below it; everything unless set."
        ),
    ] = ()


class TenantEntry(msgspec.Struct, frozen=True):
    """Who pays."""

    name: Annotated[Name, Meta(description="The tenant's name in keys, rows and reports.")]
    models: Annotated[tuple[Name, ...] | None, Meta(description="Aliases it may use; all unless set.")] = None
    limits: Limits = Limits()
    budgets: Annotated[tuple[BudgetEntry, ...], Meta(max_length=20, title="a list of at most 20 budgets")] = ()
    cache: CachePolicy | None = None
    payloads: PayloadPolicy | None = None
    priority_max: Annotated[
        Priority, Meta(description="The best priority that its `x-heph-priority` headers can ask for.")
    ] = Priority.NORMAL
    unpriced: Annotated[Unpriced, Meta(description="What happens to calls that have no price.")] = Unpriced.ALLOW
    quotas: Annotated[tuple[QuotaEntry, ...], Meta(max_length=50, title="a list of at most 50 quotas")] = ()
    fair_share: FairShare | None = None
    passthrough: Annotated[
        tuple[PassthroughEntry, ...], Meta(max_length=50, title="a list of at most 50 upstreams")
    ] = ()


class Algorithm(StrEnum):
    """How a token is signed: always with a key whose public half is enough to check it."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"


class IssuerEntry(msgspec.Struct, frozen=True):
    """Who signs tokens that stand in for a virtual key (JWT, OpenID Connect)."""

    name: Annotated[Name, Meta(description="Its name in key ids and in the log.")]
    issuer: Annotated[
        str,
        Meta(min_length=1, max_length=500, description="What `iss` must say; where the keys are found unless said."),
    ]
    audience: Annotated[tuple[str, ...], Meta(min_length=1, max_length=20, description="Of which `aud` must name one.")]
    jwks_url: Annotated[Url | None, Meta(description="Where its public keys are.")] = None
    jwks_file: Annotated[str | None, Meta(min_length=1, description="Or the file that holds them.")] = None
    algorithms: Annotated[
        tuple[Algorithm, ...], Meta(min_length=1, max_length=10, description="Signatures that count.")
    ] = (
        Algorithm.RS256,
        Algorithm.ES256,
        Algorithm.EDDSA,
    )
    tenant: Annotated[Name | None, Meta(description="Who pays for all of its tokens.")] = None
    tenant_claim: Annotated[
        str | None, Meta(min_length=1, max_length=200, description="Or the claim that names the tenant.")
    ] = None
    models_claim: Annotated[
        str | None, Meta(min_length=1, max_length=200, description="A claim that lists the models a token may use.")
    ] = None
    user_claim: Annotated[str, Meta(min_length=1, max_length=200, description="The claim that says who calls.")] = "sub"
    leeway_s: Annotated[float, Meta(ge=0, le=600, description="Difference of the clocks that is forgiven.")] = 30.0
    refresh_s: Annotated[float, Meta(ge=10, le=86_400, description="How often its keys are asked for.")] = 300.0


class AlertKind(StrEnum):
    """How people are told."""

    WEBHOOK = "webhook"  # CloudEvents body, Standard Webhooks signature


class AlertEntry(msgspec.Struct, frozen=True):
    """A place that is told about incidents and runs."""

    name: Annotated[Name, Meta(description="Its name in the log and in metrics.")]
    url: Annotated[
        str, Meta(pattern=r"^https?://[^\s@]+\Z", title="an http or https address without user and password")
    ]
    kind: Annotated[AlertKind, Meta(description="How it is told.")] = AlertKind.WEBHOOK
    secret: Annotated[Reference | None, Meta(description="Reference to the signing secret.")] = None
    events: Annotated[
        tuple[str, ...] | None, Meta(description="Event types it wants, `*` at the end allowed; all unless set.")
    ] = None
    allow_private: Annotated[
        tuple[str, ...],
        Meta(description="Private addresses or networks it may be at, such as `10.0.0.0/8`; none unless set."),
    ] = ()
    per_minute: Annotated[int, Meta(ge=1, le=10_000, description="Messages it gets in a minute at most.")] = 60


class ConfigFile(msgspec.Struct, frozen=True):
    """The whole file: `server:` needs a restart, everything else is hot-reloaded."""

    server: Settings = Settings()
    upstreams: Annotated[tuple[UpstreamEntry, ...], Meta(max_length=1_000, title="a list of at most 1000")] = ()
    models: Annotated[tuple[ModelEntry, ...], Meta(max_length=10_000, title="a list of at most 10000")] = ()
    tenants: Annotated[tuple[TenantEntry, ...], Meta(max_length=10_000, title="a list of at most 10000")] = ()
    issuers: Annotated[tuple[IssuerEntry, ...], Meta(max_length=20, title="a list of at most 20")] = ()
    alerts: Annotated[tuple[AlertEntry, ...], Meta(max_length=100, title="a list of at most 100")] = ()
    prices: Annotated[dict[str, PriceEntry], Meta(description="Prices of your own, by model.")] = {}
    breaker: BreakerPolicy = BreakerPolicy()
    retries: Retries = Retries()
    cache: CachePolicy = CachePolicy()
    payloads: PayloadPolicy = PayloadPolicy()
    label_aliases: Annotated[bool, Meta(description="Whether label headers of other proxies are accepted.")] = True

    def catalog(self) -> ConfigFile:
        """The part that can be reloaded: the same without the server section."""
        return msgspec.structs.replace(self, server=Settings())

"""The Overview board: what an operator looks at first. Requests, errors, speed, money, providers, incidents."""

from __future__ import annotations

from dashboards import queries
from dashboards.model import (
    Annotation,
    Annotations,
    Current,
    Dashboard,
    DatasourceVariable,
    Json,
    Link,
    QueryVariable,
    Target,
    Templating,
)
from dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    RED,
    YELLOW,
    Placed,
    Section,
    Spec,
    column,
    laid_out,
    range_mapping,
    stat,
    state_timeline,
    table,
    time_series,
    value_mapping,
)

UID = "heph-overview"
DATASOURCE_UID = "hephaestus-clickhouse"

_BREAKER = value_mapping((("0", "closed", GREEN), ("1", "half open", YELLOW), ("2", "open", RED)))
_LEASES: tuple[dict[str, Json], ...] = (
    value_mapping((("0", "no override", GREEN),)),
    range_mapping(1, None, text="override in force", color=YELLOW),
)
_INCIDENT_STATE = value_mapping(
    (("pending", "pending", YELLOW), ("firing", "firing", RED), ("resolved", "resolved", GREEN))
)
_NONE_IS_GOOD = (value_mapping((("0", "none", GREEN),)),)
_KEEP = "${__url_time_range}&${datasource:queryparam}"
_ONE_DEPLOYMENT = Link(
    title="Only this deployment",
    url=f"/d/{UID}?{_KEEP}&${{tenant:queryparam}}&var-deployment=${{__field.labels.deployment}}",
)
_ONE_TENANT = Link(
    title="Only this tenant",
    url=f"/d/{UID}?{_KEEP}&${{deployment:queryparam}}&var-tenant=${{__field.labels.tenant}}",
)
_OUTCOME_COLORS = (
    ("ok", GREEN),
    ("exhausted", RED),
    ("timed_out", "orange"),
    ("unavailable", "dark-red"),
    ("rate_limited", YELLOW),
)


def overview() -> Dashboard:
    """The board."""
    return Dashboard(
        uid=UID,
        title="Hephaestus / Overview",
        description="Requests, errors, speed, money, providers and incidents of the whole fleet.",
        tags=("hephaestus",),
        panels=laid_out((_now(), _traffic(), _speed(), _money(), _providers(), _incidents())),
        templating=Templating(
            list=(
                DatasourceVariable(current=Current(text="Hephaestus", value=DATASOURCE_UID)),
                _variable("tenant", "Tenant", "Who pays", queries.TENANT_VALUES),
                _variable("deployment", "Deployment", "A model at an upstream", queries.DEPLOYMENT_VALUES),
            )
        ),
        annotations=Annotations(
            list=(
                Annotation(name="Incidents", icon_color=RED, target=_marks(queries.INCIDENT_MARKS)),
                Annotation(name="Healing", icon_color=BLUE, target=_marks(queries.RUN_MARKS)),
            )
        ),
    )


def _variable(name: str, label: str, description: str, sql: str) -> QueryVariable:
    return QueryVariable(name=name, label=label, description=description, query=sql, definition=sql)


def _marks(sql: str) -> Target:
    return Target(ref_id="Anno", raw_sql=sql, format=1, query_type="table")


def _now() -> Section:
    """The state of things in eight numbers."""
    return Section("Now", ((4, _service_numbers()), (4, _fleet_numbers())))


def _service_numbers() -> tuple[Placed, ...]:
    """What clients feel."""
    return (
        stat(
            Spec(
                title="Requests",
                description="Client calls per second over the shown range.",
                unit="reqps",
                sql=queries.REQUESTS_PER_S,
                first_color=BLUE,
                decimals=2,
            )
        ),
        stat(
            Spec(
                title="Errors",
                unit="percentunit",
                sql=queries.ERROR_SHARE,
                decimals=2,
                steps=((0.01, YELLOW), (0.05, RED)),
                description="Share of calls that failed by our or an upstream's fault. Good below 1 %, worth a look up to 5 %, bad above.",
            )
        ),
        stat(
            Spec(
                title="Latency p95",
                unit="s",
                sql=queries.LATENCY_P95,
                decimals=2,
                steps=((10, YELLOW), (30, RED)),
                description="95 % of good calls were faster than this, to the last byte. Good below 10 s, slow up to 30 s, bad above.",
            )
        ),
        stat(
            Spec(
                title="First token p95",
                unit="s",
                sql=queries.FIRST_TOKEN_P95,
                decimals=2,
                steps=((2, YELLOW), (5, RED)),
                description="95 % of good calls began to answer faster than this. Good below 2 s, slow up to 5 s, bad above.",
            )
        ),
    )


def _fleet_numbers() -> tuple[Placed, ...]:
    """What it costs, and what is wrong."""
    return (
        stat(
            Spec(
                title="Spend",
                description="USD per hour at the speed of the shown range. Calls without a known price are not in it.",
                unit="currencyUSD",
                sql=queries.COST_PER_HOUR,
                first_color=BLUE,
                decimals=2,
            )
        ),
        stat(
            Spec(
                title="Cache hits",
                description="Share of cacheable calls that were answered without an upstream call of their own.",
                unit="percentunit",
                sql=queries.HIT_RATIO,
                first_color=BLUE,
                decimals=1,
            )
        ),
        stat(
            Spec(
                title="Open incidents",
                unit="none",
                sql=queries.OPEN_INCIDENTS,
                steps=((1, RED),),
                mappings=_NONE_IS_GOOD,
                description="Incidents that are pending or firing now, whatever the shown range. None is good.",
            )
        ),
        stat(
            Spec(
                title="Open breakers",
                unit="none",
                sql=queries.OPEN_BREAKERS,
                steps=((1, RED),),
                mappings=_NONE_IS_GOOD,
                description="Deployments whose breaker some worker holds open or half open now. None is good.",
            )
        ),
    )


def _traffic() -> Section:
    requests = Spec(
        title="Requests by outcome",
        description="Client calls per second, by how they ended.",
        unit="reqps",
        sql=queries.REQUESTS_BY_OUTCOME,
        min=0,
    )
    errors = Spec(
        title="Errors by model",
        unit="percentunit",
        sql=queries.ERRORS_BY_ALIAS,
        min=0,
        steps=((0.05, RED),),
        description="Share of calls for each model alias that failed by our or an upstream's fault. The line is at 5 %.",
    )
    return Section(
        "Traffic", ((8, (time_series(requests, stacked=True, colors=_OUTCOME_COLORS), time_series(errors))),)
    )


def _speed() -> Section:
    latency = Spec(
        title="Latency",
        description="Time from the request to the last byte of good calls: median, 95th and 99th percentile.",
        unit="s",
        sql=queries.LATENCY,
        min=0,
    )
    first = Spec(
        title="First token",
        description="Time from the request to the first content of good calls: median, 95th and 99th percentile.",
        unit="s",
        sql=queries.FIRST_TOKEN,
        min=0,
    )
    return Section("Speed", ((8, (time_series(latency), time_series(first))),))


def _money() -> Section:
    tokens = Spec(
        title="Tokens",
        description="Tokens per second by kind; no token is in two kinds.",
        unit="none",
        sql=queries.TOKENS,
        min=0,
    )
    cost = Spec(
        title="Cost per hour",
        description="USD per hour by tenant, from the ledger's rows. Unpriced calls are not in it.",
        unit="currencyUSD",
        sql=queries.COST_BY_TENANT,
        min=0,
        links=(_ONE_TENANT,),
    )
    hits = Spec(
        title="Cache hit ratio",
        description="Share of cacheable calls answered from the cache or by joining a call in flight.",
        unit="percentunit",
        sql=queries.HITS,
        min=0,
        max=1,
    )
    saved = Spec(
        title="Saved per hour",
        description="USD per hour that answers from the cache and joined calls would have cost.",
        unit="currencyUSD",
        sql=queries.SAVED_PER_HOUR,
        min=0,
    )
    return Section(
        "Tokens and money",
        (
            (8, (time_series(tokens, stacked=True), time_series(cost, stacked=True))),
            (8, (time_series(hits), time_series(saved))),
            (8, _spenders()),
        ),
    )


def _spenders() -> tuple[Placed, ...]:
    """Who spends, and on what."""
    agents = Spec(
        title="Agents",
        description="The agents that spend most in the shown range.",
        unit="none",
        sql=queries.AGENTS,
        first_color=GREY,
    )
    aliases = Spec(
        title="Models",
        description="The model aliases that cost most in the shown range. Unpriced: calls whose cost is not known.",
        unit="none",
        sql=queries.ALIASES,
        first_color=GREY,
    )
    shown = [
        column("errors", unit="percentunit"),
        column("hits", unit="percentunit"),
        column("p95", unit="s"),
        column("first_token_p95", unit="s"),
        column("cost", unit="currencyUSD"),
        column("saved", unit="currencyUSD"),
    ]
    return table(agents, overrides=shown), table(aliases, overrides=shown)


def _providers() -> Section:
    errors = Spec(
        title="Failed attempts by deployment",
        unit="percentunit",
        sql=queries.ATTEMPT_ERRORS,
        min=0,
        steps=((0.05, RED),),
        links=(_ONE_DEPLOYMENT,),
        description="Share of attempts that failed by the deployment's fault; clients may still have been served by another. The line is at 5 %.",
    )
    first = Spec(
        title="First token p95 by deployment",
        description="95 % of good attempts began to answer faster than this.",
        unit="s",
        sql=queries.FIRST_TOKEN_BY_DEPLOYMENT,
        min=0,
        links=(_ONE_DEPLOYMENT,),
    )
    breakers = Spec(
        title="Breakers",
        unit="none",
        sql=queries.BREAKER_STATES,
        mappings=(_BREAKER,),
        steps=((1, YELLOW), (2, RED)),
        links=(_ONE_DEPLOYMENT,),
        description="The worst state of each deployment's breaker over all workers: closed, half open (probing), open (no traffic).",
    )
    leases = Spec(
        title="Overrides",
        unit="none",
        sql=queries.LEASES,
        mappings=_LEASES,
        steps=((1, YELLOW),),
        description="Whether healing's leased overrides (drains, shares) are in force on each worker.",
    )
    return Section(
        "Providers",
        ((8, (time_series(errors), time_series(first))), (7, (state_timeline(breakers), state_timeline(leases)))),
    )


def _incidents() -> Section:
    spec = Spec(
        title="Incidents",
        unit="none",
        sql=queries.INCIDENTS,
        first_color=GREY,
        description="Open incidents first, then those of the shown range. `hephaestus incidents show ID` tells the whole story.",
    )
    shown = [column("opened", unit="dateTimeAsIso"), column("state", mappings=[_INCIDENT_STATE])]
    return Section("Incidents", ((8, (table(spec, overrides=shown),)),))

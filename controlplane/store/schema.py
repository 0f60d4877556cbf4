"""The tables of the store, their columns and what each means: one place for rows, queries, documentation and dashboards.

The SQL that makes them is in `migrations/`; a test compares the two. Times are UTC, money is `Decimal(18, 9)` USD (exact to the
nano-USD), `_us` is microseconds. No column is nullable: absent text is empty, absent numbers are 0.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from controlplane.contract.pricing import ITEM_KINDS, TOKEN_KINDS

_NAME = "LowCardinality(String)"
_TIME = "DateTime64(6, 'UTC')"
_MONEY = "Decimal(18, 9)"


class Column(msgspec.Struct, frozen=True):
    """One column. written: rows carry a value for it; otherwise the engine fills it in."""

    name: str
    type: str
    doc: str
    written: bool = True


class Table(msgspec.Struct, frozen=True, dict=True):
    """One table or roll-up."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @cached_property
    def written(self) -> tuple[Column, ...]:
        """The columns that an insert gives values for, in order."""
        return tuple(column for column in self.columns if column.written)


_TOKENS = tuple(Column(f"tokens_{kind}", "UInt64", f"{kind} tokens; no token is in two kinds") for kind in TOKEN_KINDS)
_ITEMS = (
    Column(
        "items",
        "Map(LowCardinality(String), Decimal(18, 6))",
        f"what is billed that is no token, by kind: {', '.join(ITEM_KINDS)}",
    ),
    Column(
        "items_usd",
        f"Map(LowCardinality(String), {_MONEY})",
        "what of cost_usd each of them makes; a kind without a price is missing",
    ),
)
_INGESTED = Column("ingested", "DateTime64(3, 'UTC')", "when the control plane stored the row", written=False)
_PROXY = Column("proxy", _NAME, "the proxy worker that reported it")

CALLS = Table(
    "calls",
    "One row for each client call, written once at settlement.",
    (
        Column("call_id", "String", "the call"),
        Column("started", _TIME, "when the request was read"),
        Column("latency_us", "UInt64", "until the last byte was sent"),
        Column("operation", _NAME, "what was asked for, as the endpoints page names it"),
        Column("outcome", _NAME, "how the call ended"),
        Column("status", "UInt16", "HTTP status the client got"),
        Column("tenant", _NAME, "who pays; empty when the key was not known"),
        Column("key_id", _NAME, "the virtual key"),
        Column("agent", _NAME, "label x-heph-agent"),
        Column("session", "String", "label x-heph-session: a conversation"),
        Column("user", "String", "label x-heph-user"),
        Column("tags", "Map(LowCardinality(String), String)", "label x-heph-tags"),
        Column("channel", _NAME, "label x-heph-channel"),
        Column("priority", _NAME, "label x-heph-priority"),
        Column("trace_id", "String", "trace id of the traceparent header"),
        Column("alias", _NAME, "the model the client asked for"),
        Column("model", _NAME, "the model that served"),
        Column("deployment", _NAME, "the deployment that served"),
        Column("stream", "Bool", "whether the answer was streamed"),
        Column("first_token_us", "UInt64", "from the start to the first content; 0: none came"),
        Column("overhead_us", "UInt64", "latency less the waiting for upstreams and for the client"),
        Column("error_code", _NAME, "code of the error body; empty on success"),
        Column("finish_reason", _NAME, "as the model gave it"),
        Column("cache", _NAME, "hit, stale, semantic, coalesced, miss, bypass"),
        *_TOKENS,
        Column("cost_usd", _MONEY, "sum of the attempts' costs; what is known of them when cost_state is unpriced"),
        Column("cost_state", _NAME, "final, estimated, unpriced"),
        Column("saved_usd", _MONEY, "what a hit or a joined call would have cost"),
        Column("price_version", _NAME, "the price-book row used"),
        *_ITEMS,
        Column("snapshot_version", "UInt64", "the configuration the call ran under"),
        Column("request_bytes", "UInt64", "size of the request body"),
        Column("response_bytes", "UInt64", "size of what was sent to the client"),
        Column("attempts", "UInt16", "tries on deployments"),
        _PROXY,
        _INGESTED,
    ),
)

ATTEMPTS = Table(
    "attempts",
    "One row for each try on one deployment, so that billing and latency of retries are never mixed.",
    (
        Column("call_id", "String", "the call it belongs to"),
        Column("attempt", "UInt16", "from 1, in the order they began"),
        Column("started", _TIME, "when the attempt began"),
        Column("latency_us", "UInt64", "until its last byte or its failure"),
        Column("first_token_us", "UInt64", "from the start of the attempt to the first content; 0: none came"),
        Column("tenant", _NAME, "who pays"),
        Column("agent", _NAME, "label of the call"),
        Column("alias", _NAME, "the model the client asked for"),
        Column("operation", _NAME, "what was asked for, as the endpoints page names it"),
        Column("deployment", _NAME, "where it was tried"),
        Column("upstream", _NAME, "the deployment's upstream"),
        Column("model", _NAME, "the upstream's name of the model"),
        Column("status", "UInt16", "HTTP status; 0: none came"),
        Column("error", _NAME, "why it failed; empty when it did not"),
        *_TOKENS,
        Column("cost_usd", _MONEY, "what the upstream charges for it"),
        Column("cost_state", _NAME, "final, estimated, unpriced"),
        Column("price_version", _NAME, "the price-book row used"),
        *_ITEMS,
        Column("probe", "Bool", "let through by a half-open breaker"),
        Column(
            "reported_usd", f"Nullable({_MONEY})", "what the upstream itself said that it costs; compared, never billed"
        ),
        _PROXY,
        _INGESTED,
    ),
)

PAYLOADS = Table(
    "payloads",
    "Request and response bodies, where the tenant's policy keeps them, for as long as it says.",
    (
        Column("call_id", "String", "the call"),
        Column("started", _TIME, "when the call began"),
        Column("tenant", _NAME, "who pays"),
        Column("request", "String", "request body"),
        Column("response", "String", "response body"),
        Column("retention_days", "UInt16", "the row is dropped after this many days"),
        _INGESTED,
    ),
)

_TOKEN_SUMS = tuple(
    Column(f"tokens_{kind}", "SimpleAggregateFunction(sum, UInt64)", f"{kind} tokens", written=False)
    for kind in TOKEN_KINDS
)
_SUM = "SimpleAggregateFunction(sum, UInt64)"
_MONEY_SUM = "SimpleAggregateFunction(sum, Decimal(38, 9))"
_DIGEST = "AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64)"


def _sums(*names_and_docs: tuple[str, str], type_name: str = _SUM) -> tuple[Column, ...]:
    return tuple(Column(name, type_name, doc, written=False) for name, doc in names_and_docs)


def _dimensions(*names_and_docs: tuple[str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, _NAME, doc, written=False) for name, doc in names_and_docs)


CALLS_MINUTE = Table(
    "calls_minute",
    "Calls by minute and label; filled by the engine as calls are stored. Always aggregate it: sum(calls), quantilesTDigestMerge(...).",
    (
        Column("minute", "DateTime('UTC')", "start of the minute in which the call began", written=False),
        *_dimensions(
            ("tenant", "who pays"),
            ("agent", "label x-heph-agent"),
            ("operation", "what was asked for"),
            ("alias", "the model the client asked for"),
            ("model", "the model that served"),
            ("deployment", "the deployment that served"),
            ("outcome", "how the calls ended"),
            ("cache", "where the answers came from"),
        ),
        *_sums(
            ("calls", "number of calls"),
            ("calls_priced", "calls whose cost is final"),
            ("calls_estimated", "calls whose cost is an estimate"),
            ("calls_unpriced", "calls whose cost is not known"),
        ),
        *_TOKEN_SUMS,
        *_sums(("cost_usd", "cost"), ("saved_usd", "saved by cache and coalescing"), type_name=_MONEY_SUM),
        *_sums(
            ("attempts", "tries"),
            ("overhead_us", "sum of our own share of the latency"),
            ("request_bytes", "sum"),
            ("response_bytes", "sum"),
        ),
        Column("latency_us", _DIGEST, "latency; read with quantilesTDigestMerge(0.5, 0.95, 0.99)", written=False),
        Column("first_token_us", _DIGEST, "first token, of calls that had one", written=False),
    ),
)

ATTEMPTS_MINUTE = Table(
    "attempts_minute",
    "Attempts by minute and deployment; filled by the engine as attempts are stored. Always aggregate it.",
    (
        Column("minute", "DateTime('UTC')", "start of the minute in which the attempt began", written=False),
        *_dimensions(
            ("deployment", "where it was tried"),
            ("upstream", "the deployment's upstream"),
            ("model", "the upstream's name of the model"),
            ("alias", "the model the client asked for"),
            ("error", "why they failed; empty when they did not"),
        ),
        *_sums(("attempts", "number of attempts"), ("probes", "let through by a half-open breaker")),
        *_TOKEN_SUMS,
        *_sums(("cost_usd", "cost"), type_name=_MONEY_SUM),
        Column("latency_us", _DIGEST, "latency", written=False),
        Column("first_token_us", _DIGEST, "first token, of attempts that had one", written=False),
    ),
)

DEPLOYMENT_STATUS = Table(
    "deployment_status",
    "A deployment's breaker as each proxy worker sees it, over time: a row at every change and every ten seconds at least.",
    (
        Column("at", _TIME, "when the worker said so"),
        _PROXY,
        Column("deployment", _NAME, "the deployment"),
        Column("state", _NAME, "closed, open, half_open"),
        Column("since", _TIME, "when the breaker went into this state"),
        Column("reason", "String", "why"),
        Column("error_ratio", "Float64", "share of failed attempts in the breaker's window"),
        Column("calls", "UInt64", "attempts in the breaker's window"),
        Column("snapshot_version", "UInt64", "the configuration the worker runs"),
    ),
)

PROXY_STATUS = Table(
    "proxy_status",
    "A proxy worker's own state over time.",
    (
        Column("at", _TIME, "when the worker said so"),
        _PROXY,
        Column("snapshot_version", "UInt64", "the configuration it runs"),
        Column("leases", "Array(String)", "ids of the overrides in force"),
        Column("calls_inflight", "UInt64", "calls that are being served"),
        Column("calls_total", "UInt64", "calls since the process started"),
        Column("ledger_calls", "UInt64", "calls settled since the worker's first start"),
        Column("ledger_usd", "Decimal(38, 9)", "cost of those; equals the sum of its rows once all are stored"),
        Column("spool_bytes", "UInt64", "records on disk that are not yet stored"),
        Column("spool_dropped", "UInt64", "records lost because the spool was full"),
    ),
)

INCIDENT_EVENTS = Table(
    "incident_events",
    "The journal's incident events, copied for analytics.",
    (
        Column("at", _TIME, "when it happened"),
        Column("position", "UInt64", "position in the journal"),
        Column("incident_id", "String", "the incident"),
        Column("type", _NAME, "name of the event"),
        Column("state", _NAME, "pending, firing, resolved: after the event"),
        Column("severity", _NAME, "how bad"),
        Column("title", "String", "what it is about"),
        Column("deployment", _NAME, "the deployment it concerns; may be empty"),
        Column("data", "String", "the event, JSON"),
    ),
)

RUN_EVENTS = Table(
    "run_events",
    "The journal's playbook-run events, copied for analytics.",
    (
        Column("at", _TIME, "when it happened"),
        Column("position", "UInt64", "position in the journal"),
        Column("run_id", "String", "the run"),
        Column("incident_id", "String", "the incident it serves; may be empty"),
        Column("playbook", _NAME, "the playbook"),
        Column("type", _NAME, "name of the event"),
        Column("state", _NAME, "state of the run after the event"),
        Column("step", _NAME, "the step it concerns; may be empty"),
        Column("data", "String", "the event, JSON"),
    ),
)

BATCHES = Table(
    "batches",
    "The batches that are stored completely; what is sent again under one of these tokens is left out.",
    (
        Column("token", "String", "proxy and segment"),
        _PROXY,
        Column("records", "UInt32", "calls in it"),
        Column("attempts", "UInt32", "attempts in it"),
        Column("payloads", "UInt32", "payloads in it"),
        Column("bytes", "UInt64", "size as sent"),
        Column("cost_usd", "Decimal(38, 9)", "sum of its calls' costs"),
        Column("first", _TIME, "start of its earliest call"),
        Column("last", _TIME, "start of its latest call"),
        _INGESTED,
    ),
)

TABLES: tuple[Table, ...] = (
    CALLS,
    ATTEMPTS,
    PAYLOADS,
    CALLS_MINUTE,
    ATTEMPTS_MINUTE,
    DEPLOYMENT_STATUS,
    PROXY_STATUS,
    INCIDENT_EVENTS,
    RUN_EVENTS,
    BATCHES,
)

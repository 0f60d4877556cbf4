"""What the proxy reports: one `CallRecord` for every call, with one `AttemptRecord` for each try, whatever happened.

Records are immutable facts, written at settlement. Times are integer microseconds, money integer nano-USD. Fields are only ever
added, with defaults, so that an older control plane reads a newer proxy and the reverse.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Item, Tokens


class Outcome(StrEnum):
    """How a call ended; closed. Everything but `ok` has a line in docs/reference/refusals.md."""

    OK = "ok"
    DENIED = "denied"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    FORBIDDEN = "forbidden"
    NO_ROUTE = "no_route"
    OVER_BUDGET = "over_budget"
    NOT_CACHED = "not_cached"  # the client asked for `only-if-cached`
    UPSTREAM_REFUSED = "upstream_refused"  # a final 4xx of the upstream, passed through
    EXHAUSTED = "exhausted"
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"
    BROKEN_STREAM = "broken_stream"  # failed after the first content byte
    CLIENT_CLOSED = "client_closed"
    INTERNAL = "internal"


class CacheState(StrEnum):
    """Where the answer came from, as `x-heph-cache` says it."""

    HIT = "hit"
    STALE = "stale"
    SEMANTIC = "semantic"
    COALESCED = "coalesced"
    MISS = "miss"
    BYPASS = "bypass"


class CostState(StrEnum):
    """How well a cost is known."""

    FINAL = "final"  # from the usage that the upstream reported
    ESTIMATED = "estimated"  # the call ended before the usage was known
    UNPRICED = "unpriced"  # the price book has no price, for all of it or a part; what is known of the cost is booked


class AttemptError(StrEnum):
    """Why one try on one deployment failed; empty when it did not."""

    NONE = ""
    CONNECT = "connect"
    STATUS_429 = "status_429"
    STATUS_5XX = "status_5xx"
    AUTH = "auth"  # 401 or 403: revoked or wrong credential
    QUOTA = "quota"  # credit or quota exhausted, whatever the status
    REJECTED = "rejected"  # any other 4xx: the request's own fault
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"  # the client left


class AttemptRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try on one deployment."""

    deployment: str
    upstream: str
    model: str
    started_us: int
    latency_us: int
    first_token_us: int = 0  # from the start of the attempt; 0: no content came
    status: int = 0  # HTTP status; 0: none came
    error: AttemptError = AttemptError.NONE
    tokens: Tokens = NO_TOKENS
    cost_nanousd: int = 0
    cost_state: CostState = CostState.FINAL
    price_version: str = ""
    probe: bool = False  # a half-open breaker let this one through
    reported_nanousd: int | None = None  # what the upstream itself says that it costs; never billed
    items: tuple[Item, ...] = ()  # what of the cost is not for tokens, each kind once


class Payload(msgspec.Struct, frozen=True):
    """Request and response bytes, kept only where the tenant's policy says so."""

    request: bytes
    response: bytes
    retention_days: int


class CallRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One client call and everything that is billed or measured about it."""

    call_id: str
    started_us: int
    latency_us: int
    operation: str  # "chat", "embeddings", "models"
    outcome: Outcome
    status: int
    tenant: str = ""
    key_id: str = ""
    agent: str = ""
    session: str = ""
    user: str = ""
    tags: dict[str, str] = {}
    channel: str = ""
    priority: str = ""
    trace_id: str = ""
    alias: str = ""  # the model the client asked for
    routed: str = ""  # the alias that was served instead, by a quota, a fallback or a path; empty: the one asked for
    model: str = ""  # the model that served
    deployment: str = ""
    stream: bool = False
    first_token_us: int = 0  # from the start of the call; 0: no content came
    overhead_us: int = 0  # latency less the time spent waiting for upstreams and for the client
    error_code: str = ""
    finish_reason: str = ""
    cache: CacheState = CacheState.BYPASS
    tokens: Tokens = NO_TOKENS
    cost_nanousd: int = 0  # sum of the attempts' costs
    cost_state: CostState = CostState.FINAL
    saved_nanousd: int = 0  # what a hit or a joined call would have cost at the upstream
    price_version: str = ""
    snapshot_version: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    attempts: tuple[AttemptRecord, ...] = ()
    payload: Payload | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """What of the cost is not for tokens: the attempts' items, each kind once; one of which a part has no price is summed without it."""
        found: dict[str, Item] = {}
        for attempt in self.attempts:
            for item in attempt.items:
                known = found.get(item.kind)
                found[item.kind] = item if known is None else item.plus(known)
        return tuple(found.values())

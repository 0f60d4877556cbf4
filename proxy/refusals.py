"""The closed table of our own answers: every way in which the proxy says no, with its status, its code and whose fault it is.

docs/reference/refusals.md documents each line; a test compares the two.
"""

from __future__ import annotations

import math

import msgspec

from controlplane.contract.records import Outcome
from proxy.call import Headers, Reply
from proxy.dialects import anthropic, openai
from proxy.dialects.operations import Protocol


class Refusal(msgspec.Struct, frozen=True):
    """One line of the table. code is stable: clients branch on it."""

    code: str
    status: int
    outcome: Outcome
    kind: str  # the `type` of OpenAI's error body
    source: str  # who is at fault: "client", "gateway" or "upstream"
    should_retry: bool


DENIED = Refusal("denied", 401, Outcome.DENIED, "authentication_error", "client", should_retry=False)
RATE_LIMITED = Refusal("rate_limited", 429, Outcome.RATE_LIMITED, "rate_limit_error", "client", should_retry=True)
OVER_BUDGET = Refusal("over_budget", 429, Outcome.OVER_BUDGET, "budget_exceeded", "client", should_retry=False)
TOO_LARGE = Refusal("too_large", 413, Outcome.TOO_LARGE, "invalid_request_error", "client", should_retry=False)
MALFORMED = Refusal("malformed", 400, Outcome.MALFORMED, "invalid_request_error", "client", should_retry=False)
FORBIDDEN = Refusal("forbidden", 403, Outcome.FORBIDDEN, "permission_error", "client", should_retry=False)
UNPRICED = Refusal("unpriced", 403, Outcome.FORBIDDEN, "permission_error", "client", should_retry=False)
NO_ROUTE = Refusal("no_route", 404, Outcome.NO_ROUTE, "invalid_request_error", "client", should_retry=False)
NOT_FOUND = Refusal("not_found", 404, Outcome.NO_ROUTE, "invalid_request_error", "client", should_retry=False)
METHOD_NOT_ALLOWED = Refusal(
    "method_not_allowed", 405, Outcome.MALFORMED, "invalid_request_error", "client", should_retry=False
)
NOT_CACHED = Refusal("not_cached", 504, Outcome.NOT_CACHED, "invalid_request_error", "client", should_retry=False)
EXHAUSTED = Refusal("exhausted", 502, Outcome.EXHAUSTED, "upstream_error", "upstream", should_retry=False)
TIMED_OUT = Refusal("timed_out", 504, Outcome.TIMED_OUT, "upstream_error", "upstream", should_retry=False)
UNAVAILABLE = Refusal("unavailable", 503, Outcome.UNAVAILABLE, "upstream_error", "upstream", should_retry=True)
OVERLOADED = Refusal("overloaded", 503, Outcome.UNAVAILABLE, "overloaded_error", "gateway", should_retry=True)
NOT_READY = Refusal("not_ready", 503, Outcome.UNAVAILABLE, "gateway_error", "gateway", should_retry=True)
MISCONFIGURED = Refusal("misconfigured", 503, Outcome.UNAVAILABLE, "gateway_error", "gateway", should_retry=False)
BROKEN_STREAM = Refusal("broken_stream", 502, Outcome.BROKEN_STREAM, "upstream_error", "upstream", should_retry=False)
INTERNAL = Refusal("internal", 500, Outcome.INTERNAL, "gateway_error", "gateway", should_retry=False)

TABLE: tuple[Refusal, ...] = (
    DENIED, RATE_LIMITED, OVER_BUDGET, TOO_LARGE, MALFORMED, UNPRICED, FORBIDDEN, NO_ROUTE, NOT_FOUND, METHOD_NOT_ALLOWED, NOT_CACHED,
    EXHAUSTED, TIMED_OUT, UNAVAILABLE, OVERLOADED, NOT_READY, MISCONFIGURED, BROKEN_STREAM, INTERNAL,
)  # fmt: skip

_RETRY = {True: (b"x-should-retry", b"true"), False: (b"x-should-retry", b"false")}
_JSON = (b"content-type", b"application/json")
_SHAPED = frozenset((b"request-id", b"x-heph-error-code"))
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_encode = msgspec.json.Encoder().encode


class Refused(msgspec.Struct, frozen=True):
    """What a refusal's reply remembers, for its body is shaped when it is known who gets it."""

    refusal: Refusal
    message: str
    details: str = ""


def refuse(
    refusal: Refusal,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
    details: str = "",
) -> Reply:
    """A complete reply that says no, in OpenAI's shape until `shape` knows better.

    message: what happened, to what, and what to do; shown to the client, so it holds no secret, no upstream's address and no
    other tenant's name; what the operator must know besides goes to the log.
    retry_after_s: rounded up to whole seconds, at least one.
    details: the code by which Anthropic's clients know what to do, where they have one for it.
    """
    headers: Headers = [_JSON, _RETRY[refusal.should_retry]]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    reply = Reply(
        refusal.status,
        headers,
        body=openai.error_body(message=message, kind=refusal.kind, code=refusal.code, param=param),
        source=refusal.source,
        outcome=refusal.outcome,
        error_code=refusal.code,
    )
    reply.refusal = Refused(refusal, message, details)
    reply.complete = True
    return reply


def shape(reply: Reply, protocol: Protocol, request_id: str) -> None:
    """Gives a refusal the shape that the client's protocol has for it; every other reply stays as it is."""
    refused = reply.refusal
    if protocol is Protocol.ANTHROPIC and isinstance(refused, Refused):
        kind = _anthropic_kind(refused.refusal)
        reply.body = anthropic.error_body(
            message=refused.message, kind=kind, request_id=request_id, details=refused.details
        )
        code = (b"x-heph-error-code", refused.refusal.code.encode())  # for it has no place in their body
        rest = [
            header for header in reply.headers if header[0] not in _SHAPED
        ]  # a shared one may have been shaped before
        reply.headers = [*rest, (b"request-id", request_id.encode()), code]


def error_event(refusal: Refusal, message: str, protocol: Protocol, request_id: str) -> bytes:
    """The same inside a stream that has begun: a typed error event, never a silent end."""
    if protocol is Protocol.ANTHROPIC:
        return anthropic.error_event(message=message, kind=_anthropic_kind(refusal), request_id=request_id)
    if protocol is Protocol.RESPONSES:
        return b"event: error\ndata: " + _encode(
            {"type": "error", "sequence_number": 0, "code": refusal.code, "message": message, "param": None}
        ) + b"\n\n"  # fmt: skip
    return b"data: " + openai.error_body(message=message, kind=refusal.kind, code=refusal.code) + b"\n\n"


def _anthropic_kind(refusal: Refusal) -> str:
    """Anthropic's name for a status; theirs is a closed set, so our code goes into no field of it."""
    return _ANTHROPIC_KINDS.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")

"""What the operator and the client decided about stored answers: whether one may be served, kept, and for how long. Pure.

Time to live: the route's `cache_ttl_s`, else the tenant's; `x-heph-cache-ttl` can shorten it. Past it an answer is *stale*: for
`stale_while_revalidate_s` more it may be served while it is asked anew, for `stale_if_error_s` more where the upstreams fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from controlplane.contract.records import CacheState, Outcome
from proxy.call import Call, Reply
from proxy.dialects.operations import OPERATIONS
from proxy.repeats import Known
from proxy.runtime import KeyIdentity, RouteEntry
from proxy.transports.cache_control import read_cache_control
from proxy.transports.cache_key import cache_key, scope_of, variant_of

CACHEABLE_OPERATIONS = frozenset(name for name, row in OPERATIONS.items() if row.cached)
_PREFIXES = {name: row.forwarded_prefix for name, row in OPERATIONS.items()}
NEGATIVE_BODY_BYTES_MAX = 64 * 1024
# Statuses with which an upstream refuses the request itself, so that the same one would be refused again. What says something about a
# key, a quota, a conflict or the upstream's own state (401, 402, 403, 408, 409, 425, 429, 5xx) is never kept.
NEGATIVE_STATUSES = frozenset((400, 404, 405, 410, 413, 414, 415, 422))
# How a call ends where a stored answer is better than none.
STALE_OUTCOMES = frozenset((Outcome.EXHAUSTED, Outcome.UNAVAILABLE, Outcome.TIMED_OUT))

_OK = 200
_ANSWER_FIELDS = {
    "moderations": "results",
    "embeddings": "data",
}  # of operations that end for no reason: where the answer is
_REASONS = re.compile(rb'"finish_reason"\s*:\s*"([^"]*)"')  # in a text the quotes are escaped
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def prepare(call: Call) -> bool:
    """Whether to look for a stored answer; sets `request_cache`, `cache_key`, `cache_ttl_s` and `cache`."""
    call.cache = CacheState.BYPASS
    call.request_cache = control = read_cache_control(call.headers)
    identity, route, view = call.identity, call.route, call.view
    if identity is None or route is None or view is None or call.operation not in CACHEABLE_OPERATIONS:
        return False
    if view.kept or view.continues:  # it has an id of its own, or depends on more than its body says
        return False
    policy = identity.tenant.cache
    ttl_s = policy.ttl_s if route.route.cache_ttl_s is None else route.route.cache_ttl_s
    if control.ttl_s is not None:
        ttl_s = min(ttl_s, control.ttl_s)
    if not policy.enabled or ttl_s <= 0 or control.no_store:
        return False
    scope, known = _scope_of(call, identity, route), call.known
    key = known.key if known is not None and known.scope == scope else cache_key(scope=scope, body=call.body)
    if key is None:
        return False
    call.cache_key = key
    call.cache_ttl_s = ttl_s
    if control.no_cache:
        return False
    call.cache = CacheState.MISS
    return True


def known_of(call: Call) -> Known | None:
    """What is worth remembering of a request for which an answer was found."""
    identity, route, view = call.identity, call.route, call.view
    if identity is None or route is None or view is None:
        return None
    return Known(view, _scope_of(call, identity, route), call.cache_key)


def _scope_of(call: Call, identity: KeyIdentity, route: RouteEntry) -> bytes:
    prefix = _PREFIXES[call.operation]
    variant = variant_of(call.headers, prefix=prefix, query=call.query, ceiling=call.output_ceiling)
    return scope_of(identity.tenant.id, call.operation, route.route.alias, variant)


def staleness(call: Call) -> tuple[int, int]:
    """Seconds past its time for which an answer may be served while it is asked anew, and where the upstreams fail."""
    if call.identity is None or call.route is None:
        return 0, 0
    policy, route = call.identity.tenant.cache, call.route.route
    anew, on_error = route.cache_stale_while_revalidate_s, route.cache_stale_if_error_s
    return (
        policy.stale_while_revalidate_s if anew is None else anew,
        policy.stale_if_error_s if on_error is None else on_error,
    )


def is_storable(call: Call, reply: Reply) -> bool:
    """Whether this is a whole good answer that would come again."""
    if reply.status != _OK or not reply.complete or reply.outcome is not Outcome.OK or reply.source != "upstream":
        return False
    if call.fell_back:  # another model stood in
        return False
    reasons = OPERATIONS[call.operation].storable_reasons
    return not reasons or reply.finish_reason in reasons


def holds_answer(call: Call, body: bytes, blocks: tuple[bytes, ...]) -> bool:
    """Whether what came with a good status is an answer, and each of several ended for a reason that would come again.

    An upstream, or what stands before it, may say that it failed with a 200 and a page of its own.
    """
    field, view = _ANSWER_FIELDS.get(call.operation), call.view
    if field is not None:
        return _has_list(body, field)
    if view is None or view.n < 2:
        return True
    allowed = OPERATIONS[call.operation].storable_reasons
    reasons = _REASONS.findall(b"".join(blocks) if blocks else body)
    missing = call.operation == "chat" and len(reasons) < view.n
    return not missing and all(reason.decode("latin-1") in allowed for reason in reasons)


def _has_list(body: bytes, field: str) -> bool:
    try:
        fields: Mapping[str, msgspec.Raw] = _decode_fields(body)
        found = bytes(fields.get(field, b""))
    except (msgspec.DecodeError, RecursionError):
        return False
    return found[:1] == b"[" and found != b"[]" and bytes(fields.get("error", b"null")) == b"null"


def negative_ttl_s(call: Call, reply: Reply) -> int:
    """How long an upstream's refusal of this request may be given again; 0: not at all."""
    if (
        reply.outcome is not Outcome.UPSTREAM_REFUSED
        or call.fell_back  # another model refused
        or reply.status not in NEGATIVE_STATUSES
        or reply.stream is not None
        or len(reply.body) > NEGATIVE_BODY_BYTES_MAX
        or call.identity is None
    ):
        return 0
    return min(call.identity.tenant.cache.negative_ttl_s, call.cache_ttl_s)

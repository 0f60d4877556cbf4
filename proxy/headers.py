"""What every answer says about itself, success or refusal: the proxy's response headers, and a stream's closing comment."""

from __future__ import annotations

import time

from controlplane.contract.pricing import NANOUSD_PER_USD
from controlplane.contract.records import CacheState
from proxy.call import Call, Headers, RateLimit, Reply

_CACHE_STATUS = {
    CacheState.HIT: b"hephaestus; hit",
    CacheState.STALE: b"hephaestus; hit; detail=stale",
    CacheState.SEMANTIC: b"hephaestus; hit; detail=semantic",
    CacheState.COALESCED: b"hephaestus; fwd=miss; collapsed",
    CacheState.MISS: b"hephaestus; fwd=miss",
    CacheState.BYPASS: b"hephaestus; fwd=bypass",
}
_CACHE_HEADERS: dict[CacheState, Headers] = {
    state: [(b"x-heph-cache", state.value.encode()), (b"cache-status", status)]
    for state, status in _CACHE_STATUS.items()
}
_UPSTREAM = frozenset((CacheState.MISS, CacheState.BYPASS))
_ATTEMPTS = tuple((b"x-heph-attempts", b"%d" % count) for count in range(64))
_COST_STATE = {state: (b"x-heph-cost-state", state.encode()) for state in ("final", "estimated", "unpriced")}
_SOURCE = {source: (b"x-heph-error-source", source.encode()) for source in ("gateway", "upstream", "client")}
_ERROR_STATUS_MIN = 400
_RATE_LIMIT_PREFIX = b"x-ratelimit-"
_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def response_headers(call: Call, reply: Reply, *, stream: bool) -> Headers:
    """All headers of an answer. stream: the cost is not known yet and comes as a closing comment instead."""
    headers = list(reply.headers)
    if call.ratelimit_requests is not None or call.ratelimit_tokens is not None:
        headers = [header for header in headers if not header[0].startswith(_RATE_LIMIT_PREFIX)]
        _add_rate_limit(headers, b"requests", call.ratelimit_requests)
        _add_rate_limit(headers, b"tokens", call.ratelimit_tokens)
    headers.append((b"x-heph-call-id", call.call_id.encode()))
    if reply.deployment:
        headers.append((b"x-heph-model", _header_safe(reply.model)))
        headers.append((b"x-heph-deployment", _header_safe(reply.deployment)))
    headers += _CACHE_HEADERS[call.cache]
    if reply.age_s >= 0:
        headers.append((b"age", b"%d" % reply.age_s))
    running = stream and call.cache in _UPSTREAM  # its record is made when it ends
    headers.append(_ATTEMPTS[min(len(call.attempts) + running, len(_ATTEMPTS) - 1)])
    overhead_us = (time.monotonic_ns() - call.started_ns - call.waited_ns) // 1000
    headers.append((b"x-heph-overhead-ms", b"%d.%03d" % divmod(max(0, overhead_us), 1000)))
    if stream:
        headers += _STREAM_HEADERS
    else:
        headers.append((b"x-heph-cost-usd", usd(call.cost_nanousd)))
        headers.append(_COST_STATE[call.cost_state])
        headers.append((b"content-length", b"%d" % len(reply.body)))
    if reply.status >= _ERROR_STATUS_MIN:
        headers.append(_SOURCE[reply.source])
    return headers


def closing_comment(call: Call) -> bytes:
    """The last words of a stream before `[DONE]`: what it cost and how well that is known. SSE readers skip comments."""
    return b": x-heph-cost-usd=%b x-heph-cost-state=%b\n\n" % (usd(call.cost_nanousd), call.cost_state.encode())


def usd(nanousd: int) -> bytes:
    """Nano-USD as a decimal number of USD, exact."""
    return b"%d.%09d" % divmod(nanousd, NANOUSD_PER_USD)


def _add_rate_limit(headers: Headers, what: bytes, limit: RateLimit | None) -> None:
    """The three headers that OpenAI's clients look for."""
    if limit is None:
        return
    most, remaining, reset_s = limit
    headers.append((b"x-ratelimit-limit-" + what, b"%d" % most))
    headers.append((b"x-ratelimit-remaining-" + what, b"%d" % remaining))
    headers.append((b"x-ratelimit-reset-" + what, _duration(reset_s)))


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: `12ms`, `7s`, `6m0s`."""
    if seconds < 1.0:
        return b"%dms" % max(0, round(seconds * 1000))
    minutes, rest = divmod(round(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest


def _header_safe(name: str) -> bytes:
    """A name from the catalog as a header's value; what a header cannot carry becomes a question mark."""
    return name.encode("ascii", "replace") if name.isprintable() else b"?"

"""What every answer says about itself, success or refusal: the proxy's response headers, and a stream's closing comment."""

from __future__ import annotations

import time
from functools import lru_cache

from controlplane.contract.pricing import NANOUSD_PER_USD
from controlplane.contract.records import CacheState
from proxy.call import Call, Headers, RateLimit, Reply
from proxy.dialects.operations import Protocol, protocol_of

_CACHE_STATUS = {
    CacheState.HIT: b"hephaestus; hit",
    CacheState.STALE: b"hephaestus; hit; detail=stale",
    CacheState.SEMANTIC: b"hephaestus; hit; detail=semantic",
    CacheState.COALESCED: b"hephaestus; fwd=miss; collapsed",
    CacheState.MISS: b"hephaestus; fwd=miss",
    CacheState.BYPASS: b"hephaestus; fwd=bypass",
}
_CACHE_LINES = {
    state: b"x-heph-cache: %b\r\ncache-status: %b\r\n" % (state.value.encode(), status)
    for state, status in _CACHE_STATUS.items()
}
_UPSTREAM = frozenset((CacheState.MISS, CacheState.BYPASS))
_SOURCE_LINES = {source: f"x-heph-error-source: {source}\r\n".encode() for source in ("gateway", "upstream", "client")}
_ERROR_STATUS_MIN = 400
# How an upstream's limits begin, where we have limits of our own; Anthropic's `unified` ones are of an account.
_RATE_LIMIT_PREFIXES = (b"x-ratelimit-",)
_RATE_LIMIT_PREFIXES_ANTHROPIC = (b"x-ratelimit-", b"anthropic-ratelimit-requests-", b"anthropic-ratelimit-tokens-")
_RATE_LIMIT_NAMES = tuple(
    tuple(b"x-ratelimit-%b-%b" % (part, what) for part in (b"limit", b"remaining", b"reset"))
    for what in (b"requests", b"tokens")
)
_RATE_LIMIT_NAMES_ANTHROPIC = tuple(
    tuple(b"anthropic-ratelimit-%b-%b" % (what, part) for part in (b"limit", b"remaining", b"reset"))
    for what in (b"requests", b"tokens")
)
_REMAINING_DIGITS_MAX = 18
_RATE_LIMIT_LINES = {
    what: b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
    % (what, what, what)
    for what in (b"requests", b"tokens")
}
_STREAM_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


def response_lines(call: Call, reply: Reply, *, stream: bool) -> bytes:
    """All headers of an answer but those about its framing, each ended by CRLF.

    stream: the cost is not known yet and comes as a closing comment instead.
    """
    limited = call.ratelimit_requests is not None or call.ratelimit_tokens is not None
    headers = _with_limits(call, reply.headers) if limited else header_lines(reply.headers)
    if call.quota_warning:
        headers += b"x-heph-quota-warning: %b\r\n" % _header_safe(call.quota_warning)
    running = stream and call.cache in _UPSTREAM  # its record is made when it ends
    overhead_us = (time.monotonic_ns() - call.started_ns - call.waited_ns) // 1000
    if overhead_us < 0:
        overhead_us = 0
    return b"%bx-heph-call-id: %b\r\n%b%b%bx-heph-attempts: %d\r\nx-heph-overhead-ms: %d.%03d\r\n%b%b" % (
        headers,
        call.call_id.encode(),
        _served_lines(reply.model, reply.deployment) if reply.deployment else b"",
        _CACHE_LINES[call.cache],
        b"age: %d\r\n" % reply.age_s if reply.age_s >= 0 else b"",
        len(call.attempts) + running,
        overhead_us // 1000,
        overhead_us % 1000,
        _STREAM_LINES
        if stream
        else b"x-heph-cost-usd: %b\r\nx-heph-cost-state: %b\r\n" % (usd(call.cost_nanousd), call.cost_state.encode()),
        _SOURCE_LINES[reply.source] if reply.status >= _ERROR_STATUS_MIN else b"",
    )


def header_lines(headers: Headers, *, without: tuple[bytes, ...] = ()) -> bytes:
    """Headers as they go over the wire, less those whose names begin so. Raises ValueError if one would break out of its line."""
    if not headers:
        return b""
    names, values = zip(*headers, strict=True)
    count, pattern = _pattern(names, without)
    text: bytes = pattern % values
    if text.count(b"\n") != count or text.count(b"\r") != count:
        raise ValueError("a header holds the end of a line")
    return text


@lru_cache(maxsize=256)
def _pattern(names: tuple[bytes, ...], without: tuple[bytes, ...]) -> tuple[int, bytes]:
    """How many headers are shown, and their lines with a place for each value; an upstream nearly always sends the same names."""
    shown = [not name.startswith(without) for name in names]
    places = [
        name.replace(b"%", b"%%") + b": %b\r\n" if show else b"%.0b"  # which takes a value and writes nothing
        for name, show in zip(names, shown, strict=True)
    ]
    return sum(shown), b"".join(places)


def closing_comment(call: Call) -> bytes:
    """The last words of a stream before `[DONE]`: what it cost and how well that is known. SSE readers skip comments."""
    return b": x-heph-cost-usd=%b x-heph-cost-state=%b\n\n" % (usd(call.cost_nanousd), call.cost_state.encode())


def usd(nanousd: int) -> bytes:
    """Nano-USD as a decimal number of USD, exact."""
    return b"%d.%09d" % divmod(nanousd, NANOUSD_PER_USD)


def _with_limits(call: Call, headers: Headers) -> bytes:
    """An upstream's headers and our limits, in the words of the client's protocol: of two limits of a kind the one with less left, ours if equal."""
    anthropic = protocol_of(call.operation, call.headers) is Protocol.ANTHROPIC
    shown = _rate_limit_anthropic if anthropic else _rate_limit
    requests, tokens = call.ratelimit_requests, call.ratelimit_tokens
    lines = header_lines(headers, without=_RATE_LIMIT_PREFIXES_ANTHROPIC if anthropic else _RATE_LIMIT_PREFIXES)
    left_out = len(headers) - lines.count(b"\n")
    if left_out:  # the upstream has limits, too
        told = dict(headers)
        count = len(told)
        of_requests, of_tokens = _RATE_LIMIT_NAMES_ANTHROPIC if anthropic else _RATE_LIMIT_NAMES
        requests = _if_tighter(requests, told, of_requests)
        tokens = _if_tighter(tokens, told, of_tokens)
        if count - len(told) != left_out:  # something of it is to be told
            foreign = _RATE_LIMIT_PREFIXES if anthropic else ()
            lines = header_lines([header for header in headers if header[0] in told], without=foreign)
    return lines + shown(b"requests", requests) + shown(b"tokens", tokens)


def _if_tighter(ours: RateLimit | None, told: dict[bytes, bytes], theirs: tuple[bytes, ...]) -> RateLimit | None:
    """Our limit, and the upstream's is taken out of what is told; None where we have none, or the upstream's has less left."""
    if ours is None:
        return None
    left = told.get(theirs[1], b"")
    if left.isdigit() and len(left) <= _REMAINING_DIGITS_MAX and int(left) < ours[1]:
        return None
    for name in theirs:
        told.pop(name, None)
    return ours


def _rate_limit(what: bytes, limit: RateLimit | None) -> bytes:
    """The three headers that OpenAI's clients look for."""
    if limit is None:
        return b""
    most, remaining, reset_s = limit
    return _RATE_LIMIT_LINES[what] % (most, remaining, _duration(reset_s))


def _rate_limit_anthropic(what: bytes, limit: RateLimit | None) -> bytes:
    """The three headers that Anthropic's clients look for; the reset is a moment, as RFC 3339 writes it."""
    if limit is None:
        return b""
    most, remaining, reset_s = limit
    resets = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + reset_s + 1.0)).encode()  # rounded up
    return (
        b"anthropic-ratelimit-%b-limit: %d\r\nanthropic-ratelimit-%b-remaining: %d\r\nanthropic-ratelimit-%b-reset: %b\r\n"
        % (what, most, what, remaining, what, resets)
    )


@lru_cache(maxsize=1024)
def _served_lines(model: str, deployment: str) -> bytes:
    """Who served; names from the catalog, so there are few."""
    return b"x-heph-model: %b\r\nx-heph-deployment: %b\r\n" % (_header_safe(model), _header_safe(deployment))


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: `12ms`, `7s`, `6m0s`."""
    if seconds < 1.0:
        return b"%dms" % (seconds * 1000 + 0.5) if seconds > 0.0 else b"0ms"
    minutes, rest = divmod(round(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest


def _header_safe(name: str) -> bytes:
    """A name from the catalog as a header's value; what a header cannot carry becomes a question mark."""
    return name.encode("ascii", "replace") if name.isprintable() else b"?"

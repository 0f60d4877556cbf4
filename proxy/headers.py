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
_RATE_LIMIT_NAMES = tuple(
    tuple(b"x-ratelimit-%b-%b" % (part, what) for part in (b"limit", b"remaining", b"reset"))
    for what in (b"requests", b"tokens")
)
_RATE_LIMIT_NAMES_ANTHROPIC = tuple(
    tuple(b"anthropic-ratelimit-%b-%b" % (what, part) for part in (b"limit", b"remaining", b"reset"))
    for what in (b"requests", b"tokens")
)
# What is left out of an upstream's headers, by the client's protocol and by whose limits of requests and tokens are shown: OpenAI's for
# Anthropic's clients, and those of each kind where ours is shown. Other kinds than these stay, as Anthropic's `unified` ones, which are of an account.
_THEIRS = {
    (anthropic, requests, tokens): (
        *((b"x-ratelimit-",) if anthropic else ()),
        *(names[0] if requests else ()),
        *(names[1] if tokens else ()),
    )
    for anthropic, names in ((False, _RATE_LIMIT_NAMES), (True, _RATE_LIMIT_NAMES_ANTHROPIC))
    for requests in (False, True)
    for tokens in (False, True)
}
_REMAINING_DIGITS_MAX = 18
_BROKEN_LINE = "a header holds the end of a line"
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
    """Headers as they go over the wire, less those named, or beginning so where that ends in `-`. Raises ValueError if one would break out of its line."""
    if not headers:
        return b""
    names, values = zip(*headers, strict=True)
    return _lines(names, values, without)


def _lines(names: tuple[bytes, ...], values: tuple[bytes, ...], without: tuple[bytes, ...]) -> bytes:
    said = b"".join(values)
    if (
        b"\n" in said or b"\r" in said
    ):  # a byte that is not there is missed far sooner than those that are there are counted
        raise ValueError(_BROKEN_LINE)
    text: bytes = _pattern(names, without) % values
    return text


@lru_cache(maxsize=256)
def _pattern(names: tuple[bytes, ...], without: tuple[bytes, ...]) -> bytes:
    """Headers' lines with a place for each value; an upstream nearly always sends the same names."""
    if any(b"\n" in name or b"\r" in name for name in names):
        raise ValueError(_BROKEN_LINE)
    beginnings = tuple([name for name in without if name.endswith(b"-")])
    shown = [name not in without and not name.startswith(beginnings) for name in names]
    places = [
        name.replace(b"%", b"%%") + b": %b\r\n" if show else b"%.0b"  # which takes a value and writes nothing
        for name, show in zip(names, shown, strict=True)
    ]
    return b"".join(places)


def closing_comment(call: Call) -> bytes:
    """The last words of a stream before `[DONE]`: what it cost and how well that is known. SSE readers skip comments."""
    return b": x-heph-cost-usd=%b x-heph-cost-state=%b\n\n" % (usd(call.cost_nanousd), call.cost_state.encode())


def usd(nanousd: int) -> bytes:
    """Nano-USD as a decimal number of USD, exact."""
    return b"%d.%09d" % divmod(nanousd, NANOUSD_PER_USD)


def _with_limits(call: Call, headers: Headers) -> bytes:
    """An upstream's headers and our limits, in the words of the client's protocol: of two limits of a kind the one with less left, ours if equal."""
    anthropic = protocol_of(call.operation, call.headers) is Protocol.ANTHROPIC
    requests, tokens = call.ratelimit_requests, call.ratelimit_tokens
    lines = b""
    if headers:
        names, values = zip(*headers, strict=True)
        of_requests, of_tokens = _places_of_left(names, anthropic=anthropic)
        if requests is not None and of_requests >= 0 and _is_less(values[of_requests], requests[1]):
            requests = None
        if tokens is not None and of_tokens >= 0 and _is_less(values[of_tokens], tokens[1]):
            tokens = None
        lines = _lines(names, values, _THEIRS[anthropic, requests is not None, tokens is not None])
    shown = _rate_limit_anthropic if anthropic else _rate_limit
    if requests is not None:
        lines += shown(b"requests", requests)
    if tokens is not None:
        lines += shown(b"tokens", tokens)
    return lines


def _is_less(theirs: bytes, ours: int) -> bool:
    """Whether an upstream has less left than we; what cannot be read decides nothing."""
    return theirs.isdigit() and len(theirs) <= _REMAINING_DIGITS_MAX and int(theirs) < ours


@lru_cache(maxsize=256)
def _places_of_left(names: tuple[bytes, ...], *, anthropic: bool) -> tuple[int, int]:
    """Which headers say what the upstream has left of requests and of tokens; -1: none does. Of equal names the last."""
    last = {name: place for place, name in enumerate(names)}
    requests, tokens = _RATE_LIMIT_NAMES_ANTHROPIC if anthropic else _RATE_LIMIT_NAMES
    return last.get(requests[1], -1), last.get(tokens[1], -1)


def _rate_limit(what: bytes, limit: RateLimit) -> bytes:
    """The three headers that OpenAI's clients look for."""
    most, remaining, reset_s = limit
    return _RATE_LIMIT_LINES[what] % (most, remaining, _duration(reset_s))


def _rate_limit_anthropic(what: bytes, limit: RateLimit) -> bytes:
    """The three headers that Anthropic's clients look for; the reset is a moment, as RFC 3339 writes it."""
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

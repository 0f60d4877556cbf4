"""What a client asks of the cache: the standard `Cache-Control` request header, and `x-heph-cache-ttl`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

SECONDS_MAX = 2**31


class CacheControl(msgspec.Struct, frozen=True):
    """The directives of one request that we honour.

    no_store: neither look nor keep. no_cache: do not look, but keep the fresh answer. max_age_s: no stored answer older than
    this. ttl_s: keep the answer no longer than this; it can shorten the operator's policy, never lengthen it.
    """

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None
    ttl_s: int | None = None


PLAIN = CacheControl()


def read_cache_control(headers: Mapping[bytes, bytes]) -> CacheControl:
    """The directives of a request's headers; what is unknown or malformed is ignored, as RFC 9111 wants it."""
    directives = headers.get(b"cache-control")
    ttl = headers.get(b"x-heph-cache-ttl")
    if directives is None and ttl is None:
        return PLAIN
    no_store = no_cache = only_if_cached = False
    max_age_s: int | None = None
    for directive in (directives or b"").lower().split(b","):
        name, _, value = directive.strip().partition(b"=")
        if name == b"no-store":
            no_store = True
        elif name == b"no-cache":
            no_cache = True
        elif name == b"only-if-cached":
            only_if_cached = True
        elif name == b"max-age":
            max_age_s = _seconds(value)
    if max_age_s == 0:
        no_cache = True
    return CacheControl(
        no_store=no_store, no_cache=no_cache, only_if_cached=only_if_cached, max_age_s=max_age_s, ttl_s=_seconds(ttl)
    )


def _seconds(value: bytes | None) -> int | None:
    """Whole seconds from a header, quoted or not; None if it is not a number."""
    digits = (value or b"").strip().strip(b'"')
    if not digits.isdigit() or len(digits) > 20:
        return None
    return min(int(digits), SECONDS_MAX)

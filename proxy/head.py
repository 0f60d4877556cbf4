"""The headers of a request as they are looked up: names in lower case, and in one piece what was said in several lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

LISTS = frozenset((b"anthropic-beta", b"openai-beta"))
"""Headers that hold lists and go on to an upstream; clients also write their parts in lines of their own."""
_FORWARDED_FOR = b"x-forwarded-for"
_UNKNOWN = b"unknown"  # nobody's address
_LINES = {name: re.compile(rb"^%b:([^\r\n]*)\r?$" % re.escape(name), re.IGNORECASE | re.MULTILINE) for name in LISTS}


def by_name(raw: Mapping[bytes, bytes], *, remember: bool) -> dict[bytes, bytes]:
    """Headers by their names in lower case; of equal names the last, which a load balancer of ours has added.

    An address in two spellings is none: nobody knows which line is the load balancer's. remember: the names are few enough to be kept for
    the next request, which nearly always has the same ones.
    """
    names = _lowered(tuple(raw)) if remember else tuple([name.lower() for name in raw])
    headers = dict(zip(names, raw.values(), strict=True))
    if len(headers) != len(raw) and sum(name.lower() == _FORWARDED_FOR for name in raw) > 1:
        headers[_FORWARDED_FOR] = _UNKNOWN
    return headers


def whole_list(name: bytes, head: bytes, *, last: bytes) -> bytes:
    """All parts of one of LISTS, in their order (RFC 9110, section 5.3). head: of the request, as it came, perhaps with more behind it.

    last: the value of its last line, for a head that is not all there.
    """
    parts = [value.strip(b" \t") for value in _LINES[name].findall(head.partition(b"\r\n\r\n")[0])]
    return b", ".join(parts) if len(parts) > 1 else last


@lru_cache(maxsize=256)
def _lowered(names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple([name.lower() for name in names])

"""How long an upstream asks us to wait, in whichever way it says so, and the same in the words that every client reads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from proxy.call import Headers

ASKED_S_MAX = 86_400.0  # nobody waits for longer, so it is not said either
_DIGITS_MAX = 4  # of a number of seconds that is surely within it
_Now = Callable[[], float]


def asked_s(headers: Headers, *, now_s: _Now = time.time) -> float:
    """Seconds that the upstream wants us to wait; 0.0 if it does not say, or nothing that makes sense.

    Its milliseconds come first, as with the vendors' clients.
    """
    said = said_ms = b""
    for name, value in headers:
        if name == b"retry-after":
            said = said or value
        elif name == b"retry-after-ms":
            said_ms = said_ms or value
    found = None if not said_ms else _number(said_ms)
    return found / 1000.0 if found is not None else seconds_of(said, now_s=now_s) or 0.0


def seconds_of(said: bytes, *, now_s: _Now = time.time) -> float | None:
    """What a `retry-after` says, a number or a date, within bounds; None: it makes no sense."""
    found = _number(said)
    if found is None:
        try:
            found = parsedate_to_datetime(said.decode("latin-1")).timestamp() - now_s()
        except (ValueError, OverflowError):  # a year of twelve digits is the latter
            return None
    return min(max(found, 0.0), ASKED_S_MAX)


def with_whole_seconds(headers: Headers, *, now_s: _Now = time.time) -> Headers:
    """The headers with `retry-after` as every client can read it: whole seconds, rounded up, also where it came as a date."""
    said = next((value for name, value in headers if name == b"retry-after"), b"")
    if not said or (said.isdigit() and len(said) <= _DIGITS_MAX):
        return headers
    rest = [header for header in headers if header[0] != b"retry-after"]
    wait_s = seconds_of(said, now_s=now_s)
    return rest if wait_s is None else [*rest, (b"retry-after", b"%d" % math.ceil(wait_s))]


def _number(said: bytes) -> float | None:
    """A number as it stands there, within bounds; None: none, or one that no wait can have, as `nan`."""
    try:
        found = float(said)
    except ValueError:
        return None
    return min(max(found, 0.0), ASKED_S_MAX * 1000.0) if math.isfinite(found) else None

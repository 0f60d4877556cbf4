"""What people write for numbers, durations, sizes and amounts, read exactly; every function gives None for what it cannot read."""

from __future__ import annotations

import re
from decimal import Context, Decimal

_INTEGER = re.compile(r"[+-]?[0-9][0-9_]{0,24}\Z")
_NUMBER = re.compile(r"[+-]?(?:[0-9][0-9_]{0,24}(?:\.[0-9_]{0,24})?|\.[0-9]{1,24})(?:[eE][+-]?[0-9]{1,2})?\Z")
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s?(ms|s|m|h|d|w)\Z")
_DURATION_S = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86_400),
    "w": Decimal(604_800),
}
_SIZE = re.compile(r"([0-9]{1,15})\s?(B|KiB|MiB|GiB|TiB)\Z")
_SIZE_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_EXACT = Context(prec=200)  # more digits than the pattern admits: nothing is rounded on the way


def integer(text: str) -> int | None:
    """A whole number in decimal; `1_000` is one, `010` is ten, `1:30` is none."""
    return int(text.replace("_", "")) if _INTEGER.match(text) else None


def number(text: str) -> float | None:
    """A finite number in decimal."""
    return float(text.replace("_", "")) if _NUMBER.match(text) else None


def duration_s(text: str) -> float | None:
    """Seconds of "250ms", "30s", "5m", "1.5h", "2d", "1w"."""
    if not (match := _DURATION.match(text)):
        return None
    return float(Decimal(match[1]) * _DURATION_S[match[2]])


def size_bytes(text: str) -> int | None:
    """Bytes of "512B", "64KiB", "1GiB"; only the units that mean one thing."""
    if not (match := _SIZE.match(text)):
        return None
    return int(match[1]) * _SIZE_BYTES[match[2]]


def decimal_units(text: str, places: int) -> int | None:
    """A decimal number as an integer of 10**-places, exactly; None when it is no number or has more places than that."""
    if not _NUMBER.match(text):
        return None
    scaled = Decimal(text.replace("_", "")).scaleb(places, _EXACT)
    return int(scaled) if scaled == scaled.to_integral_value() else None

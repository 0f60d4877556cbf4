"""Numbers and moments as people read them. Pure; every template uses these and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from controlplane.clock import US_PER_S
from controlplane.contract.pricing import NANOUSD_PER_USD

NOTHING = "–"
_NAME_CHARS_MAX = 80
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_US = 1000
_STEPS_S = ((86_400, "d"), (3_600, "h"), (60, "min"))


def usd(nanousd: int) -> str:
    """An amount with as many decimals as its size deserves, rounded to nearest; small amounts never read as zero."""
    amount = abs(nanousd)
    if amount == 0:
        return "$0.00"
    decimals = 2
    while decimals < 9 and amount * 10 ** (decimals - 2) < NANOUSD_PER_USD:
        decimals += 1
    unit = 10 ** (9 - decimals)
    rounded = (amount + unit // 2) // unit
    whole, rest = divmod(rounded, 10**decimals)
    return f"{'-' if nanousd < 0 else ''}${whole:,}.{rest:0{decimals}d}"


def duration(us: int) -> str:
    """A latency: milliseconds below ten seconds, else seconds; nothing measured is a dash."""
    if us <= 0:
        return NOTHING
    if us < 10 * _MS_US:
        return f"{us / _MS_US:.1f} ms"
    if us < US_PER_S:
        return f"{us / _MS_US:.0f} ms"
    return f"{us / US_PER_S:.2f} s"


def span(us: int) -> str:
    """A stretch of time in its largest fitting unit, with the next smaller one: `2 min 5 s`."""
    seconds = max(0, us) // US_PER_S
    for length, unit in _STEPS_S:
        if seconds >= length:
            smaller = {"d": (3_600, "h"), "h": (60, "min"), "min": (1, "s")}[unit]
            rest = seconds % length // smaller[0]
            return f"{seconds // length} {unit}" + (f" {rest} {smaller[1]}" if rest else "")
    return f"{seconds} s"


def ago(us: int, now_us: int) -> str:
    """How long ago a moment was."""
    return "now" if now_us - us < US_PER_S else f"{span(now_us - us)} ago"


def percent(ratio: float | None) -> str:
    """A share, cut and not rounded, so that only everything is 100 % and only nothing is 0 %."""
    if ratio is None:
        return NOTHING
    if ratio <= 0 or ratio >= 1:
        return f"{ratio * 100:.0f} %"
    cut = int(ratio * 10_000) / 100
    return f"{cut:.2f} %" if cut > 0 else "< 0.01 %"


def rate(per_s: float) -> str:
    """A rate per second with two or three digits."""
    return f"{per_s:.2f}" if per_s < 10 else f"{per_s:,.0f}"


def size(count: int) -> str:
    """Bytes in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def name(text: str) -> str:
    """A name from outside, cut to a length that a page can bear; control characters become visible."""
    visible = "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: _NAME_CHARS_MAX + 1]
    )
    return visible if len(visible) <= _NAME_CHARS_MAX else visible[: _NAME_CHARS_MAX - 1] + "…"


def time_of_day(us: int) -> str:
    """Hours, minutes and seconds, UTC."""
    return _moment(us).strftime("%H:%M:%S")


def moment(us: int) -> str:
    """Date and time to the second, UTC."""
    return _moment(us).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_time(us: int) -> str:
    """A moment for a `datetime` attribute."""
    return _moment(us).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)

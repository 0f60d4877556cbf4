"""When a window begins and ends: calendar windows, whose days and months follow a time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from controlplane.contract.snapshot import Window

NEVER_US = 2**63 - 1
WINDOWS = tuple(Window)
KEPT = frozenset((Window.HOUR, Window.DAY, Window.MONTH))  # kinds of which one ended window is kept

_US = 1_000_000
_MINUTE_US = 60 * _US
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US
CLOCK_STEP_US = _MINUTE_US  # a clock that was put back by more than this goes back to earlier windows


def window_bounds(window: Window, at_us: int, timezone: str = "UTC") -> tuple[int, int]:
    """Start (included) and end (excluded) of the window that holds a moment, in Unix microseconds.

    timezone: an IANA name; its midnights begin days and months, and a day in which its clocks change is shorter or longer. Minutes and
    hours are the same everywhere: those of UTC.
    Raises ZoneInfoNotFoundError for a zone that this machine does not know.
    """
    match window:
        case Window.TOTAL:
            return 0, NEVER_US
        case Window.MINUTE:
            length_us = _MINUTE_US
        case Window.HOUR:
            length_us = _HOUR_US
        case Window.DAY if timezone == "UTC":
            length_us = _DAY_US
        case _:
            return _by_calendar(window, at_us, zone_of(timezone))
    start_us = at_us - at_us % length_us
    return start_us, start_us + length_us


@lru_cache(maxsize=1024)
def zone_of(timezone: str) -> tzinfo:
    """A time zone by its name. Raises ZoneInfoNotFoundError, or ValueError for what is no name."""
    return UTC if timezone == "UTC" else ZoneInfo(timezone)


def _by_calendar(window: Window, at_us: int, zone: tzinfo) -> tuple[int, int]:
    day = datetime.fromtimestamp(at_us // _US, zone).date()
    first = day if window is Window.DAY else day.replace(day=1)
    following = _following(window, first)
    end_us = _midnight_us(following, zone)
    if at_us >= end_us:  # clocks were put back over midnight: the day that has begun goes on
        first, end_us = following, _midnight_us(_following(window, following), zone)
    return _midnight_us(first, zone), end_us


def _following(window: Window, first: date) -> date:
    """The first day of the next window. first: of a window."""
    if window is Window.DAY:
        return first + timedelta(days=1)
    return date(first.year + first.month // 12, first.month % 12 + 1, 1)


def _midnight_us(day: date, zone: tzinfo) -> int:
    """The first moment of a day. Where clocks skip midnight it is the skip; where they repeat it, the first of the two."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * _US

"""Tests of calendar windows in time zones: they tile time, and begin at local midnights."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.snapshot import Window
from proxy.quotas.windows import window_bounds, zone_of

ZONES = (
    "UTC", "America/Sao_Paulo", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/Havana", "Pacific/Apia",
    "Africa/Casablanca", "America/St_Johns",
)  # fmt: skip
MOMENTS = st.integers(0, 4_000_000_000_000_000)  # until the year 2096
HOUR_US = 3_600_000_000


def _us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("window", "timezone", "at", "start", "end"),
    [
        # plain days and months three hours behind UTC
        (Window.DAY, "America/Sao_Paulo", "2026-07-01T02:59:59", "2026-06-30T03:00:00", "2026-07-01T03:00:00"),
        (Window.MONTH, "America/Sao_Paulo", "2026-07-01T02:59:59", "2026-06-01T03:00:00", "2026-07-01T03:00:00"),
        # Berlin's day of 23 hours, and its month that begins in winter and ends in summer
        (Window.DAY, "Europe/Berlin", "2026-03-29T12:00:00", "2026-03-28T23:00:00", "2026-03-29T22:00:00"),
        (Window.MONTH, "Europe/Berlin", "2026-03-29T12:00:00", "2026-02-28T23:00:00", "2026-03-31T22:00:00"),
        # and its day of 25 hours
        (Window.DAY, "Europe/Berlin", "2026-10-25T12:00:00", "2026-10-24T22:00:00", "2026-10-25T23:00:00"),
        # Sao Paulo's clocks skipped midnight: its day began at one o'clock
        (Window.DAY, "America/Sao_Paulo", "2018-11-04T12:00:00", "2018-11-04T03:00:00", "2018-11-05T02:00:00"),
        # Havana repeats midnight: its day begins at the first of the two
        (Window.DAY, "America/Havana", "2026-11-01T12:00:00", "2026-11-01T04:00:00", "2026-11-02T05:00:00"),
        # St. John's went back to the day before a minute after midnight: the day that had begun goes on
        (Window.DAY, "America/St_Johns", "2010-11-07T03:00:00", "2010-11-07T02:30:00", "2010-11-08T03:30:00"),
        # minutes and hours are everybody's
        (Window.HOUR, "Asia/Kolkata", "2026-07-01T02:59:59", "2026-07-01T02:00:00", "2026-07-01T03:00:00"),
        # the turn of a year
        (Window.MONTH, "Asia/Kolkata", "2026-12-31T18:30:00", "2026-12-31T18:30:00", "2027-01-31T18:30:00"),
    ],
)
def test_days_and_months_begin_at_local_midnight(window: Window, timezone: str, at: str, start: str, end: str) -> None:
    """A window is what a calendar on the wall of that place says, also where its clocks change."""
    assert (_us(start), _us(end)) == window_bounds(window, _us(at), timezone)


@given(st.sampled_from(Window), st.sampled_from(ZONES), MOMENTS)
def test_windows_tile_time_in_every_zone(window: Window, timezone: str, at_us: int) -> None:
    """Each moment is in exactly one window of a kind: the next begins where this one ends."""
    start_us, end_us = window_bounds(window, at_us, timezone)
    assert start_us <= at_us < end_us
    if window is not Window.TOTAL:
        assert (start_us, end_us) == window_bounds(window, end_us - 1, timezone)
        assert (start_us, end_us) == window_bounds(window, start_us, timezone)
        assert end_us == window_bounds(window, end_us, timezone)[0]


@given(st.sampled_from(ZONES), MOMENTS)
def test_a_day_is_one_date(timezone: str, at_us: int) -> None:
    """The first and the last second of a day have the same local date, and the second after it another."""
    start_us, end_us = window_bounds(Window.DAY, at_us, timezone)
    zone = ZoneInfo(timezone)
    first, last, next_ = (
        datetime.fromtimestamp(us // 1_000_000, zone).date() for us in (start_us, end_us - 1_000_000, end_us)
    )
    assert first == last < next_
    assert 22 * HOUR_US <= end_us - start_us <= 26 * HOUR_US


def test_a_zone_that_is_not_there_is_an_error() -> None:
    """No machine guesses what a name means."""
    with pytest.raises(ZoneInfoNotFoundError):
        zone_of("Atlantis/Poseidonis")

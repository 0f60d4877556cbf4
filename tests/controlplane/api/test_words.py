"""Numbers and moments as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.api import words
from controlplane.clock import US_PER_S

MINUTE_US = 60 * US_PER_S


@pytest.mark.parametrize(
    ("nanousd", "expected"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_234, "$0.00000123"),
        (12_345_678, "$0.0123"),
        (999_999_999, "$1.000"),
        (1_000_000_000, "$1.00"),
        (1_234_567_890_123, "$1,234.57"),
        (-1_500_000_000, "-$1.50"),
    ],
)
def test_money_reads_with_three_digits_at_least(nanousd: int, expected: str) -> None:
    """Amounts are rounded to what their size deserves."""
    assert expected == words.usd(nanousd)


@given(st.integers(min_value=1, max_value=10**18))
def test_money_is_never_far_off_and_never_zero(nanousd: int) -> None:
    """What is shown differs from the amount by less than a hundredth of it, or half a cent of large ones, and shows a digit."""
    shown = Decimal(words.usd(nanousd).replace("$", "").replace(",", ""))
    exact = Decimal(nanousd) / 10**9
    assert 0 < shown
    assert abs(shown - exact) <= max(exact / 100, Decimal("1e-9"))


@pytest.mark.parametrize(
    ("us", "expected"),
    [(0, "–"), (-5, "–"), (412, "0.4 ms"), (9_990, "10.0 ms"), (812_400, "812 ms"), (2_410_000, "2.41 s")],
)
def test_latencies_have_a_unit(us: int, expected: str) -> None:
    """Milliseconds below a second, then seconds; nothing measured is a dash."""
    assert expected == words.duration(us)


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (59 * US_PER_S, "59 s"),
        (MINUTE_US, "1 min"),
        (2 * MINUTE_US + 5 * US_PER_S, "2 min 5 s"),
        (61 * MINUTE_US, "1 h 1 min"),
        (25 * 60 * MINUTE_US, "1 d 1 h"),
    ],
)
def test_stretches_of_time_have_two_units_at_most(us: int, expected: str) -> None:
    """The largest fitting unit and the next smaller one."""
    assert expected == words.span(us)


def test_a_moment_just_now_is_now() -> None:
    """Below a second, and for clocks that differ, it is now."""
    assert "now" == words.ago(1_000_000, 1_500_000)
    assert "now" == words.ago(2_000_000, 1_000_000)
    assert "3 s ago" == words.ago(0, 3 * US_PER_S)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (None, "–"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.99999, "99.99 %"),
        (0.5, "50.00 %"),
        (0.00001, "< 0.01 %"),
        (0.9995, "99.95 %"),
    ],
)
def test_only_everything_is_a_hundred_percent(ratio: float | None, expected: str) -> None:
    """Shares are cut, so that one failure in many still shows."""
    assert expected == words.percent(ratio)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12_400, "12.1 KiB"), (5 * 2**20, "5.0 MiB"), (2**42, "4.0 TiB")],
)
def test_sizes_are_binary(count: int, expected: str) -> None:
    """Bytes in steps of 1024."""
    assert expected == words.size(count)


@pytest.mark.parametrize(("per_s", "expected"), [(0.0, "0.00"), (0.914, "0.91"), (12.6, "13"), (12_345.0, "12,345")])
def test_rates_have_few_digits(per_s: float, expected: str) -> None:
    """Two decimals for small rates, none for large ones."""
    assert expected == words.rate(per_s)


def test_names_are_cut_and_made_visible() -> None:
    """Long names end in an ellipsis, control and direction characters cannot hide anything."""
    assert 80 == len(words.name("x" * 1000))
    assert words.name("x" * 1000).endswith("…")
    assert "a\N{REPLACEMENT CHARACTER}b" == words.name("a\N{RIGHT-TO-LEFT OVERRIDE}b")
    assert "a\N{REPLACEMENT CHARACTER}b" == words.name("a\nb")


def test_moments_are_utc() -> None:
    """Times are written in UTC."""
    us = 1_800_000_000 * US_PER_S
    assert "2027-01-15 08:00:00 UTC" == words.moment(us)
    assert "08:00:00" == words.time_of_day(us)
    assert "2027-01-15T08:00:00Z" == words.machine_time(us)

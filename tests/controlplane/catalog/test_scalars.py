"""Numbers, durations, sizes and amounts are read exactly or not at all."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog.scalars import decimal_units, duration_s, integer, number, size_bytes


@given(st.decimals(min_value=0, max_value=10**9, places=9, allow_nan=False, allow_infinity=False))
def test_amounts_are_exact(amount: Decimal) -> None:
    """Whatever decimal is written, in plain or scientific notation, its nano-units are exact."""
    assert int(amount * 10**9) == decimal_units(format(amount, "f"), 9)
    assert int(amount * 10**9) == decimal_units(format(amount, ".24E").replace("E+", "e"), 9)


@given(st.integers(min_value=0, max_value=10**15))
def test_units_written_out_come_back(units: int) -> None:
    """An integer of nano-units written as a decimal is read as the same integer; no float comes in between."""
    assert units == decimal_units(f"{units // 10**9}.{units % 10**9:09d}", 9)


@pytest.mark.parametrize(
    "text",
    [
        "0.0000000001",
        "1e-10",
        "1.5e-10",
        "",
        ".",
        "1,5",
        "$1",
        "1 000",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1e400",
        "١",
        "1e9999999",
    ],
)
def test_what_is_no_amount(text: str) -> None:
    """Too many places, foreign notations, foreign digits and absurd exponents are refused, not rounded."""
    assert decimal_units(text, 9) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1_000", 1000),
        ("010", 10),
        ("+5", 5),
        ("-5", -5),
        ("1:30", None),
        ("0x1f", None),
        ("1.0", None),
        ("1\n", None),
        ("", None),
    ],
)
def test_whole_numbers(text: str, value: int | None) -> None:
    """Decimal digits with optional underscores; none of YAML 1.1's octal, hexadecimal and base-60 surprises."""
    assert value == integer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5", 1.5), ("2", 2.0), ("1e3", 1000.0), (".5", 0.5), (".inf", None), (".nan", None), ("1.5.2", None)],
)
def test_numbers(text: str, value: float | None) -> None:
    """Finite decimal numbers only."""
    assert value == number(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1.5 h", 5400.0),
        ("2d", 172_800.0),
        ("1w", 604_800.0),
        ("5 min", None),
        ("-5s", None),
        ("5", None),
    ],
)
def test_durations(text: str, value: float | None) -> None:
    """A number and one of six units."""
    assert value == duration_s(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("512B", 512), ("64KiB", 65_536), ("1 GiB", 1 << 30), ("5MB", None), ("1.5MiB", None), ("KiB", None)],
)
def test_sizes(text: str, value: int | None) -> None:
    """A whole number and a binary unit; the ambiguous MB is refused."""
    assert value == size_bytes(text)

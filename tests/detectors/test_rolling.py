"""Trailing windows and their statistics, against the plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.rolling import row_median, trailing, trailing_sum

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=30)


@given(VALUES, st.integers(1, 6), st.integers(1, 4))
def test_a_trailing_window_ends_before_its_point(values: list[float], width: int, lag: int) -> None:
    """Row i holds the values i - lag - width + 1 to i - lag, and NaN before the start."""
    rows = trailing(np.array(values, dtype=np.float64), width=width, lag=lag)
    assert (len(values), width) == rows.shape
    for place in range(len(values)):
        wanted = [values[i] if i >= 0 else float("nan") for i in range(place - lag - width + 1, place - lag + 1)]
        assert np.array_equal(wanted, rows[place], equal_nan=True)


@given(st.lists(VALUES.filter(lambda row: len(row) == 5), max_size=4) | st.just([]), st.integers(0, 5))
def test_the_row_median_is_the_median_of_what_is_known(rows: list[list[float]], valid_min: int) -> None:
    """NaNs are left out; a row with too few values has no median."""
    medians = row_median(np.array(rows, dtype=np.float64).reshape(len(rows), 5), valid_min=valid_min)
    for row, median in zip(rows, medians, strict=True):
        known = [value for value in row if not np.isnan(value)]
        if len(known) >= max(valid_min, 1):
            assert float(np.median(known)) == pytest.approx(median)
        else:
            assert np.isnan(median)


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 6), st.integers(0, 4))
def test_the_trailing_sum_is_the_sum_of_the_window(values: list[int], width: int, lag: int) -> None:
    """Windows that begin before the series hold only what exists."""
    sums = trailing_sum(np.array(values, dtype=np.float64), width=width, lag=lag)
    for place in range(len(values)):
        assert sum(values[max(0, place - lag - width + 1) : max(0, place - lag + 1)]) == sums[place]

"""Durations, shares, rates and thresholds as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.healing.values import Duration, Rate, Share, Threshold, parse_value


@pytest.mark.parametrize(
    ("written", "seconds"), [("250ms", 0.25), ("30s", 30.0), ("1.5m", 90.0), ("2h", 7200.0), ("1d", 86_400.0)]
)
def test_durations_have_units(written: str, seconds: float) -> None:
    """Each unit means what it says."""
    assert seconds == parse_value(Duration, written)


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (Duration, "30"),
        (Duration, 30),
        (Duration, "-5s"),
        (Duration, "5 s"),
        (Duration, "5S"),
        (Duration, None),
        (Duration, True),
        (Share, "101%"),
        (Share, "-1%"),
        (Share, 0.5),
        (Share, "0.5"),
        (Rate, "0/h"),
        (Rate, "6/hour"),
        (Rate, 6),
        (Threshold, "0.95"),
        (Threshold, True),
        (Threshold, "baseline / 2"),
        (Threshold, "baseline * -1"),
        (Threshold, "{{ x }}"),
        (Threshold, []),
    ],
)
def test_other_writings_are_refused(kind: type, written: object) -> None:
    """What is not clearly a value of its kind is an error that shows a good one."""
    with pytest.raises(ValueError, match="write"):
        parse_value(kind, written)


@given(percent=st.integers(0, 100))
def test_shares_are_percent(percent: int) -> None:
    """A share written in percent is a part of one."""
    assert percent / 100 == parse_value(Share, f"{percent}%")


@pytest.mark.parametrize(
    ("written", "baseline", "value"),
    [
        (3, None, 3.0),
        ("98%", None, 0.98),
        ("5s", None, 5.0),
        ("baseline", 2.0, 2.0),
        ("baseline * 1.5", 2.0, 3.0),
        ("baseline - 0.5", 2.0, 1.5),
        ("baseline + 0.5", 2.0, 2.5),
        ("baseline", None, None),
    ],
)
def test_thresholds_are_numbers_or_stand_on_the_baseline(
    written: object, baseline: float | None, value: float | None
) -> None:
    """A threshold gives its number, with the baseline where it needs one."""
    threshold = parse_value(Threshold, written)
    assert isinstance(threshold, Threshold)
    assert value == threshold.value(baseline)


def test_a_rate_is_a_count_per_window() -> None:
    """6/h is six in 3600 seconds."""
    rate = parse_value(Rate, "6/h")
    assert isinstance(rate, Rate)
    assert (6, 3600.0) == (rate.count, rate.window_s)

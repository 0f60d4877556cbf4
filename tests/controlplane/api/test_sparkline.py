"""Charts drawn from plain numbers."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from controlplane.api import sparkline


def _bars(chart: str, name: str) -> list[tuple[float, float, float, float]]:
    return [
        (
            float(shape.get("x", "")),
            float(shape.get("y", "")),
            float(shape.get("width", "")),
            float(shape.get("height", "")),
        )
        for shape in ET.fromstring(chart)
        if shape.get("class") == name
    ]


@given(st.lists(st.tuples(counts := st.integers(min_value=0, max_value=10**12), counts), max_size=1440))
def test_every_chart_is_sound_and_stays_inside(minutes: list[tuple[int, int]]) -> None:
    """Whatever the numbers, the chart parses, no bar leaves its frame, and each minute with calls is seen."""
    chart = sparkline.traffic([calls for calls, _ in minutes], [errors for _, errors in minutes])
    bars = _bars(chart, "calls-bar")
    assert sum(calls > 0 for calls, _ in minutes) == len(bars)
    for x, y, width, height in (*bars, *_bars(chart, "errors-bar")):
        assert 0 <= x <= x + width <= sparkline.WIDTH + 0.5
        assert 0 <= y
        assert 0 < height
        assert abs(y + height - sparkline.HEIGHT) < 0.02


def test_the_highest_minute_is_the_highest_bar() -> None:
    """More calls are drawn higher; a minute without calls has no bar."""
    bars = _bars(sparkline.traffic([0, 10, 5], [0, 0, 0]), "calls-bar")
    assert 2 == len(bars)
    assert bars[0][3] > bars[1][3]
    assert bars[0][0] < bars[1][0]


def test_the_failed_part_is_part_of_its_bar() -> None:
    """Errors are drawn where they were, never higher than the calls they are of."""
    chart = sparkline.traffic([3, 4, 5], [0, 2, 9])
    calls, errors = _bars(chart, "calls-bar"), _bars(chart, "errors-bar")
    assert [calls[1][0], calls[2][0]] == [bar[0] for bar in errors]
    assert errors[0][3] < calls[1][3]
    assert errors[1][3] == calls[2][3]


def test_a_share_is_at_most_the_whole() -> None:
    """A bar is never wider than its frame nor narrower than nothing, also when the whole is nothing."""
    assert 'class="share-part" width="25.0"' in sparkline.share(1, 4)
    assert 'class="share-part" width="100.0"' in sparkline.share(9, 4)
    assert 'class="share-part" width="0.0"' in sparkline.share(1, 0)
    assert 'class="share-part" width="0.0"' in sparkline.share(-1, 4)

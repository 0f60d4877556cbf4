"""Charts drawn from plain numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from controlplane.api import sparkline


@given(st.lists(st.integers(min_value=0, max_value=10**12), max_size=200))
def test_every_chart_is_sound_and_stays_inside(calls: list[int]) -> None:
    """Whatever the numbers, the chart parses and no point leaves its frame."""
    chart = ET.fromstring(sparkline.traffic(calls, [count // 2 for count in calls]))
    for shape in chart:
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", shape.get("points", "")):
            assert 0 <= float(x) <= sparkline.WIDTH
            assert 0 <= float(y) <= sparkline.HEIGHT


def test_the_highest_minute_is_the_highest_point() -> None:
    """More calls are drawn higher; the baseline is nothing."""
    chart = ET.fromstring(sparkline.traffic([0, 10, 5], [0, 0, 0]))
    (line,) = [shape for shape in chart if shape.get("class") == "calls-line"]
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert sparkline.HEIGHT == heights[0]
    assert heights[1] < heights[2] < heights[0]


def test_errors_are_drawn_only_when_there_are_any() -> None:
    """A calm hour has no second line."""
    assert "errors-line" not in sparkline.traffic([3, 4], [0, 0])
    assert "errors-line" in sparkline.traffic([3, 4], [0, 1])


def test_a_share_is_at_most_the_whole() -> None:
    """A bar is never wider than its frame nor narrower than nothing, also when the whole is nothing."""
    assert 'class="share-part" width="25.0"' in sparkline.share(1, 4)
    assert 'class="share-part" width="100.0"' in sparkline.share(9, 4)
    assert 'class="share-part" width="0.0"' in sparkline.share(1, 0)
    assert 'class="share-part" width="0.0"' in sparkline.share(-1, 4)

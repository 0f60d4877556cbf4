"""Charts as SVG, drawn on the server from plain numbers: no script, no style of their own, nothing that needs escaping."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 600
HEIGHT = 120
_TOP_GAP = 6


def traffic(calls: Sequence[int], errors: Sequence[int]) -> str:
    """A bar for each minute, oldest at the left, its failed part at the foot; the caller says in words what is seen."""
    top = max((*calls, 1))
    step = WIDTH / max(1, len(calls))
    width = max(step * 0.8, 0.5)
    bars = "".join(
        _bar("calls", index * step, width, value, top) + _bar("errors", index * step, width, min(failed, value), top)
        for index, (value, failed) in enumerate(zip(calls, errors, strict=True))
    )
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (HEIGHT // 3, HEIGHT * 2 // 3)
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'{grid}{bars}<line class="grid" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/></svg>'
    )


def share(part: int, whole: int) -> str:
    """A thin bar whose filled part is `part` of `whole`."""
    width = 0.0 if whole <= 0 else min(1.0, max(0.0, part / whole)) * 100
    return (
        '<svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect class="share-rest" width="100" height="4"/><rect class="share-part" width="{width:.1f}" height="4"/></svg>'
    )


def _bar(css_class: str, x: float, width: float, value: int, top: int) -> str:
    """One bar from the baseline up; nothing at all for nothing, and never thinner than can be seen."""
    if value <= 0:
        return ""
    height = max(1.5, (HEIGHT - _TOP_GAP) * min(value, top) / top)
    return f'<rect class="{css_class}-bar" x="{x:.2f}" y="{HEIGHT - height:.2f}" width="{width:.2f}" height="{height:.2f}"/>'

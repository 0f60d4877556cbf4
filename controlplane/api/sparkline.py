"""Charts as SVG, drawn on the server from plain numbers: no script, no style of their own, nothing that needs escaping."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 600
HEIGHT = 120
_TOP_GAP = 6


def area(values: Sequence[float], *, top: float, css_class: str) -> str:
    """A filled line through the values as SVG elements, oldest at the left; `top` is the value of the upper edge."""
    if not values:
        return ""
    points = _points(values, top)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    first_x, last_x = points[0][0], points[-1][0]
    return (
        f'<polygon class="{css_class}-area" points="{first_x:.1f},{HEIGHT} {line} {last_x:.1f},{HEIGHT}"/>'
        f'<polyline class="{css_class}-line" points="{line}"/>'
    )


def traffic(calls: Sequence[int], errors: Sequence[int]) -> str:
    """Calls and errors per minute over each other, on one scale; the caller says in words what is seen."""
    top = float(max((*calls, 1)))
    shapes = area([float(value) for value in calls], top=top, css_class="calls")
    if any(errors):
        shapes += area([float(value) for value in errors], top=top, css_class="errors")
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (HEIGHT // 3, HEIGHT * 2 // 3)
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{grid}{shapes}</svg>"
    )


def share(part: int, whole: int) -> str:
    """A thin bar whose filled part is `part` of `whole`."""
    width = 0.0 if whole <= 0 else min(1.0, max(0.0, part / whole)) * 100
    return (
        '<svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect class="share-rest" width="100" height="4"/><rect class="share-part" width="{width:.1f}" height="4"/></svg>'
    )


def _points(values: Sequence[float], top: float) -> list[tuple[float, float]]:
    step = WIDTH / max(1, len(values) - 1)
    scale = (HEIGHT - _TOP_GAP) / top if top > 0 else 0.0
    points = [(index * step, HEIGHT - min(value, top) * scale) for index, value in enumerate(values)]
    return points if len(points) > 1 else [points[0], (float(WIDTH), points[0][1])]

"""The reference lists every metric that there is."""

from __future__ import annotations

import ast
from pathlib import Path

from prometheus_client import CollectorRegistry

import controlplane
from controlplane.app.measures import all_metrics

KINDS = {"Counter", "Gauge", "Histogram"}


def test_every_metric_in_the_code_is_among_all() -> None:
    """A group of metrics that nobody adds to `all_metrics` would be missing from the reference."""
    written = {
        call.args[0].value
        for path in Path(controlplane.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in KINDS
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    there = {family.name for family in all_metrics(CollectorRegistry()).collect()}
    assert len(written) > 60
    assert {str(name).removesuffix("_total") for name in written} == there

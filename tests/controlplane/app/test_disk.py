"""A disk that runs short is a number, a word and a sentence before it is full."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from controlplane.app.disk import DiskWatch
from controlplane.metrics import LoopMetrics
from controlplane.settings import Settings


@pytest.mark.parametrize(("least", "short"), [(0, False), (2**62, True)])
async def test_a_short_disk_is_said_once_and_shown_always(tmp_path: Path, least: int, *, short: bool) -> None:
    """The log hears of a change, the page of the state, Prometheus of the number."""
    registry = CollectorRegistry()
    settings = msgspec.structs.replace(Settings(), data_dir=str(tmp_path), disk_free_bytes_min=least)
    watch = DiskWatch(settings, LoopMetrics(registry))
    with capture_logs() as logged:
        await watch.turn()
        assert short is bool(watch.trouble())
        await watch.turn()
    assert ["disk is short"] * short == [entry["event"] for entry in logged]
    assert (registry.get_sample_value("heph_disk_free_bytes") or 0) > 0

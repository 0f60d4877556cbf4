"""Whom to tell follows the configuration while the process runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from controlplane.alerts.alert import Kind, Notification, Severity
from controlplane.app.telling import Telling
from controlplane.catalog.load import load
from controlplane.clock import ManualClock
from controlplane.journal.journal import Journal
from controlplane.metrics import AlertMetrics
from controlplane.settings import AlertSettings
from tests.controlplane.app.scene import TEXT

NEWS = Notification(
    id="n1",
    type="incident.fired",
    kind=Kind.OPENED,
    severity=Severity.HIGH,
    title="t",
    summary="s",
    occurred_us=1,
    dedup_key="i",
)


@pytest.fixture
def telling(journal: Journal, clock: ManualClock) -> Telling:
    """Nobody to tell yet."""
    return Telling(journal, AlertSettings(), clock=clock, metrics=AlertMetrics(CollectorRegistry()))


async def test_sinks_follow_the_file(telling: Telling, tmp_path: Path) -> None:
    """Before a configuration nobody is told; then each sink that wants an event; a sink that was taken out no more."""
    assert () == telling.router.entries(NEWS)
    path = tmp_path / "hephaestus.yaml"
    path.write_text(
        TEXT
        + """alerts:
  - {name: ops, kind: webhook, url: "https://a.example/hook"}
  - {name: only-runs, kind: webhook, url: "https://b.example/hook", events: [run.*]}
"""
    )
    telling.use(load(path).config)
    (entry,) = telling.router.entries(NEWS)
    assert entry.sink.endswith("ops")
    path.write_text(TEXT)
    telling.use(load(path).config)
    assert () == telling.router.entries(NEWS)
    await telling.aclose()

"""A journal in a fresh file and a clock that only tests move, for everything that the catalog keeps there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from controlplane.clock import ManualClock
from controlplane.journal.journal import Journal
from controlplane.metrics import CatalogMetrics


@pytest.fixture
def clock() -> ManualClock:
    """Time, standing still."""
    return ManualClock()


@pytest.fixture
def journal_url(tmp_path: Path) -> str:
    """Where the journal under test lives."""
    return f"sqlite:///{tmp_path}/journal.db"


@pytest.fixture
def journal(journal_url: str, clock: ManualClock) -> Iterator[Journal]:
    """A fresh journal."""
    journal = Journal.open(journal_url, now_us=clock.now_us)
    yield journal
    journal.close()


@pytest.fixture
def metrics() -> CatalogMetrics:
    """The catalog's metrics, in a registry of their own."""
    return CatalogMetrics(CollectorRegistry())

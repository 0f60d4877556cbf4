"""A journal, a catalog with its publisher, and incidents: what the app joins, each of them real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.clock import ManualClock
from controlplane.journal.journal import Journal
from tests.controlplane.app.scene import Scene


@pytest.fixture
def clock() -> ManualClock:
    """Time, standing still."""
    return ManualClock()


@pytest.fixture
def journal(tmp_path: Path, clock: ManualClock) -> Iterator[Journal]:
    """A fresh journal."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db", now_us=clock.now_us)
    yield journal
    journal.close()


@pytest.fixture
async def scene(tmp_path: Path, journal: Journal, clock: ManualClock) -> Scene:
    """Two upstreams, three deployments, two routes."""
    return await Scene.open(tmp_path, journal, clock)

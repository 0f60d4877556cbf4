"""A world, a journal on its clock, and a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.healing.worker import Healing
from controlplane.journal.journal import Journal
from tests.controlplane.healing.fakes import FakeWorld, make_healing


@pytest.fixture
def world() -> FakeWorld:
    """A world with an outage."""
    return FakeWorld()


@pytest.fixture
def journal(tmp_path: Path, world: FakeWorld) -> Iterator[Journal]:
    """A fresh journal."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db", now_us=world.clock.now_us)
    yield journal
    journal.close()


@pytest.fixture
def healing(world: FakeWorld, journal: Journal) -> Healing:
    """A worker with short times."""
    return make_healing(world, journal)

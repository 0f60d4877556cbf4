"""What tests of several packages share: the one embedded store that a process can open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.store.client import Store
from controlplane.store.migrate import migrate
from controlplane.store.schema import TABLES

MEMORY_DISK = Path("/dev/shm")
MEMORY_DISK_FREE_MIN_BYTES = 4 * 1024**3


def pytest_configure(config: pytest.Config) -> None:
    """Puts temporary folders on the memory disk where there is one: a journal waits for the disk at each append, and tests make thousands."""
    if (
        config.option.basetemp is None
        and MEMORY_DISK.is_dir()
        and shutil.disk_usage(MEMORY_DISK).free > MEMORY_DISK_FREE_MIN_BYTES
    ):
        config.option.basetemp = str(MEMORY_DISK / f"hephaestus-tests-{os.getpid()}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives the memory disk back."""
    folder = config.option.basetemp
    if (
        folder is not None
        and str(folder).startswith(str(MEMORY_DISK / "hephaestus-tests-"))
        and not hasattr(config, "workerinput")
    ):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def opened_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The embedded store of this test process, migrated; an engine can be opened on one path only, so nobody opens another."""
    data_dir = tmp_path_factory.mktemp("store")
    store = Store.open(f"chdb://{data_dir}/telemetry", data_dir=data_dir)
    migrate(store)
    yield store
    store.close()


@pytest.fixture
def store(opened_store: Store) -> Store:
    """The embedded store with every table empty."""
    for table in TABLES:
        opened_store.command(f"TRUNCATE TABLE {table.name}")
    return opened_store

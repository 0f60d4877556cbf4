"""What tests of several packages share: the one embedded store that a process can open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.store.client import Store
from controlplane.store.migrate import migrate
from controlplane.store.schema import TABLES


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

"""The schema in Python says what the migrations make."""

from __future__ import annotations

import pytest

from controlplane.store.client import Store
from controlplane.store.schema import TABLES, Table


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_columns_are_those_of_the_database(store: Store, table: Table) -> None:
    """Every table has the columns that the schema lists, with these types and in this order."""
    found = store.rows(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {t:String} ORDER BY position",
        {"t": table.name},
    )
    assert [(column.name, column.type) for column in table.columns] == [tuple(row) for row in found]


def test_no_table_is_unknown_to_the_schema(store: Store) -> None:
    """The database holds the listed tables, their views and the migrations' own ledger, and no others."""
    found = {str(name) for (name,) in store.rows("SELECT name FROM system.tables WHERE database = currentDatabase()")}
    ours = {table.name for table in TABLES}
    assert found == ours | {"calls_minute_view", "attempts_minute_view", "schema_migrations"}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_is_documented(table: Table) -> None:
    """Each table and each column has a sentence for the reference."""
    assert table.doc
    assert all(column.doc for column in table.columns)

"""Migrations: applied once, repeatable when cut short, refused when code and store do not belong together."""

from __future__ import annotations

import pytest

from controlplane.settings import RetentionSettings
from controlplane.store.client import QueryFailed, Store
from controlplane.store.migrate import Migration, SchemaMismatch, apply_retention, load_migrations, migrate


def test_second_time_does_nothing(store: Store) -> None:
    """A store that is up to date is left as it is."""
    assert migrate(store) == ()


def test_files_are_numbered_and_repeatable() -> None:
    """Every shipped statement may be run again: it creates only what is missing, or says what a view shall be."""
    migrations = load_migrations()
    assert list(range(1, len(migrations) + 1)) == [migration.version for migration in migrations]
    for migration in migrations:
        assert migration.statements
        assert all("IF NOT EXISTS" in statement or " MODIFY QUERY" in statement for statement in migration.statements)


def test_all_statements_can_be_run_twice(store: Store) -> None:
    """A migration that was killed before it was noted is run again from its start without harm."""
    for migration in load_migrations():
        for statement in migration.statements:
            store.command(statement)


def test_newer_store_is_refused(store: Store) -> None:
    """Code that knows fewer migrations than the store has does not touch it."""
    with pytest.raises(SchemaMismatch, match="install a newer version"):
        migrate(store, load_migrations()[:-1])


def test_changed_migration_is_refused(store: Store) -> None:
    """A migration that was edited after it was applied is found by its checksum."""
    first, *rest = load_migrations()
    changed = Migration.parse(first.name, "CREATE TABLE IF NOT EXISTS other (a UInt8) ENGINE = Memory;")
    with pytest.raises(SchemaMismatch, match="was changed after it was applied"):
        migrate(store, [changed, *rest])


def test_killed_migration_is_run_again(store: Store) -> None:
    """What fails in the middle is not noted as applied, and the next start finishes it."""
    known = load_migrations()
    name = f"{len(known) + 1:04}_half.sql"
    sql = "CREATE TABLE IF NOT EXISTS half (a UInt8) ENGINE = Memory;\n"
    broken = Migration.parse(name, sql + "CREATE TABLE IF NOT EXISTS other (a Nonsense) ENGINE = Memory;\n")
    whole = Migration.parse(name, sql + "CREATE TABLE IF NOT EXISTS other (a UInt8) ENGINE = Memory;\n")
    try:
        with pytest.raises(QueryFailed):
            migrate(store, [*known, broken])
        assert migrate(store, [*known, whole]) == (name,)
        assert migrate(store, [*known, whole]) == ()
    finally:
        store.command("DROP TABLE IF EXISTS half")
        store.command("DROP TABLE IF EXISTS other")
        store.command(f"DELETE FROM schema_migrations WHERE version = {len(known) + 1}")


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("-- nothing\n", ()),
        ("SELECT 1;\n-- a; b;\nSELECT 2;\n", ("SELECT 1", "SELECT 2")),
        ("SELECT\n  1;", ("SELECT\n  1",)),
        ("SELECT 1", ("SELECT 1",)),
        ("SELECT ';x';\n", ("SELECT ';x'",)),
    ],
)
def test_statements_end_with_a_line(text: str, statements: tuple[str, ...]) -> None:
    """A semicolon at the end of a line ends a statement; comments are left out."""
    assert statements == Migration.parse("0001_x.sql", text).statements


@pytest.mark.parametrize("name", ["1_x.sql", "0001_x.txt", "0001-x.sql", "0001_.sql"])
def test_badly_named_file_is_refused(name: str) -> None:
    """A file whose name does not say its number is a mistake."""
    with pytest.raises(ValueError, match="not named like a migration"):
        Migration.parse(name, "SELECT 1;")


def test_retention_follows_the_settings(store: Store) -> None:
    """A table's retention is changed when the settings differ from it, and only then."""
    apply_retention(store, RetentionSettings())
    assert apply_retention(store, RetentionSettings(calls_days=45)) == ("calls",)
    assert apply_retention(store, RetentionSettings(calls_days=45)) == ()
    (engine,) = store.rows(
        "SELECT engine_full FROM system.tables WHERE name = 'calls' AND database = currentDatabase()"
    )[0]
    assert "toIntervalDay(45)" in str(engine)
    assert apply_retention(store, RetentionSettings()) == ("calls",)

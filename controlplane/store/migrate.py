"""Brings a store's tables to what this version of the code expects, and keeps their retention as the settings say.

Migrations are numbered SQL files. Each is applied once and remembered with its checksum; each statement in it may be run again, so a
migration that was cut short is simply run again from its start. ClickHouse has no transactions over DDL; this takes their place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib import resources

import msgspec

from controlplane.errors import HephaestusError
from controlplane.settings import RetentionSettings
from controlplane.store.client import Store

_FILE_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations
(version UInt32, name String, checksum String, applied DateTime64(3, 'UTC') DEFAULT now64(3))
ENGINE = ReplacingMergeTree ORDER BY version
"""


class SchemaMismatch(HephaestusError):
    """The store's tables and this version of the code do not belong together."""

    code = "schema_mismatch"
    status = 503


class Migration(msgspec.Struct, frozen=True):
    """One numbered file. statements may each be run again without harm."""

    version: int
    name: str
    checksum: str
    statements: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, sql: str) -> Migration:
        """Reads a file: statements end with a semicolon at the end of a line, `--` begins a comment."""
        match = _FILE_NAME.match(name)
        if match is None:
            raise ValueError(f"{name} is not named like a migration (0001_what_it_does.sql)")
        code = "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--"))
        statements = tuple(part.strip() for part in re.split(r";[ \t]*(?:\n|$)", code) if part.strip())
        return cls(int(match[1]), name, hashlib.sha256(sql.encode()).hexdigest()[:32], statements)


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this version, in order; numbers run from 1 without gaps."""
    folder = resources.files("controlplane.store") / "migrations"
    found = sorted(
        (
            Migration.parse(file.name, file.read_text("utf-8"))
            for file in folder.iterdir()
            if _FILE_NAME.match(file.name)
        ),
        key=lambda migration: migration.version,
    )
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are not numbered 1, 2, 3, ...")
    return tuple(found)


def migrate(store: Store, migrations: Sequence[Migration] | None = None) -> tuple[str, ...]:
    """Applies what is missing and returns the names of what was applied; blocking.

    Raises SchemaMismatch when the store is newer than this code, or was made by migrations that were changed since.
    """
    known = load_migrations() if migrations is None else tuple(migrations)
    store.command(_LEDGER)
    applied = {
        int(str(version)): str(checksum)
        for version, checksum in store.rows("SELECT version, checksum FROM schema_migrations FINAL")
    }
    _check(applied, known)
    done: list[str] = []
    for migration in known:
        if migration.version in applied:
            continue
        for statement in migration.statements:
            store.command(statement)
        store.command(
            "INSERT INTO schema_migrations (version, name, checksum) "
            "SELECT {version:UInt32}, {name:String}, {checksum:String}",
            {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
        )
        done.append(migration.name)
    return tuple(done)


def _check(applied: dict[int, str], known: Sequence[Migration]) -> None:
    newest = max((migration.version for migration in known), default=0)
    if applied and max(applied) > newest:
        raise SchemaMismatch(
            f"the store has migration {max(applied)}, this version knows only {newest}; install a newer version"
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise SchemaMismatch(
                f"{migration.name} was changed after it was applied to this store; write a new migration instead"
            )


def apply_retention(store: Store, retention: RetentionSettings) -> tuple[str, ...]:
    """Changes the tables whose retention differs from the settings, and returns their names; blocking.

    Payloads carry their own retention in each row, from the tenant's policy.
    """
    wanted = {
        "calls": ("started", retention.calls_days),
        "attempts": ("started", retention.attempts_days),
        "calls_minute": ("minute", retention.rollups_days),
        "attempts_minute": ("minute", retention.rollups_days),
        "deployment_status": ("at", retention.status_days),
        "proxy_status": ("at", retention.status_days),
        "incident_events": ("at", retention.events_days),
        "run_events": ("at", retention.events_days),
    }
    engines = {
        str(name): str(engine)
        for name, engine in store.rows("SELECT name, engine_full FROM system.tables WHERE database = currentDatabase()")
    }
    changed: list[str] = []
    for table, (column, days) in wanted.items():
        if f"toDate({column}) + toIntervalDay({days})" in engines[table]:
            continue
        store.command(f"ALTER TABLE {table} MODIFY TTL toDate({column}) + INTERVAL {int(days)} DAY DELETE")
        changed.append(table)
    return tuple(changed)

"""How the journal reaches its database: one engine, set up for many processes writing to one SQLite file."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from controlplane.errors import JournalUnavailable
from controlplane.journal.events import JournalError

WRITES = "journal_writes"  # execution option of a connection that will write: its transaction starts IMMEDIATE


def connect(url: str, *, busy_timeout_s: float) -> Engine:
    """Open the database, make or migrate its tables, and return its engine.

    url: `sqlite:////absolute/path.db` or `sqlite:///relative.db`; the folder must exist. Never on a network file system.
    busy_timeout_s: how long a writer waits for another process's transaction before it fails.
    Raises JournalError for a URL that the journal cannot serve, JournalUnavailable for a file that cannot be opened or is no journal.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise JournalError("`server.journal` is no URL; write sqlite:////absolute/path.db") from None
    if parsed.get_backend_name() == "postgresql":
        raise JournalError("a journal in PostgreSQL is not supported yet; write sqlite:////absolute/path.db")
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise JournalError(
            f"the journal needs a URL such as sqlite:///data/journal.db, not {parsed.render_as_string()}"
        )
    engine = create_engine(parsed, connect_args={"timeout": busy_timeout_s}, pool_size=8, max_overflow=24)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        with _alone(Path(parsed.database + ".lock"), wait_s=busy_timeout_s):
            with closing(sqlite3.connect(parsed.database, timeout=busy_timeout_s)) as plain:  # not within a transaction
                plain.execute("PRAGMA journal_mode=WAL")
            with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
                _migrate(connection)
    except (sqlite3.DatabaseError, DatabaseError, OSError) as error:
        engine.dispose()
        reason = error.__cause__ or error
        raise JournalUnavailable(
            f"the journal {parsed.database} cannot be opened: {reason}; check the folder, its owner and the free disk space, "
            "or restore it from a backup"
        ) from error
    except CommandError as error:
        engine.dispose()
        raise JournalUnavailable(
            f"the journal {parsed.database} was written by a newer version of Hephaestus ({error}); run that version"
        ) from error
    return engine


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Set what SQLite keeps per connection; transactions are begun by `_begin`, not by the driver."""
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    """Start a transaction; one that writes takes the write lock at once, so it never has to upgrade and fail."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _alone(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold a lock file, so that two processes never switch to WAL or migrate at once."""
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise JournalError(f"another process holds {path} for more than {wait_s} s: stop it") from None
                time.sleep(0.02)
        yield

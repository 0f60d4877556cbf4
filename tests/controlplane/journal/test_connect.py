"""A journal that cannot be opened says why and what to do, whatever is wrong with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from controlplane.errors import HephaestusError, JournalUnavailable
from controlplane.journal.events import JournalError, NewEvent
from controlplane.journal.journal import Journal


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """Something to write."""

    text: str


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://user:hunter2@host/db", "PostgreSQL is not supported"),
        ("mysql://user:hunter2@host/db", "not mysql"),
        ("sqlite://", "needs a URL such as"),
        ("sqlite:///:memory:", "needs a URL such as"),
        ("journal.db", "is no URL"),
        ("", "is no URL"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(url: str, says: str) -> None:
    """The sentence says what to write instead, and no password."""
    with pytest.raises(JournalError, match=says) as caught:
        Journal.open(url)
    assert "hunter2" not in caught.value.message


def garbage(path: Path) -> None:
    """Not a database."""
    path.write_bytes(b"\x07" * 8192)


def torn(path: Path) -> None:
    """The first half page of one."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
    path.write_bytes(path.read_bytes()[:600])


def folder(path: Path) -> None:
    """Not even a file."""
    path.mkdir()


@pytest.mark.parametrize("harm", [garbage, torn, folder])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, harm: object) -> None:
    """A damaged file is an error with a name, that says where it is and to look at backups."""
    path = tmp_path / "journal.db"
    assert callable(harm)
    harm(path)
    with pytest.raises(JournalUnavailable, match="cannot be opened") as caught:
        Journal.open(f"sqlite:///{path}")
    assert str(path) in caught.value.message


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """A journal makes its file, not its folder."""
    with pytest.raises(JournalUnavailable, match="check the folder"):
        Journal.open(f"sqlite:///{tmp_path}/nowhere/journal.db")


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """After a downgrade nothing is guessed: it says which way is out."""
    url = f"sqlite:///{tmp_path}/journal.db"
    Journal.open(url).close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.execute("UPDATE journal_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(HephaestusError, match="newer version"):
        Journal.open(url)


def read_all(url: str) -> None:
    """Opens a journal and reads what is in it."""
    with closing(Journal.open(url)) as journal:
        journal.load("s-1")
        journal.read(0, 1_000)


def test_a_journal_that_is_damaged_later_has_a_name_for_it(tmp_path: Path) -> None:
    """A page that rots on the disk ends the reading with an error that callers know."""
    url = f"sqlite:///{tmp_path}/journal.db"
    journal = Journal.open(url)
    for number in range(200):
        journal.append(f"s-{number}", 0, [NewEvent(Noted("x" * 500))])
    journal.close()
    path = tmp_path / "journal.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\x55" * (len(whole) - 4096))
    with pytest.raises(JournalUnavailable):
        read_all(url)

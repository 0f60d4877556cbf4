"""Changes of the catalog as the journal has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.catalog.versions import CatalogPublished
from controlplane.incidents.changes import ChangeLog
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A new journal."""
    made = Journal.open(f"sqlite:///{tmp_path}/journal.db")
    yield made
    made.close()


def _publish(journal: Journal, version: int, *changed: str) -> None:
    payload = CatalogPublished(version=version, hash="h", changed=changed)
    journal.append("catalog", None, [NewEvent(payload=payload, actor="file", occurred_us=version * 10)])


def test_changes_carry_the_names_they_touch(journal: Journal) -> None:
    """The words of the catalog's event become names that causes are matched by."""
    _publish(journal, 1, "models: changed fast, cheap", "upstreams: added a")
    (change,) = ChangeLog(journal).recent()
    assert (1, 10, "catalog.published", "file") == (change.position, change.at_us, change.type, change.actor)
    assert {"fast", "cheap", "a"} <= change.names


def test_keys_are_no_cause_and_unexplained_changes_are_kept(journal: Journal) -> None:
    """A new virtual key makes nothing sick; a change without words may."""
    _publish(journal, 1, "keys: added key_1")
    _publish(journal, 2)
    _publish(journal, 3, "keys: added key_2", "models: changed fast")
    assert [20, 30] == [change.at_us for change in ChangeLog(journal).recent()]


def test_only_what_is_new_is_read_and_only_the_newest_are_kept(journal: Journal) -> None:
    """The log follows the journal and stays small."""
    log = ChangeLog(journal, changes_max=2)
    assert () == log.recent()
    for version in (1, 2, 3):
        _publish(journal, version, f"models: changed m{version}")
    assert [20, 30] == [change.at_us for change in log.recent()]
    _publish(journal, 4, "models: changed m4")
    assert [30, 40] == [change.at_us for change in log.recent()]

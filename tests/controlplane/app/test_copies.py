"""Copies of events are in the store once each, wherever the copying was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.app import copies
from controlplane.app.copies import EventCopies
from controlplane.errors import HephaestusError, JournalUnavailable
from controlplane.healing.events import Matched, Queued, Started
from controlplane.healing.lint import load_library
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from controlplane.store.client import Store
from tests.controlplane.app.scene import Scene
from tests.controlplane.healing.fakes import INCIDENT
from tests.controlplane.incidents.fakes import raised

PLAYBOOK = load_library()[0]


def open_incident(scene: Scene, deployment: str = "alpha/m") -> str:
    """An incident about a deployment, firing."""
    (incident,) = scene.incidents.observe([raised(deployment=deployment)])
    return incident.id


def open_run(journal: Journal, run: str = "run-1") -> None:
    """A run that is queued."""
    matched = Matched(
        incident=INCIDENT,
        playbook_id="p",
        playbook_hash=PLAYBOOK.hash,
        playbook=PLAYBOOK.text,
        level="auto",
    )
    journal.append(run, 0, [NewEvent(matched), NewEvent(Queued())])


def positions(store: Store, table: str) -> list[int]:
    """Journal positions that the copies hold, sorted."""
    return sorted(int(str(row[0])) for row in store.rows(f"SELECT position FROM {table}"))


def expected(journal: Journal, prefix: str) -> list[int]:
    """Journal positions of a kind of stream."""
    return [event.global_pos for event in journal.read(0, 10_000) if event.stream_id.startswith(prefix)]


async def test_events_are_copied_with_the_state_after_them(scene: Scene, store: Store) -> None:
    """Each event is a row with what it is about and the state that it led to."""
    incident_id = open_incident(scene)
    open_run(scene.journal)
    await EventCopies(scene.journal, store).turn()
    rows = store.rows(
        "SELECT type, incident_id, state, deployment FROM incident_events WHERE type LIKE 'incident.%d' ORDER BY position"
    )
    assert ("incident.opened", incident_id, "pending", "alpha/m") == tuple(rows[0])
    assert ("incident.fired", incident_id, "firing", "alpha/m") in [tuple(row) for row in rows]
    runs = store.rows("SELECT type, run_id, incident_id, playbook, state FROM run_events ORDER BY position")
    assert [
        ("run.matched", "run_1", "incident_1", "p", "matched"),
        ("run.queued", "run_1", "incident_1", "p", "queued"),
    ] == [tuple(row) for row in runs]


async def test_a_second_turn_copies_only_what_is_new(scene: Scene, store: Store) -> None:
    """Turns follow the journal; a turn with nothing new changes nothing."""
    follower = EventCopies(scene.journal, store)
    open_run(scene.journal)
    await follower.turn()
    await follower.turn()
    scene.journal.append("run-1", 2, [NewEvent(Started(scopes=()))])
    await follower.turn()
    assert expected(scene.journal, "run-") == positions(store, "run_events")


class DyingJournal(Journal):
    """A journal that is away at the moment when a page is checked off, until it is alive."""

    alive = False

    def save_checkpoint(self, projection: str, global_pos: int) -> None:
        """Does not get there."""
        if not self.alive:
            raise JournalUnavailable("the process died here")
        super().save_checkpoint(projection, global_pos)


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_page_that_was_not_checked_off_is_stored_once(
    scene: Scene, store: Store, tmp_path: Path, *, grown: bool, restarted: bool
) -> None:
    """A crash or an error between insert and checkpoint doubles nothing, even when the page has grown since."""
    open_incident(scene)
    open_run(scene.journal)
    dying = DyingJournal.open(f"sqlite:///{tmp_path}/journal.db")
    follower = EventCopies(dying, store)
    with pytest.raises(HephaestusError):
        await follower.turn()
    dying.alive = True
    if grown:
        open_run(scene.journal, "run-2")
        open_incident(scene, "beta/big")
    if restarted:
        follower = EventCopies(scene.journal, store)
    await follower.turn()
    dying.close()
    assert expected(scene.journal, "run-") == positions(store, "run_events")
    assert expected(scene.journal, "incident-") == positions(store, "incident_events")


async def test_more_than_a_page_is_copied_in_one_turn(scene: Scene, store: Store) -> None:
    """After a long absence a turn goes on until nothing is left."""
    for number in range(copies.PAGE // 2 + 3):
        open_run(scene.journal, f"run-{number}")
    await EventCopies(scene.journal, store).turn()
    assert copies.PAGE + 6 == len(positions(store, "run_events"))

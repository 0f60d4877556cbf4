"""Incidents for people: lists with their runs, one timeline for both, and the alerts they cause."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.alerts.alert import Notification
from controlplane.api import views
from controlplane.app.healing import RunAnswers
from controlplane.app.incidents import IncidentAnswers
from controlplane.errors import NotFound
from controlplane.healing import events as e
from controlplane.healing.commands import Commands
from controlplane.healing.killswitch import KillSwitch
from controlplane.healing.runs import Runs
from controlplane.journal.events import NewEvent
from tests.controlplane.app.scene import Scene
from tests.controlplane.app.test_copies import PLAYBOOK
from tests.controlplane.healing.fakes import INCIDENT
from tests.controlplane.incidents.fakes import cleared, raised


def answers(scene: Scene) -> IncidentAnswers:
    """Incidents over the scene's journal."""
    journal = scene.journal
    runs = RunAnswers(Runs(journal), Commands(journal, scene.clock.now_us), KillSwitch(journal))
    return IncidentAnswers(scene.incidents, runs)


def heal(scene: Scene, incident_id: str, run: str = "run-1") -> None:
    """A run for an incident."""
    view = msgspec.structs.replace(INCIDENT, id=incident_id)
    matched = e.Matched(
        incident=view, playbook_id="p", playbook_hash=PLAYBOOK.hash, playbook=PLAYBOOK.text, level="auto"
    )
    scene.journal.append(run, 0, [NewEvent(matched), NewEvent(e.Queued())])


def told(scene: Scene) -> list[Notification]:
    """What waits to be sent."""
    return [msgspec.json.decode(entry.payload, type=Notification) for entry in scene.journal.due_outbox(2**62, 100)]


async def test_listed_incidents_name_their_runs(scene: Scene) -> None:
    """Each incident of a list has the ids of its runs, oldest first; one without has none."""
    (first,) = scene.incidents.observe([raised(deployment="alpha/m")])
    heal(scene, first.id, "run-1")
    heal(scene, first.id, "run-2")
    scene.incidents.observe([cleared(deployment="alpha/m")])
    scene.clock.move(3_600)
    scene.incidents.observe([])
    scene.clock.move(86_400)
    (second,) = scene.incidents.observe([raised(deployment="beta/big", at_s=scene.clock.monotonic())])
    listed = await answers(scene).list(state=None, limit=10)
    assert [(second.id, ()), (first.id, ("run_1", "run_2"))] == [(one.id, one.run_ids) for one in listed]
    assert [first.id] == [one.id for one in await answers(scene).list(state="resolved", limit=10)]


async def test_a_timeline_tells_incident_and_run_in_order(scene: Scene) -> None:
    """What happened and what was done about it are one story."""
    (incident,) = scene.incidents.observe([raised(deployment="alpha/m")])
    scene.clock.move(1)
    heal(scene, incident.id)
    scene.clock.move(1)
    scene.incidents.observe([cleared(deployment="alpha/m", at_s=2)])
    shown = await answers(scene).show(incident.id)
    kinds = [entry.kind for entry in shown.timeline]
    assert kinds.index("incident.fired") < kinds.index("run.matched") < kinds.index("incident.signal_cleared")
    assert ("run_1",) == shown.summary.run_ids
    assert all(entry.text for entry in shown.timeline)
    assert [shown] == list(await answers(scene).newest(5))
    with pytest.raises(NotFound):
        await answers(scene).show("inc_9")


async def test_open_incidents_come_first(scene: Scene) -> None:
    """A page begins with what is wrong now, whenever it began."""
    (old,) = scene.incidents.observe([raised(deployment="alpha/m")])
    scene.clock.move(7_200)
    now_s = scene.clock.monotonic()
    still = raised(deployment="alpha/m", at_s=now_s, started_s=0)
    scene.incidents.observe([still, raised(deployment="beta/big", at_s=now_s)])
    new = next(one for one in scene.incidents.open() if one.id != old.id)
    scene.incidents.observe([still, cleared(deployment="beta/big", at_s=now_s)])
    scene.clock.move(3_600)
    scene.incidents.observe([raised(deployment="alpha/m", at_s=scene.clock.monotonic(), started_s=0)])
    newest = await answers(scene).newest(5)
    assert [(old.id, "firing"), (new.id, "resolved")] == [(one.summary.id, one.summary.state) for one in newest]


async def test_people_hear_when_it_fires_comes_back_and_is_over(scene: Scene) -> None:
    """Three moments are worth a message each, with one key for the matter and another for each message."""
    (incident,) = scene.incidents.observe([raised(deployment="alpha/m")])
    scene.incidents.observe([cleared(deployment="alpha/m")])
    scene.clock.move(60)
    scene.incidents.observe([])
    scene.clock.move(5)
    scene.incidents.observe([raised(deployment="alpha/m", at_s=scene.clock.monotonic())])
    messages = told(scene)
    assert ["incident.fired", "incident.resolved", "incident.fired"] == [one.type for one in messages]
    assert ["opened", "resolved", "updated"] == [one.kind for one in messages]
    assert {incident.id} == {one.dedup_key for one in messages}
    assert 3 == len({one.id for one in messages})
    assert ["high", "info", "high"] == [one.severity for one in messages]
    assert messages[1].title == f"over: {messages[0].title}"
    assert messages[2].title == f"again: {messages[0].title}"
    assert all(one.fields[0].value == "alpha/m" for one in messages)


def test_a_summary_names_the_likely_cause() -> None:
    """Without a cause the field is empty, never `None`."""
    assert "" == views.IncidentSummary(id="i", title="t", state="firing", opened_us=1).cause

"""The runs as people read them."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.errors import NotFound
from controlplane.healing.runs import Runs
from controlplane.healing.worker import Healing
from controlplane.journal.events import NewEvent
from controlplane.journal.journal import Journal
from tests.controlplane.healing.fakes import INCIDENT, FakeWorld


class Foreign(msgspec.Struct, frozen=True, tag="lease.granted"):
    """An event of another area whose name is near to ours."""

    lease: str


async def test_the_list_follows_the_journal(world: FakeWorld, journal: Journal, healing: Healing) -> None:
    """A reader that was there before sees new runs and their progress; foreign events do not disturb it."""
    runs = Runs(journal)
    assert [] == runs.list()
    journal.append("lease/1", None, [NewEvent(Foreign("x"))])
    run_id = await healing.consider(INCIDENT)
    assert [(run_id, "matched")] == [(run.id, run.status) for run in runs.list()]
    await healing.turn()
    (run,) = runs.list(only_open=True)
    assert ("validating", "incident_1", "alpha/m", 0) == (run.status, run.incident, run.deployment, run.ended_us)
    assert [run] == Runs(journal).list(incident="incident_1")
    assert [] == runs.list(incident="incident_2")


async def test_newest_runs_come_first_and_ends_are_seen(world: FakeWorld, journal: Journal, healing: Healing) -> None:
    """A list is cut at its limit from the newest on; an ended run says when and why."""
    first = await healing.consider(INCIDENT)
    healing.kill_switch.engage("global", by="ann", reason="drill")
    world.clock.move(5)
    await healing.turn()
    healing.kill_switch.release("global", by="ann")
    other = msgspec.structs.replace(INCIDENT, id="incident_2", fingerprint="other")
    second = await healing.consider(other)
    runs = Runs(journal)
    assert [second, first] == [run.id for run in runs.list()]
    assert [second] == [run.id for run in runs.list(limit=1)]
    ended = runs.list()[1]
    assert ("suppressed", world.clock.now_us()) == (ended.status, ended.ended_us)
    assert "drill" in ended.cause


async def test_a_run_is_shown_with_its_plan_and_timeline(world: FakeWorld, journal: Journal, healing: Healing) -> None:
    """Each event has its moment, its type, who did it and its contents."""
    run_id = await healing.consider(INCIDENT)
    assert run_id is not None
    await healing.turn()
    detail = Runs(journal).show(run_id)
    assert detail.plan is not None
    assert ("run.matched", "healing", world.clock.now_us()) == (
        detail.timeline[0].type,
        detail.timeline[0].actor,
        detail.timeline[0].at_us,
    )
    assert "incident_1" == msgspec.json.decode(detail.timeline[0].detail)["incident"]["id"]
    msgspec.json.encode(detail)


def test_a_run_that_is_not_there_is_not_found(journal: Journal) -> None:
    """The message names the run and the command that lists runs."""
    with pytest.raises(NotFound, match=r"run_x.*playbooks runs"):
        Runs(journal).show("run_x")

"""Incidents over a real journal: opened, joined, confirmed, resolved, reopened, and read again after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.contract.snapshot import Deployment, Route, Snapshot
from controlplane.errors import NotFound
from controlplane.incidents.incident import Fired, stream_of
from controlplane.incidents.topology import Topology
from controlplane.journal.events import NewEvent
from tests.controlplane.incidents.fakes import Rig, alias_raised, cleared, raised


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A register over a new journal."""
    made = Rig(tmp_path)
    yield made
    made.close()


def test_one_provider_outage_seen_by_many_watches_is_one_incident(rig: Rig) -> None:
    """Five watches, a breaker and a probe of one upstream are one incident whose cause is the provider."""
    rig.see(raised(), raised(deployment="a/m2", at_s=1))
    rig.clock.move(5.0)
    rig.see(
        raised("breaker_open", score=0.9), raised("probe_failed", "a/m2", score=0.7), raised("first_token_p95", "a/m2", score=0.9),
        alias_raised("fast", at_s=4), alias_raised("cheap", at_s=5),
    )  # fmt: skip
    incident = rig.only()
    assert 7 == len(incident.raised)
    assert ("firing", "critical", ("a/m1", "a/m2")) == (incident.state, incident.severity, incident.deployments)
    assert ("provider", "a") == (incident.causes[0].kind, incident.causes[0].entity)
    assert 1.0 == rig.metric("heph_incidents_opened_total")


def test_two_unrelated_outages_at_the_same_time_are_two_incidents(rig: Rig) -> None:
    """Nearness in time alone does not join; each alias follows its own deployment."""
    rig.see(raised(deployment="a/m2"), raised(deployment="z/m9"), alias_raised("cheap"), alias_raised("odd"))
    signals = {tuple(sorted(one.signal.signal_id for one in incident.signals)) for incident in rig.incidents.open()}
    assert {
        ("alias_success_ratio/cheap", "success_ratio/a/m2"),
        ("alias_success_ratio/odd", "success_ratio/z/m9"),
    } == signals


def test_two_providers_behind_one_alias_are_two_incidents(rig: Rig) -> None:
    """A shared symptom is not a shared cause."""
    rig.see(raised(deployment="a/m1"), alias_raised("fast"), raised(deployment="b/m3"))
    assert [("a/m1",), ("b/m3",)] == sorted(incident.deployments for incident in rig.incidents.open())


def test_an_incident_waits_for_a_second_source_or_certainty(rig: Rig) -> None:
    """A single unsure source stays pending; an independent one that agrees makes it fire."""
    rig.see(raised(score=0.9))
    assert "pending" == rig.only().state
    rig.see(raised("first_token_p95", score=0.9))
    assert "pending" == rig.only().state  # telemetry twice is one source
    rig.see(raised(score=0.9), raised("breaker_open", score=0.9))
    assert ("firing", ("breaker", "telemetry")) == (rig.only().state, rig.only().sources)


def test_a_confirmed_incident_still_waits_for_its_patience(tmp_path: Path) -> None:
    """With `pending_s` an incident fires only when its signals lasted that long."""
    rig = Rig(tmp_path, pending_s=20.0)
    rig.see(raised())
    rig.wait(15, raised())
    assert "pending" == rig.only().state
    rig.wait(5, raised())
    assert "firing" == rig.only().state
    rig.close()


def test_an_unconfirmed_incident_whose_signals_go_away_is_dismissed(rig: Rig) -> None:
    """Nobody is told of what was never confirmed."""
    rig.see(raised(score=0.9))
    rig.see(cleared())
    rig.wait(30)
    assert ["opened", "signal_cleared", "dismissed"] == rig.types(rig.only())
    assert ("resolved", 0) == (rig.only().state, rig.only().fired_us)
    assert [] == rig.journal.due_outbox(rig.clock.now_us(), 10)
    assert (1.0, 0.0) == (rig.metric("heph_incidents_dismissed_total"), rig.metric("heph_incidents_resolved_total"))


def test_an_incident_resolves_after_all_signals_stayed_clear(rig: Rig) -> None:
    """Every signal must clear, and stay so for `resolve_after_s`."""
    rig.see(raised(), alias_raised("fast"))
    rig.see(cleared())
    rig.wait(60, alias_raised("fast"))
    assert "firing" == rig.only().state
    rig.see(cleared("alias_success_ratio", alias="fast"))
    rig.wait(25)
    assert "firing" == rig.only().state
    rig.wait(5)
    assert "resolved" == rig.only().state
    assert 1.0 == rig.metric("heph_incidents_resolved_total")
    assert 0.0 == rig.metric("heph_incidents_open", state="firing")


def test_a_drained_deployment_is_cleared_by_probes_alone(rig: Rig) -> None:
    """Silence clears nothing for hours; good probes clear the deployment, and its alias's symptom with it."""
    rig.see(raised(), alias_raised("fast"), raised("breaker_open"), raised("probe_failed"))
    rig.wait(3600, every_s=60.0)
    assert "firing" == rig.only().state
    rig.see(cleared("probe_ok"))
    assert () == rig.only().raised
    rig.wait(30)
    assert "resolved" == rig.only().state
    by = [entry.text for entry in rig.incidents.show(rig.only().id).timeline if entry.kind == "incident.signal_cleared"]
    assert 4 == len(by)
    assert 3 == sum("probes succeed again" in text for text in by)


def test_a_good_probe_does_not_speak_over_failing_traffic(rig: Rig) -> None:
    """While clients' calls fail, a probe that succeeds clears only its own signal."""
    rig.see(raised(), raised("probe_failed"))
    rig.wait(60, raised(), cleared("probe_ok"))
    assert ("firing", ["success_ratio/a/m1"]) == (rig.only().state, [one.signal.signal_id for one in rig.only().raised])


def test_a_good_probe_overrules_an_older_breaker_but_not_a_newer_one(rig: Rig) -> None:
    """Without traffic a breaker stays half open for ever; one that opens after the probe is news."""
    stuck = raised("breaker_open", started_s=0.0)
    rig.see(raised(), stuck)
    rig.wait(60, stuck)
    rig.see(stuck, cleared("probe_ok"))
    rig.wait(60, stuck)
    assert "resolved" == rig.only().state
    rig.see(raised("breaker_open", at_s=rig.now_s, score=0.9))
    assert ("pending", 1) == (rig.only().state, rig.only().reopened)


def test_an_alias_whose_cause_is_over_and_that_nobody_calls_does_not_hold_its_incident_open(rig: Rig) -> None:
    """A symptom without traffic ends with its cause."""
    rig.see(raised(deployment="a/m2"), alias_raised("cheap"))
    rig.wait(60, cleared(deployment="a/m2"))
    assert "resolved" == rig.only().state
    assert ["opened", "fired"] == rig.types(rig.only())[:1] + rig.types(rig.only())[2:3]


def test_a_flapping_signal_is_one_incident(rig: Rig) -> None:
    """Twenty flaps faster than the resolve time, then five slower ones, are one incident that was reopened five times."""
    for _ in range(20):
        rig.wait(10, raised(at_s=rig.now_s))
        rig.wait(10, cleared())
    assert 1 == len(rig.incidents.list())
    assert 0 == rig.only().reopened
    for _ in range(5):
        rig.wait(60, cleared())
        rig.wait(10, raised(at_s=rig.now_s))
    assert ("firing", 5) == (rig.only().state, rig.only().reopened)
    assert (1.0, 5.0) == (rig.metric("heph_incidents_opened_total"), rig.metric("heph_incidents_reopened_total"))


def test_the_same_problem_much_later_is_a_new_incident(rig: Rig) -> None:
    """Beyond the reopen window history does not repeat, it begins anew, with the same fingerprint."""
    rig.see(raised())
    rig.wait(60, cleared())
    rig.clock.move(901.0)
    rig.see(raised(at_s=rig.now_s))
    newest, oldest = rig.incidents.list()
    assert ("firing", "resolved") == (newest.state, oldest.state)
    assert newest.fingerprint == oldest.fingerprint


def test_a_restart_continues_where_the_journal_is(rig: Rig) -> None:
    """A new register on the same journal knows the same incidents, and neither opens nor fires them twice."""
    rig.see(raised(), alias_raised("fast"))
    before = rig.only()
    rig.restart()
    assert before == rig.only()
    assert 1.0 == rig.metric("heph_incidents_open", state="firing")
    rig.see(raised(), alias_raised("fast"))
    assert before == rig.only()
    rig.wait(60, cleared(), cleared("alias_success_ratio", alias="fast"))
    rig.restart()
    assert "resolved" == rig.only().state
    rig.see(raised(at_s=rig.now_s))
    assert 1 == rig.only().reopened


def test_a_restart_alone_makes_nothing_silent(rig: Rig) -> None:
    """Just after a start nobody has spoken yet; a good probe must wait before it speaks for others."""
    rig.see(raised(), raised("probe_failed"))
    rig.clock.move(600.0)
    rig.restart()
    rig.see(cleared("probe_ok"))
    assert ["success_ratio/a/m1"] == [one.signal.signal_id for one in rig.only().raised]
    rig.clock.move(31.0)
    rig.see(cleared("probe_ok"))
    assert () == rig.only().raised


def test_another_process_that_was_faster_wins(rig: Rig) -> None:
    """On a conflict the incident is read anew, nothing is written twice, and life goes on."""
    rig.see(raised(score=0.9))
    incident = rig.only()
    other = Fired(at_us=rig.clock.now_us(), sources=("telemetry",), confidence=1.0)
    rig.journal.append(stream_of(incident.id), incident.version, [NewEvent(payload=other)])
    rig.see(raised(), raised("breaker_open"))
    assert ("firing", 1.0) == (rig.only().state, rig.metric("heph_incidents_conflicts_total"))
    rig.see(raised(), raised("breaker_open"))
    assert ["opened", "fired", "signal_attached", "causes_ranked"] == rig.types(rig.only())


def test_alerts_leave_with_their_event_and_once(rig: Rig) -> None:
    """What the outbox callback returns is in the journal's outbox, once for each transition."""
    rig.see(raised())
    rig.wait(60, raised())
    rig.wait(60, cleared())
    entries = rig.journal.due_outbox(rig.clock.now_us(), 10)
    assert [b"incident.fired firing", b"incident.resolved resolved"] == [entry.payload for entry in entries]


def test_a_target_that_is_not_configured_any_more_is_retired(rig: Rig) -> None:
    """Removing a sick deployment from the configuration ends its incident."""
    rig.see(raised(deployment="z/m9"))
    rig.topology = Topology.of(
        Snapshot(
            version=2,
            created_us=0,
            routes=(Route(alias="fast", deployments=(Deployment(id="a/m1", upstream="a", model="m1"),)),),
        )
    )
    rig.wait(40)
    assert "resolved" == rig.only().state
    assert 1.0 == rig.metric("heph_incidents_signals_expired_total", by="retired")


def test_a_signal_that_nobody_speaks_of_expires(tmp_path: Path) -> None:
    """There is an end to waiting, and it is counted."""
    rig = Rig(tmp_path, expire_s=3600.0)
    rig.see(raised())
    rig.wait(3590, every_s=10.0)
    assert "firing" == rig.only().state
    rig.wait(60)
    assert "resolved" == rig.only().state
    assert 1.0 == rig.metric("heph_incidents_signals_expired_total", by="expired")
    rig.close()


def test_beyond_the_bound_signals_join_the_newest_incident_and_are_counted(tmp_path: Path) -> None:
    """An alert storm opens a bounded number of incidents, and no signal is lost."""
    rig = Rig(tmp_path, open_max=1)
    rig.see(raised(deployment="a/m1"), raised(deployment="z/m9"), raised(deployment="b/m3"))
    assert ("a/m1", "b/m3", "z/m9") == rig.only().deployments
    assert 2.0 == rig.metric("heph_incidents_joined_total")
    rig.close()


def test_old_incidents_are_forgotten_but_found_by_their_id(tmp_path: Path) -> None:
    """Lists are bounded; the journal is not."""
    rig = Rig(tmp_path, kept_max=2, reopen_s=0.0)
    first = ""
    for _ in range(4):
        rig.see(raised(at_s=rig.now_s))
        first = first or rig.only().id
        rig.wait(40, cleared())
        rig.clock.move(3600)
    assert 2 == len(rig.incidents.list(limit=10))
    assert "resolved" == rig.incidents.state(first).state
    rig.restart()
    assert 2 == len(rig.incidents.list(limit=10))
    rig.close()


def test_lists_are_newest_first_and_filtered(rig: Rig) -> None:
    """By state, and at most as many as asked for."""
    rig.see(raised(deployment="a/m1"))
    rig.wait(60, cleared())
    rig.see(raised(deployment="z/m9", at_s=rig.now_s, score=0.9))
    assert ["pending", "resolved"] == [one.state for one in rig.incidents.list()]
    assert ["resolved"] == [one.state for one in rig.incidents.list(state="resolved")]
    assert ["pending"] == [one.state for one in rig.incidents.list(limit=1)]
    assert ["pending"] == [one.state for one in rig.incidents.open()]


def test_an_unknown_incident_is_not_found(rig: Rig) -> None:
    """The error says what to do."""
    with pytest.raises(NotFound, match="incidents list"):
        rig.incidents.show("inc_nope")
    with pytest.raises(NotFound):
        rig.incidents.state("inc_nope")


def test_sick_deployments_are_those_of_open_incidents(rig: Rig) -> None:
    """An incident of an alias alone makes all its deployments suspects; a resolved one none."""
    assert {} == rig.incidents.sick_deployments()
    rig.see(alias_raised("fast"))
    assert {"a/m1": "a", "b/m3": "b"} == rig.incidents.sick_deployments()
    rig.wait(60, cleared("alias_success_ratio", alias="fast"))
    assert {} == rig.incidents.sick_deployments()


def test_the_timeline_tells_the_story(rig: Rig) -> None:
    """Each event is a sentence, in order, with its time."""
    rig.see(raised())
    rig.wait(60, cleared())
    timeline = rig.incidents.show(rig.only().id).timeline
    assert [
        "opened: calls to a/m1 fail; seen in a test",
        "fires: telemetry is sure, confidence 0.99",
        (
            "likely cause: deployment a/m1 (explains 1 of 1 signals, affected first); "
            "provider a (explains 1 of 1 signals, 1 of 2 that depend on it are affected, affected first)"
        ),
        "success_ratio/a/m1 cleared: traffic is well again",
        "resolved: all signals stayed clear",
    ] == [entry.text for entry in timeline]
    assert sorted(entry.at_us for entry in timeline) == [entry.at_us for entry in timeline]

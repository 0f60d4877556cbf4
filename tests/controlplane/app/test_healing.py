"""Healing meets the catalog, the store and the incidents: what it measures, whom it sees on routes, and what incidents mean to it."""

from __future__ import annotations

import math

import pytest

from controlplane.app.healing import (
    CatalogLeases,
    CatalogRoutes,
    KnownIncidents,
    ProxyConfirmations,
    RunAnswers,
    StoredMetrics,
    views_of,
)
from controlplane.clock import ManualClock
from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.snapshot import LeaseKind
from controlplane.errors import BadRequest, Conflict, NotFound
from controlplane.healing.actions import METRICS, Confirmation
from controlplane.healing.commands import Commands
from controlplane.healing.killswitch import KillSwitch
from controlplane.healing.runs import Runs
from controlplane.store.client import Store
from tests.controlplane.app.scene import Scene
from tests.controlplane.app.test_copies import open_run
from tests.controlplane.incidents.fakes import alias_raised, cleared, raised
from tests.controlplane.store.fakes import a_call, an_attempt
from tests.controlplane.store.fill import fill

TARGETS = {"alias": "gpt", "deployment": "openai/gpt"}


async def test_every_metric_of_the_library_can_be_read(store: Store, clock: ManualClock) -> None:
    """Each name that a condition may use has an answer; with nothing stored it is no number and no sample."""
    measured = StoredMetrics(store, clock)
    for metric in METRICS:
        found = await measured.read(metric, TARGETS, 60.0)
        assert (0, 60.0) == (found.samples, found.age_s), metric
        if not metric.endswith(("calls", "cost_usd_per_h")):
            assert math.isnan(found.value), metric
    with pytest.raises(BadRequest, match="no metric"):
        await measured.read("route.happiness", TARGETS, 60.0)


async def test_measurements_are_those_of_the_window(store: Store, clock: ManualClock) -> None:
    """Ratios, percentiles, rates and the age of the newest call, of what ended in the window and no more."""
    now_us = clock.now_us()
    sick = an_attempt(at_us=now_us - 10_000_000, error=AttemptError.STATUS_5XX)
    fill(
        store,
        a_call(1, at_us=now_us - 20_000_000, cost_nanousd=500_000_000),
        a_call(2, at_us=now_us - 10_000_000, outcome=Outcome.EXHAUSTED, attempts=(sick,)),
        a_call(3, at_us=now_us - 9_000_000, outcome=Outcome.CLIENT_CLOSED, attempts=()),
        a_call(4, at_us=now_us - 600_000_000, outcome=Outcome.EXHAUSTED, attempts=()),
    )
    measured = StoredMetrics(store, clock)
    ratio = await measured.read("route.success_ratio", TARGETS, 60.0)
    assert (0.5, 2, 9.0) == (ratio.value, ratio.samples, ratio.age_s)
    assert 0.5 == (await measured.read("deployment.success_ratio", TARGETS, 60.0)).value
    per_hour = (await measured.read("route.cost_usd_per_h", TARGETS, 60.0)).value
    assert (
        pytest.approx(0.5 * 3_600 / 19) == per_hour
    )  # over the 19 s since the first call ended: the route is that young
    assert pytest.approx(1.0, rel=0.1) == (await measured.read("route.latency_p95_s", TARGETS, 60.0)).value


async def test_a_first_token_that_nobody_saw_is_no_number(store: Store, clock: ManualClock) -> None:
    """Calls without a first token leave its percentile unmeasured; 0 s would pass every ceiling."""
    fill(store, a_call(1, at_us=clock.now_us() - 10_000_000, first_token_us=0))
    found = await StoredMetrics(store, clock).read("route.ttft_p95_s", TARGETS, 60.0)
    assert 1 == found.samples
    assert math.isnan(found.value)


async def test_a_clock_that_went_back_gives_no_negative_age(store: Store, clock: ManualClock) -> None:
    """A call from the future of our clock, within the window's end, is fresh and not younger than now."""
    fill(store, a_call(1, at_us=clock.now_us() - 1_000_000, latency_us=999_999))
    assert (await StoredMetrics(store, clock).read("route.calls", TARGETS, 60.0)).age_s >= 0.0


async def test_shares_are_those_of_the_lowest_order(scene: Scene) -> None:
    """Weights share the calls of the first order, the rest is there for failover; whoever is sick or has no closed breaker is not healthy."""
    routes = {route.alias: route for route in CatalogRoutes(scene.publisher, scene.incidents)()}
    assert [("alpha/m", 0.75, True), ("beta/m", 0.25, True), ("beta/big", 0.0, True)] == [
        (one.deployment, one.share, one.healthy) for one in routes["chat"].deployments
    ]
    scene.incidents.observe([raised(deployment="alpha/m")])
    scene.report("p1", breakers={"beta/m": "half_open", "beta/big": "closed"})
    routes = {route.alias: route for route in CatalogRoutes(scene.publisher, scene.incidents)()}
    assert [False, False, True] == [one.healthy for one in routes["chat"].deployments]
    assert [True] == [one.healthy for one in routes["code"].deployments]


async def test_confirmations_count_live_workers(scene: Scene) -> None:
    """Each live worker either has a lease or not; one that fell silent does not count."""
    confirmations = ProxyConfirmations(scene.publisher)
    assert Confirmation(live=0, having=0) == confirmations("lease_1")
    scene.report("p1", lease_ids=("lease_1",))
    scene.report("p2")
    assert Confirmation(live=2, having=1) == confirmations("lease_1")
    scene.clock.move(60)
    scene.report("p2")
    assert Confirmation(live=1, having=0) == confirmations("lease_1")


async def test_leases_are_the_catalogs(scene: Scene) -> None:
    """What healing grants is in force, lasts longer when renewed, and ends when revoked; a lease that is gone cannot be renewed."""
    leases = CatalogLeases(scene.leases)
    lease = leases.grant(LeaseKind.DRAIN, "alpha/m", ttl_s=60.0, run_id="run_1", reason="outage", share=0.0)
    assert [lease] == list(leases.active())
    scene.clock.move(30)
    renewed = leases.renew(lease.id, 60.0)
    assert renewed is not None
    assert renewed.expires_us == lease.expires_us + 30_000_000
    leases.revoke(lease.id)
    assert [] == list(leases.active())
    with pytest.raises(NotFound):
        leases.renew(lease.id, 60.0)


async def test_an_incident_is_one_view_for_each_deployment_it_names(scene: Scene) -> None:
    """Success counts for more than other kinds, sources and confidence are those of the deployment, and a cleared signal is no evidence."""
    (incident,) = scene.incidents.observe(
        [
            raised("breaker_open", "beta/m", score=0.8),
            raised("success_ratio", "beta/m", score=0.95),
            raised("breaker_open", "beta/big", score=0.7),
        ]
    )
    found = {view.deployment: view for view in views_of(incident, scene.view.topology())}
    assert {"beta/m", "beta/big"} == set(found)
    both, one = found["beta/m"], found["beta/big"]
    assert ("success_ratio", ("breaker", "telemetry"), 0.95) == (both.kind, both.sources, both.confidence)
    assert ("breaker_open", ("breaker",), 0.7) == (one.kind, one.sources, one.confidence)
    assert ("beta", ("chat", "code")) == (one.upstream, one.aliases)
    assert both.fingerprint != one.fingerprint
    scene.clock.move(5)
    scene.incidents.observe([cleared("breaker_open", "beta/big", at_s=5)])
    (incident,) = scene.incidents.open()
    assert ["beta/m"] == [view.deployment for view in views_of(incident, scene.view.topology())]


async def test_an_incident_that_names_no_deployment_is_nobodys_to_heal(scene: Scene) -> None:
    """A complaint about an alias alone gives healing nothing to act on."""
    (incident,) = scene.incidents.observe([alias_raised("chat")])
    assert [] == views_of(incident, scene.view.topology())


async def test_the_state_of_an_incident(scene: Scene) -> None:
    """Firing while it fires, resolved when it is over or was never known."""
    known = KnownIncidents(scene.incidents)
    assert "resolved" == known.state("inc_unknown")
    (incident,) = scene.incidents.observe([raised(deployment="alpha/m")])
    assert "firing" == known.state(incident.id)
    scene.incidents.observe([cleared(deployment="alpha/m")])
    scene.clock.move(3_600)
    scene.incidents.observe([])
    assert "resolved" == known.state(incident.id)


async def test_runs_as_the_api_asks_for_them(scene: Scene) -> None:
    """Lists with a state, single runs with sentences, the runs of incidents, and commands that say when they cannot be."""
    answers = RunAnswers(Runs(scene.journal), Commands(scene.journal, scene.clock.now_us), KillSwitch(scene.journal))
    open_run(scene.journal, "run-1")
    open_run(scene.journal, "run-2")
    await answers.abort("run_1", actor="ann", reason="drill")
    assert ["run_2", "run_1"] == [run.id for run in await answers.list(state="queued", limit=10)]
    assert [] == list(await answers.list(state="closed", limit=10))
    assert ["run_2"] == [run.id for run in await answers.list(state=None, limit=1)]
    shown = await answers.show("run_1")
    assert "ann wants it to stop: drill" == shown.timeline[-1].text
    assert {"incident_1": ("run_1", "run_2")} == await answers.ids_of({"incident_1", "incident_9"})
    assert ["run_1", "run_2"] == [run.run.id for run in await answers.of_incident("incident_1")]
    with pytest.raises(Conflict, match="does not wait"):
        await answers.approve("run_2", actor="ann", reason="")
    with pytest.raises(NotFound):
        await answers.show("run_9")


async def test_the_kill_switch_is_seen_and_released(scene: Scene) -> None:
    """Who engaged it and why is shown until it is released."""
    answers = RunAnswers(Runs(scene.journal), Commands(scene.journal, scene.clock.now_us), KillSwitch(scene.journal))
    assert not (await answers.kill_switch()).engaged
    await answers.engage(actor="ann", reason="maintenance")
    engaged = await answers.kill_switch()
    assert (True, "ann", "maintenance") == (engaged.engaged, engaged.actor, engaged.reason)
    await answers.release(actor="ann", reason="")
    assert not (await answers.kill_switch()).engaged

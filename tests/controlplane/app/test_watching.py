"""Detection meets the catalog and the incidents: what is watched and probed, and what becomes of signals."""

from __future__ import annotations

from pathlib import Path

from controlplane.app.watching import Witnesses
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import LeaseKind
from controlplane.detection.signals import Anomaly, Cleared
from controlplane.incidents.incident import Incident
from controlplane.journal.journal import Journal
from tests.controlplane.app.scene import TEXT, Scene


def witnesses(scene: Scene) -> Witnesses:
    """Witnesses who note when something changed."""

    async def changed() -> None:
        scene.changes.append(len(scene.incidents.open()))

    return Witnesses(scene.incidents, scene.view, statuses=scene.publisher.statuses, clock=scene.clock, changed=changed)


def anomaly(scene: Scene, deployment: str = "alpha/m") -> Anomaly:
    """Something is wrong with a deployment."""
    return Anomaly(
        signal_id=f"success_ratio/{deployment}",
        kind="success_ratio",
        source="telemetry",
        severity="high",
        score=0.99,
        started_us=scene.clock.now_us(),
        at_us=scene.clock.now_us(),
        deployment=deployment,
        upstream=deployment.partition("/")[0],
        evidence=("it fails",),
    )


def only(scene: Scene) -> Incident:
    """The one open incident."""
    (incident,) = scene.incidents.open()
    return incident


async def test_an_anomaly_opens_an_incident_and_whoever_heals_hears_of_it(scene: Scene) -> None:
    """A signal crosses over whole, and changes are told; a repetition changes nothing."""
    seen = witnesses(scene)
    await seen.emit([anomaly(scene)])
    assert ("firing", ("alpha/m",)) == (only(scene).state, only(scene).deployments)
    assert [1] == scene.changes
    await seen.emit([anomaly(scene)])
    assert [1] == scene.changes


async def test_time_passes_without_signals(scene: Scene) -> None:
    """An incident whose signals cleared is resolved by an empty turn once it was quiet for long enough."""
    seen = witnesses(scene)
    await seen.emit([anomaly(scene)])
    gone = Cleared(
        signal_id="success_ratio/alpha/m",
        kind="success_ratio",
        source="telemetry",
        at_us=scene.clock.now_us(),
        deployment="alpha/m",
        upstream="alpha",
    )
    await seen.emit([gone])
    scene.clock.move(3_600)
    await seen.emit([])
    assert () == scene.incidents.open()


async def test_an_open_breaker_is_a_signal(scene: Scene) -> None:
    """What the live workers' breakers say becomes an incident about the deployment."""
    scene.report("p1", breakers={"alpha/m": "open", "beta/m": "closed"})
    await witnesses(scene).look_at_breakers()
    assert ("alpha/m",) == only(scene).deployments


async def test_a_proxy_that_fell_silent_is_no_witness(scene: Scene) -> None:
    """The word of a proxy that is not live any more opens nothing."""
    scene.report("p1", breakers={"alpha/m": "open"})
    scene.clock.move(60)
    await witnesses(scene).look_at_breakers()
    assert () == scene.incidents.open()


async def test_sick_and_drained_deployments_are_probed(scene: Scene) -> None:
    """Nobody is probed while all is well; then those of open incidents, and those under a drain though nothing is wrong with them."""
    seen = witnesses(scene)
    assert {} == seen.to_probe()
    await seen.emit([anomaly(scene)])
    scene.leases.grant(LeaseKind.DRAIN, "beta/big", 60.0, run_id="run_1")
    scene.leases.grant(LeaseKind.SHARE, "beta/m", 60.0, run_id="run_1", share=0.5)
    scene.leases.grant(LeaseKind.DRAIN, "nobody/knows", 60.0, run_id="run_2")
    await scene.reloader.caught_up()
    assert {"alpha/m": "alpha", "beta/big": "beta"} == seen.to_probe()


async def test_what_only_litellm_speaks_to_is_not_probed(tmp_path: Path, journal: Journal, clock: ManualClock) -> None:
    """The control plane does not import it; the proxies' breakers are the witnesses."""
    text = TEXT.replace('{name: beta, base_url: "http://127.0.0.1:9/v1"}', "{name: beta, dialect: litellm}")
    scene = await Scene.open(tmp_path, journal, clock, text)
    for deployment in ("alpha/m", "beta/m"):
        scene.leases.grant(LeaseKind.DRAIN, deployment, 60.0, run_id="run_1")
    await scene.reloader.caught_up()
    assert {"alpha/m": "alpha"} == witnesses(scene).to_probe()


async def test_the_view_follows_the_snapshot(scene: Scene) -> None:
    """Watches and topology are made once for each snapshot, from that snapshot."""
    before = scene.view.watches()
    assert before is scene.view.watches()
    assert {"alpha/m": "alpha", "beta/m": "beta", "beta/big": "beta"} == dict(scene.view.topology().upstreams)
    scene.leases.grant(LeaseKind.DRAIN, "alpha/m", 60.0, run_id="run_1")
    await scene.reloader.caught_up()
    assert before is not scene.view.watches()
    assert {"alpha/m"} == scene.view.drained()

"""From a provider's first error to a resolved incident, with the real sweep, breakers and probes, minute by minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from controlplane.clock import US_PER_S
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.detection.breakers import breaker_signals
from controlplane.detection.metrics import ProbeMetrics, SweepMetrics
from controlplane.detection.probes import Probes, ProbeSettings
from controlplane.detection.signals import Signal
from controlplane.detection.sweep import Sweep
from controlplane.detection.watch import alias_watch, success_ratio_watch
from controlplane.incidents.signal import signal_of
from controlplane.metrics import DetectionMetrics
from controlplane.settings import DetectionSettings
from tests.controlplane.detection.fakes import GivenProber, GivenSource, GivenTelemetry, ratio_series
from tests.controlplane.incidents.fakes import START_US, Rig

SICK, BACKUP, STEP_S = "a/m1", "b/m3", 5
NAN = float("nan")


class _World:
    """One alias with a sick deployment and its backup. Every five seconds calls are made, seen, and judged.

    down: whether the provider fails. drained: whether the sick deployment gets no calls, as healing would have it.
    """

    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder)
        clock = self.rig.clock
        watches = [
            success_ratio_watch(SICK, "a", step_s=STEP_S, window_s=600),
            success_ratio_watch(BACKUP, "b", step_s=STEP_S, window_s=600),
            alias_watch("fast", step_s=STEP_S, window_s=600),
        ]
        self.history: dict[str, list[float]] = {watch.id: [1.0] * 60 for watch in watches}
        self.source = GivenSource()
        registry = CollectorRegistry()
        self.sweep = Sweep(
            source=self.source,
            watches=lambda: watches,
            telemetry=GivenTelemetry(),
            settings=DetectionSettings(),
            metrics=DetectionMetrics(registry),
            sweep_metrics=SweepMetrics(registry),
            clock=clock,
        )
        self.prober = GivenProber({SICK: True, BACKUP: True}, clock)
        self.probes = Probes(
            prober=self.prober,
            targets=self._targets,
            settings=ProbeSettings(),
            metrics=ProbeMetrics(registry),
            clock=clock,
        )
        self.down = self.drained = False
        self.opened_us: int | None = None

    def _targets(self) -> dict[str, str]:
        """Asks whichever register there is now."""
        return self.rig.incidents.sick_deployments()

    async def pass_time(self, seconds: float) -> None:
        """Sweeps, breakers and probes, as the app's loops run them."""
        for _ in range(round(seconds / STEP_S)):
            self.rig.clock.move(STEP_S)
            self._calls()
            signals: list[Signal] = [*self.sweep.once().signals, *self._breakers(), *await self.probes.turn()]
            self.rig.see(*(signal_of(msgspec.to_builtins(signal)) for signal in signals))

    def _calls(self) -> None:
        """One more point of each series: without failover clients feel the outage, drained they do not."""
        self.prober.answers[SICK] = not self.down
        share = NAN if self.drained else 0.0 if self.down else 1.0
        alias = 0.5 if self.down and not self.drained else 1.0
        for watch_id, value in zip(self.history, (share, 1.0, alias), strict=True):
            self.history[watch_id].append(value)
            end_s = self.rig.clock.now_us() // US_PER_S
            self.source.series[watch_id] = ratio_series(
                self.history[watch_id][-120:], samples=10, step_s=STEP_S, end_s=end_s
            )

    def _breakers(self) -> Sequence[Signal]:
        """The worker's breaker opens with the outage, and without traffic stays half open."""
        now_us = self.rig.clock.now_us()
        if self.down and self.opened_us is None:
            self.opened_us = now_us
        if not self.down and not self.drained:
            self.opened_us = None
        state = "closed" if self.opened_us is None else "half_open" if self.drained else "open"
        breaker = BreakerStatus(deployment=SICK, state=state, since_us=self.opened_us or START_US, error_ratio=1.0)
        status = ProxyStatus(proxy_id="1", at_us=now_us, snapshot_version=1, breakers=(breaker,))
        return breaker_signals([status], {SICK: "a", BACKUP: "b"}, now_us=now_us)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    """Five calm minutes have passed."""
    made = _World(tmp_path)
    yield made
    made.rig.close()


async def test_an_outage_is_one_incident_from_first_error_to_recovery(world: _World) -> None:
    """Found within fifteen seconds; open while drained and silent; resolved by probes, once traffic could return; never doubled."""
    await world.pass_time(60)
    assert () == world.rig.incidents.list()

    world.down = True
    await world.pass_time(15)
    incident = world.rig.only()
    assert ("firing", "critical") == (incident.state, incident.severity)
    assert {"breaker", "telemetry"} <= set(incident.sources)
    assert incident.fired_us - START_US <= (60 + 15) * US_PER_S

    world.drained = True
    await world.pass_time(600)
    incident = world.rig.only()
    assert "firing" == incident.state
    assert {"breaker_open/a/m1", "probe_failed/a/m1", "success_ratio/a/m1"} == {
        one.signal.signal_id for one in incident.raised
    }

    world.down = False
    await world.pass_time(15 + 30)
    assert "resolved" == world.rig.only().state

    world.drained = False
    await world.pass_time(300)
    assert ("resolved", 0) == (world.rig.only().state, world.rig.only().reopened)


async def test_a_provider_that_fails_again_when_traffic_returns_reopens_its_incident(world: _World) -> None:
    """Probes were well, traffic is not: the same incident, not another."""
    world.down = True
    await world.pass_time(15)
    world.drained, world.down = True, False
    await world.pass_time(90)
    assert "resolved" == world.rig.only().state
    world.drained, world.down = False, True
    await world.pass_time(20)
    assert ("firing", 1) == (world.rig.only().state, world.rig.only().reopened)


async def test_a_restart_in_the_middle_of_an_outage_changes_nothing(world: _World) -> None:
    """The control plane comes back while the deployment is drained and silent."""
    world.down = True
    await world.pass_time(15)
    world.drained = True
    await world.pass_time(60)
    before = world.rig.only()
    world.rig.restart()
    await world.pass_time(60)
    assert ("firing", before.id, before.fired_us) == (
        world.rig.only().state,
        world.rig.only().id,
        world.rig.only().fired_us,
    )
    world.down = False
    await world.pass_time(90)
    assert ("resolved", before.id) == (world.rig.only().state, world.rig.only().id)

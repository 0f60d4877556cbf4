"""Healing with the catalog's real leases, on one journal."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry

from controlplane.alerts.alert import AlertRouter
from controlplane.catalog.leases import Leases
from controlplane.healing.actions import Confirmation
from controlplane.healing.worker import Healing
from controlplane.journal.journal import Journal
from controlplane.metrics import HealingMetrics
from controlplane.settings import HealingSettings
from tests.controlplane.healing.fakes import INCIDENT, SICK, FakeWorld, quick_library


def make(world: FakeWorld, journal: Journal, leases: Leases) -> Healing:
    """A worker whose overrides go into the catalog."""

    def confirmations(lease_id: str) -> Confirmation:
        held = {lease.id for lease in leases.active()}
        return Confirmation(live=1, having=int(lease_id in held))

    registry = CollectorRegistry()
    return Healing(
        journal,
        msgspec.structs.replace(world.view(), leases=leases, confirmations=confirmations),
        quick_library(),
        HealingSettings(),
        alerts=AlertRouter([]),
        metrics=HealingMetrics(registry),
        registry=registry,
    )


async def test_a_run_grants_renews_and_revokes_a_lease_of_the_catalog(world: FakeWorld, journal: Journal) -> None:
    """The override is in the catalog while the outage lasts, under the run's name, and gone when the run closes."""
    leases = Leases(journal, now_us=world.clock.now_us)
    healing = make(world, journal, leases)
    world.fix_helps = True
    run_id = await healing.consider(INCIDENT)
    assert run_id is not None
    seen = []
    for second in range(100):
        await healing.turn()
        active = leases.active()
        seen.append(len(active))
        world.leases.held = {lease.id: lease for lease in active}  # so that the fake's telemetry follows
        world.sick = second < 50
        world.clock.move(1)
    run = healing.runs.show(run_id).run
    assert ("closed", SICK) == (run.status, run.deployment)
    assert ([1] * 50, 0) == (seen[:50], seen[-1])
    types = [event.type for event in journal.load(next(iter(journal.streams("lease/"))))]
    assert ("lease.granted", "lease.revoked") == (types[0], types[-1])
    assert "lease.renewed" in types


async def test_after_a_long_absence_the_override_is_renewed(world: FakeWorld, journal: Journal) -> None:
    """The control plane was away longer than the lease lasts: proxies went back, the next worker puts the override in force again."""
    leases = Leases(journal, now_us=world.clock.now_us)
    first = make(world, journal, leases)
    await first.consider(INCIDENT)
    for _ in range(20):
        await first.turn()
        world.leases.held = {lease.id: lease for lease in leases.active()}
        world.clock.move(1)
    world.clock.move(120)
    assert () == leases.active()
    second = make(world, journal, leases)
    await second.turn()
    assert [SICK] == [lease.deployment for lease in leases.active()]

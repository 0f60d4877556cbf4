"""The first page: money and traffic from the store, the worst of what proxies say, and troubles in words instead of a broken page."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controlplane.api import views
from controlplane.app.overview import OverviewReader
from controlplane.contract.snapshot import LeaseKind
from controlplane.errors import JournalUnavailable
from controlplane.store.client import Store
from tests.controlplane.app.scene import Scene
from tests.controlplane.store.fakes import a_call
from tests.controlplane.store.fill import fill


def reader(scene: Scene, store: Store, *, problems: Sequence[str] = (), journal_away: bool = False) -> OverviewReader:
    """A reader of the scene."""

    async def incidents() -> Sequence[views.IncidentDetail]:
        if journal_away:
            raise JournalUnavailable("the disk is full")
        return ()

    async def kill_switch() -> views.KillSwitch:
        return views.KillSwitch(engaged=False)

    return OverviewReader(
        store,
        scene.publisher,
        scene.clock,
        incidents=incidents,
        kill_switch=kill_switch,
        config_problems=lambda: problems,
    )


async def test_an_empty_installation_has_a_page(scene: Scene, store: Store) -> None:
    """Before the first call everything is zero, every deployment is there, and the one trouble is that no proxy reports."""
    page = await reader(scene, store).overview()
    assert (0, 0, 0) == (page.traffic.calls, page.spend.today_nanousd, page.ledger.proxy_calls)
    assert ["alpha/m", "beta/m", "beta/big"] == [one.id for one in page.deployments]
    assert ("chat", "code") == page.deployments[2].aliases
    assert ("no proxy has reported lately",) == page.troubles


async def test_spend_is_by_tenant_model_and_agent(scene: Scene, store: Store) -> None:
    """The same money in three cuts."""
    at_us = scene.clock.now_us() - 1_000_000
    fill(
        store,
        a_call(1, at_us=at_us, agent="scout", cost_nanousd=5),
        a_call(2, at_us=at_us, agent="miner", tenant="beta", cost_nanousd=7),
    )
    spend = (await reader(scene, store).overview()).spend
    assert (12, 12) == (spend.today_nanousd, spend.hour_nanousd)
    assert (views.SpendLine("miner", 1, 7), views.SpendLine("scout", 1, 5)) == spend.by_agent
    assert ["beta", "acme"] == [line.name for line in spend.by_tenant]
    assert [("gpt", 12)] == [(line.name, line.nanousd) for line in spend.by_model]


async def test_the_ledger_holds_live_workers_against_their_rows(scene: Scene, store: Store) -> None:
    """Rows of workers that are not live, and of probes, are on neither side."""
    fill(store, a_call(1, cost_nanousd=5), a_call(2, cost_nanousd=6), proxy="p1")
    fill(store, a_call(3, cost_nanousd=100), proxy="gone")
    fill(store, a_call(4, cost_nanousd=100), proxy="control")
    scene.report("p1", ledger_calls=2, ledger_nanousd=11)
    scene.report("p2", ledger_calls=1, ledger_nanousd=4)
    ledger = (await reader(scene, store).overview()).ledger
    assert (3, 15, 2, 11) == (
        ledger.proxy_calls,
        ledger.proxy_nanousd,
        ledger.stored_calls,
        ledger.stored_nanousd,
    )


@pytest.mark.parametrize(
    ("first", "second", "worst"),
    [
        ("closed", "open", "open"),
        ("open", "closed", "open"),
        ("half_open", "open", "open"),
        ("half_open", "closed", "half_open"),
        ("nonsense", "half_open", "half_open"),
    ],
)
async def test_a_deployment_is_as_bad_as_its_worst_breaker(
    scene: Scene, store: Store, first: str, second: str, worst: str
) -> None:
    """Whichever worker says it."""
    scene.report("p1", breakers={"alpha/m": first})
    scene.report("p2", breakers={"alpha/m": second})
    page = await reader(scene, store).overview()
    assert worst == page.deployments[0].breaker
    assert "closed" == page.deployments[1].breaker


async def test_a_lease_is_shown_until_it_expires(scene: Scene, store: Store) -> None:
    """A drain, and a share with its size; what has expired is not shown though the snapshot still has it."""
    scene.leases.grant(LeaseKind.DRAIN, "alpha/m", 60.0, run_id="run_1")
    scene.leases.grant(LeaseKind.SHARE, "beta/m", 600.0, run_id="run_1", share=0.25)
    await scene.reloader.caught_up()
    page = await reader(scene, store).overview()
    assert ["drain", "share 25%", ""] == [one.lease for one in page.deployments]
    scene.clock.move(60)
    page = await reader(scene, store).overview()
    assert ["", "share 25%", ""] == [one.lease for one in page.deployments]


async def test_troubles_are_told_on_the_page(scene: Scene, store: Store) -> None:
    """A refused file, a journal that is away and dropped records are sentences; the rest of the page stands."""
    scene.report("p1", spool_dropped=3)
    scene.report("p2", spool_dropped=4)
    page = await reader(scene, store, problems=("line 3: no", "line 4: no"), journal_away=True).overview()
    assert (
        "the configuration file is refused: line 3: no",
        "the configuration file is refused: line 4: no",
        "incidents cannot be read: the disk is full",
        "7 records were dropped by full spools",
    ) == page.troubles
    assert ["p1", "p2"] == [one.id for one in page.proxies]

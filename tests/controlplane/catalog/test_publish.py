"""The publisher wakes who waits, within bounds, and knows which proxies have what."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from controlplane.catalog.publish import Publisher
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import ProxyStatus, Snapshot
from controlplane.errors import BadRequest, JournalUnavailable, TooMany
from controlplane.journal.journal import Journal
from controlplane.metrics import CatalogMetrics
from controlplane.settings import PublishSettings

BOUNDS = PublishSettings(waiters_max=3, proxies_max=3, proxy_expiry_s=10.0, wait_s_max=60.0)


def content(name: str) -> Snapshot:
    """A compiled snapshot with some content."""
    return Snapshot(version=0, created_us=0, hash=name)


def status(proxy_id: str, version: int) -> ProxyStatus:
    """A proxy's word about itself."""
    return ProxyStatus(proxy_id=proxy_id, at_us=1, snapshot_version=version)


@pytest.fixture
async def publisher(journal: Journal, clock: ManualClock, metrics: CatalogMetrics) -> Publisher:
    """A publisher at version 1."""
    return await Publisher.open(journal, content("first"), clock=clock, settings=BOUNDS, metrics=metrics)


def value(metrics: CatalogMetrics, name: str) -> float:
    """A metric's value as Prometheus sees it."""
    (metric,) = getattr(metrics, name).collect()
    return float(metric.samples[0].value)


async def test_what_is_newer_is_given_at_once(publisher: Publisher) -> None:
    """A proxy that has nothing gets the current snapshot without waiting."""
    assert publisher.current is await publisher.wait_newer(0, 25.0)
    assert 1 == publisher.current.version


async def test_waiters_are_woken_by_a_publication(
    publisher: Publisher, clock: ManualClock, metrics: CatalogMetrics
) -> None:
    """All who wait get the same new snapshot at the moment of its publication."""
    waiting = [asyncio.create_task(publisher.wait_newer(1, 25.0)) for _ in range(3)]
    await clock.advance(5.0)
    assert (3.0, [False] * 3) == (value(metrics, "waiters"), [task.done() for task in waiting])
    published = await publisher.publish(content("second"), ("tenants: added acme",))
    assert [published] * 3 == await asyncio.gather(*waiting)
    assert (2, 2.0, 0.0) == (published.version, value(metrics, "version"), value(metrics, "waiters"))


async def test_the_same_content_wakes_nobody(publisher: Publisher, clock: ManualClock) -> None:
    """Publishing what is current already keeps the number, and waiters go on waiting until their time is up."""
    waiting = asyncio.create_task(publisher.wait_newer(1, 25.0))
    assert 1 == (await publisher.publish(content("first"))).version
    await clock.advance(24.9)
    assert not waiting.done()
    await clock.advance(0.2)
    assert await waiting is None


async def test_a_wait_is_bounded_by_the_settings(publisher: Publisher, clock: ManualClock) -> None:
    """A wish to wait for ever ends at the longest wait there is."""
    waiting = asyncio.create_task(publisher.wait_newer(1, 1e9))
    await clock.advance(60.1)
    assert await waiting is None
    assert await publisher.wait_newer(1, -5.0) is None


async def test_too_many_waiters_are_sent_away(
    publisher: Publisher, clock: ManualClock, metrics: CatalogMetrics
) -> None:
    """The fourth of at most three waiters is refused and counted; when one has left there is room again."""
    waiting = [asyncio.create_task(publisher.wait_newer(1, 25.0)) for _ in range(3)]
    await clock.advance(0.0)
    with pytest.raises(TooMany):
        await publisher.wait_newer(1, 25.0)
    assert 1.0 == value(metrics, "waiters_refused")
    waiting.pop().cancel()
    await clock.advance(0.0)
    waiting.append(asyncio.create_task(publisher.wait_newer(1, 25.0)))
    await clock.advance(26.0)
    assert [None] * 3 == await asyncio.gather(*waiting)
    assert 0 == clock.sleepers


@pytest.mark.parametrize("have", [-1, 2**53])
async def test_impossible_versions_are_refused(publisher: Publisher, have: int) -> None:
    """A number that no snapshot can have does not move the numbering."""
    with pytest.raises(BadRequest):
        await publisher.wait_newer(have, 1.0)
    assert 1 == publisher.current.version


async def test_a_lost_journal_does_not_strand_the_proxies(publisher: Publisher) -> None:
    """A proxy with a higher number than was ever given out gets the current content under a number above its own."""
    snapshot = await publisher.wait_newer(700, 25.0)
    assert snapshot is not None
    assert (701, "first") == (snapshot.version, snapshot.hash)
    assert 702 == (await publisher.publish(content("second"))).version


async def test_a_restart_keeps_the_number(
    publisher: Publisher, journal: Journal, clock: ManualClock, metrics: CatalogMetrics
) -> None:
    """Another process with the same content goes on with the same number, with other content with the next."""
    await publisher.publish(content("second"))
    for name, version in (("second", 2), ("third", 3)):
        again = await Publisher.open(journal, content(name), clock=clock, settings=BOUNDS, metrics=metrics)
        assert version == again.current.version


async def test_all_live_proxies_must_confirm(publisher: Publisher, clock: ManualClock, metrics: CatalogMetrics) -> None:
    """A version is confirmed when the last live proxy reports it, or when the one that lags has fallen silent."""
    confirmed = asyncio.create_task(publisher.confirmed(2, 30.0))
    await clock.advance(1.0)
    publisher.confirm(status("a", 2))
    publisher.confirm(status("b", 1))
    await clock.advance(1.0)
    assert (2.0, False) == (value(metrics, "proxies"), confirmed.done())
    publisher.confirm(status("b", 3))
    await clock.advance(0.0)
    assert await confirmed


async def test_the_time_to_all_live_proxies_is_measured_once(
    publisher: Publisher, clock: ManualClock, metrics: CatalogMetrics
) -> None:
    """From the publication until the last live worker has it; later reports of the same version add nothing."""

    def measured() -> dict[str, float]:
        (family,) = metrics.confirm_seconds.collect()
        return {one.name.rpartition("_")[2]: one.value for one in family.samples if not one.labels}

    publisher.confirm(status("a", 1))
    publisher.confirm(status("b", 1))
    await publisher.publish(content("second"))
    await clock.advance(1.0)
    publisher.confirm(status("a", 2))
    assert 0.0 == measured()["count"]
    await clock.advance(2.0)
    for _ in range(2):
        publisher.confirm(status("b", 2))
    assert (1.0, 3.0) == (measured()["count"], measured()["sum"])


async def test_nobody_cannot_confirm(publisher: Publisher, clock: ManualClock) -> None:
    """Without a live proxy nothing is confirmed, and the wait ends in time."""
    confirmed = asyncio.create_task(publisher.confirmed(1, 5.0))
    await clock.advance(5.1)
    assert not await confirmed
    publisher.confirm(status("a", 1))
    assert await publisher.confirmed(1, 0.0)


async def test_silent_proxies_are_forgotten(publisher: Publisher, clock: ManualClock, metrics: CatalogMetrics) -> None:
    """A proxy that has not reported for its expiry no longer counts, neither as live nor as behind."""
    publisher.confirm(status("old", 0))
    await clock.advance(9.0)
    publisher.confirm(status("new", 1))
    assert (["new", "old"], 1.0) == (
        [known.proxy_id for known in publisher.statuses()],
        value(metrics, "proxies_behind"),
    )
    assert not publisher.is_confirmed(1)
    await clock.advance(2.0)
    assert publisher.is_confirmed(1)
    assert (["new"], 0.0) == ([known.proxy_id for known in publisher.statuses()], value(metrics, "proxies_behind"))


async def test_too_many_proxies_are_counted(publisher: Publisher, metrics: CatalogMetrics) -> None:
    """The registry never grows beyond its bound, whatever ids turn up; those it knows may go on reporting."""
    for number in range(5):
        publisher.confirm(status(f"p{number}", 1))
    publisher.confirm(status("p0", 2))
    assert {"p0": 2, "p1": 1, "p2": 1} == {known.proxy_id: known.snapshot_version for known in publisher.statuses()}
    assert 2.0 == value(metrics, "proxies_refused")


async def test_a_failing_journal_changes_nothing(journal_url: str, clock: ManualClock, metrics: CatalogMetrics) -> None:
    """A snapshot whose number could not be written down is not given out, and the next try gives it out."""
    impatient = Journal.open(journal_url, busy_timeout_s=0.05)
    other = await Publisher.open(impatient, content("first"), clock=clock, settings=BOUNDS, metrics=metrics)
    with closing(sqlite3.connect(journal_url.removeprefix("sqlite:///"))) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable):
            await other.publish(content("second"))
        assert (1, "first") == (other.current.version, other.current.hash)
    assert 2 == (await other.publish(content("second"))).version
    impatient.close()

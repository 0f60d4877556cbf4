"""A changed file or journal becomes a new snapshot as a whole, or is refused while the last good one stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Gauge

from controlplane.catalog.compile import NoPrices
from controlplane.catalog.file import ConfigFile
from controlplane.catalog.keys import Keys
from controlplane.catalog.leases import Leases
from controlplane.catalog.load import load
from controlplane.catalog.reload import CatalogChanged, CatalogRefused, Reloader
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import LeaseKind
from controlplane.journal.events import Codec
from controlplane.journal.journal import Journal
from controlplane.metrics import CatalogMetrics

TEXT = """upstreams:
  - {name: a, base_url: https://a.example/v1}
models:
  - {name: fast, deployments: [{upstream: a, model: m}]}
tenants:
  - {name: acme}
"""
CODEC: Codec[CatalogChanged | CatalogRefused] = Codec(CatalogChanged | CatalogRefused)


def value(gauge: Gauge) -> float:
    """A gauge's value as Prometheus sees it."""
    (metric,) = gauge.collect()
    return metric.samples[0].value


class World:
    """A reloader on a real file and a real journal, and what it told."""

    def __init__(self, path: Path, journal: Journal, clock: ManualClock, metrics: CatalogMetrics) -> None:
        self.path, self.journal, self.clock, self.metrics = path, journal, clock, metrics
        self.applied: list[ConfigFile] = []
        self._writes = 0

    async def open(self) -> Reloader:
        """The reloader; its first turns have found nothing new."""
        reloader = await Reloader.open(
            load(self.path),
            journal=self.journal,
            prices=NoPrices(),
            clock=self.clock,
            metrics=self.metrics,
            applied=self.applied.append,
        )
        assert [False, False] == [await reloader.turn(), await reloader.turn()]
        return reloader

    async def write(self, text: str, reloader: Reloader) -> list[bool]:
        """Changes the file and lets the reloader look twice."""
        self._writes += 1
        self.path.write_text(text)
        return [await reloader.turn(), await reloader.turn()]

    def events(self) -> list[CatalogChanged | CatalogRefused]:
        """What the journal says about the file."""
        return [CODEC.decode(event) for event in self.journal.load("config")]


@pytest.fixture
def world(tmp_path: Path, journal: Journal, clock: ManualClock, metrics: CatalogMetrics) -> World:
    """A world with a valid file."""
    path = tmp_path / "hephaestus.yaml"
    path.write_text(TEXT)
    return World(path, journal, clock, metrics)


async def test_a_changed_file_is_applied_as_a_whole(world: World) -> None:
    """A change gives a new version, an event that names what changed, and a word to whoever listens."""
    reloader = await world.open()
    assert [False, True] == await world.write(TEXT + "  - {name: beta}\n", reloader)
    current = reloader.publisher.current
    assert (2, ["acme", "beta"]) == (current.version, [tenant.id for tenant in current.tenants])
    (event,) = world.events()
    assert isinstance(event, CatalogChanged)
    assert ("tenants: added beta",) == event.changed
    assert [reloader.config] == world.applied


async def test_a_bad_file_is_refused_with_file_and_line(world: World) -> None:
    """The last good configuration stays; the mistake is told once, also when it is looked at again, and ends when it is mended."""
    reloader = await world.open()
    assert [False, False] == await world.write(TEXT.replace("name: acme", "nmae: acme"), reloader)
    assert not await reloader.turn()
    assert 1 == reloader.publisher.current.version
    (event,) = world.events()
    assert isinstance(event, CatalogRefused)
    assert event.problems == reloader.problems
    assert event.problems[0].startswith(f"{world.path}:6: unknown key `nmae`")
    assert 1.0 == value(world.metrics.refused)
    await world.write(TEXT, reloader)
    assert ((), 0.0, []) == (reloader.problems, value(world.metrics.refused), world.applied)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text("models: ["),
        lambda path: path.write_text(""),
        lambda path: path.write_text("# written by a template that found nothing\n"),
    ],
    ids=["gone", "binary", "torn", "empty", "comment"],
)
async def test_a_file_that_cannot_be_read_changes_nothing(world: World, harm: Callable[[Path], object]) -> None:
    """A missing, binary, torn or empty file leaves what is in force alone."""
    reloader = await world.open()
    harm(world.path)
    assert [False, False] == [await reloader.turn(), await reloader.turn()]
    assert (1, 1) == (reloader.publisher.current.version, len(world.events()))


async def test_everything_is_taken_away_by_an_empty_mapping(world: World) -> None:
    """Whoever means it writes `{}`."""
    reloader = await world.open()
    assert [False, True] == await world.write("{}\n", reloader)
    assert () == tuple(reloader.publisher.current.tenants)


async def test_a_file_that_is_being_written_is_left_alone(world: World) -> None:
    """A file that changes between two looks is not read: an editor that truncates first never empties the catalog."""
    reloader = await world.open()
    world.path.write_text("")
    assert not await reloader.turn()
    world.path.write_text(TEXT + "  - {name: beta}\n")
    assert not await reloader.turn()
    assert await reloader.turn()
    assert 2 == len(reloader.publisher.current.tenants)
    assert 2 == reloader.publisher.current.version


async def test_a_comment_changes_nothing(world: World) -> None:
    """A file that says the same in other words gives neither a version nor an event."""
    reloader = await world.open()
    assert [False, False] == await world.write("# hello\n" + TEXT, reloader)
    assert (1, [], []) == (reloader.publisher.current.version, world.events(), world.applied)


async def test_settings_wait_for_a_restart(world: World) -> None:
    """A changed server section is told, and changes no snapshot."""
    reloader = await world.open()
    assert [False, False] == await world.write("server: {port: 4100, door: {concurrency: 9}}\n" + TEXT, reloader)
    (event,) = world.events()
    assert isinstance(event, CatalogChanged)
    assert ((), ("server.port", "server.door.concurrency")) == (event.changed, event.restart)


async def test_keys_made_by_another_process_are_noticed(world: World, journal_url: str) -> None:
    """A key that the command line makes, in its own connection, is in the next snapshot, and gone after its revocation."""
    reloader = await world.open()
    other = Journal.open(journal_url, now_us=world.clock.now_us)
    keys = Keys(other, pepper=b"p" * 32, now_us=world.clock.now_us, tenants=lambda: {"acme"}, models=lambda: {"fast"})
    issued = keys.create("acme")
    assert await reloader.turn()
    assert [issued.record.hash] == [entry.hash for entry in reloader.publisher.current.keys]
    keys.revoke(issued.record.id)
    assert () == (await reloader.caught_up()).keys
    other.close()


async def test_a_lease_ends_by_time_alone(world: World) -> None:
    """A granted lease is in the next snapshot; when it has expired a new snapshot is without it, though nothing was appended."""
    reloader = await world.open()
    lease = Leases(world.journal, now_us=world.clock.now_us).grant(LeaseKind.DRAIN, "a/m", 30.0, run_id="run_1")
    assert (lease,) == (await reloader.caught_up()).leases
    assert 1.0 == value(world.metrics.leases)
    world.clock.move(29)
    assert not await reloader.turn()
    world.clock.move(1)
    assert await reloader.turn()
    assert ((), 3) == (reloader.publisher.current.leases, reloader.publisher.current.version)
    assert not await reloader.turn()
    assert 0.0 == value(world.metrics.leases)


async def test_secrets_in_a_bad_file_do_not_reach_the_journal(world: World) -> None:
    """A secret that somebody pasted where it does not belong is masked in the event."""
    reloader = await world.open()
    await world.write(TEXT + "  - {name: beta, models: [sk-live-abcdefghijkl]}\n", reloader)
    (event,) = world.journal.load("config")
    assert b"abcdefghijkl" not in event.data


async def test_the_loop_follows_the_file_by_itself(world: World) -> None:
    """The running loop applies a change within a moment and stops when told."""
    reloader, stop = await world.open(), asyncio.Event()
    running = asyncio.create_task(reloader.run(stop, every_s=0.05))
    world.path.write_text(TEXT + "  - {name: beta}\n")
    async with asyncio.timeout(60):
        while reloader.publisher.current.version < 2:
            await asyncio.to_thread(world.journal.position)
        stop.set()
        await running
    assert 2 == len(reloader.publisher.current.tenants)

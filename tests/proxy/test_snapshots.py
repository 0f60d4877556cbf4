"""Tests of how snapshots come, are judged, and are kept."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from prometheus_client import CollectorRegistry

from controlplane.catalog.publish import Publisher
from controlplane.clock import ManualClock
from controlplane.contract.snapshot import Snapshot, TenantPolicy, decode_snapshot, encode_snapshot
from controlplane.journal.journal import Journal
from controlplane.metrics import CatalogMetrics
from controlplane.settings import PublishSettings
from proxy.snapshots import FULL_POLL_EVERY, Snapshots
from proxy.uplink import open_uplink
from tests.proxy.control_plane_fake import FakeControlPlane, control_plane


def _snapshot(version: int, *, created_us: int | None = None, tenant: str = "acme") -> Snapshot:
    made = version if created_us is None else created_us
    return Snapshot(version=version, created_us=made, hash=f"h{version}{tenant}", tenants=(TenantPolicy(tenant),))


class Applied:
    """Takes snapshots, but for those of a tenant that cannot be compiled."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def __call__(self, snapshot: Snapshot) -> None:
        """The compiler."""
        if snapshot.tenants[0].id == "impossible":
            raise KeyError("no such upstream")
        self.versions.append(snapshot.version)


@pytest.fixture
async def plane() -> AsyncIterator[FakeControlPlane]:
    """A control plane."""
    async with control_plane() as fake:
        yield fake


@pytest.fixture
async def snapshots(tmp_path: Path, plane: FakeControlPlane) -> AsyncIterator[Snapshots]:
    """A poller with an empty disk."""
    async with open_uplink(plane.url, token="t0ken") as uplink:
        yield _poller(uplink, tmp_path)


def _poller(uplink: object, directory: Path) -> Snapshots:
    return Snapshots(
        uplink,  # type: ignore[arg-type]
        path=directory / "proxy" / "snapshot.json",
        proxy_id="prx_1",
        apply=Applied(),
        poll_s=25,
        retry_s_max=5,
        jitter=lambda: 1.0,
    )


def _versions(snapshots: Snapshots) -> list[int]:
    applied = snapshots._apply
    assert isinstance(applied, Applied)
    return applied.versions


def _answer(plane: FakeControlPlane, document: bytes, status: int = 200) -> None:
    plane.answer = lambda asked: (status, document)


async def test_a_newer_snapshot_is_applied_and_kept(
    snapshots: Snapshots, plane: FakeControlPlane, tmp_path: Path
) -> None:
    """The poll says what we have; the answer is in use at once and on disk for its owner alone."""
    for version in (3, 4):
        _answer(plane, encode_snapshot(_snapshot(version)))
        await snapshots.step()
    assert [3, 4] == _versions(snapshots)
    path = tmp_path / "proxy" / "snapshot.json"
    assert _snapshot(4) == decode_snapshot(path.read_bytes())
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(path.parent.iterdir())
    assert ["/api/v1/internal/snapshot"] * 2 == [asked.path for asked in plane.asked]
    assert [["0"], ["3"]] == [parse_qs(asked.query)["have"] for asked in plane.asked]
    assert {"have": ["3"], "proxy": ["prx_1"], "wait_s": ["25"]} == parse_qs(plane.asked[1].query)
    assert "Bearer t0ken" == plane.asked[0].headers["authorization"]


async def test_nothing_newer_changes_nothing(snapshots: Snapshots, plane: FakeControlPlane) -> None:
    """A 304 is a success: the next poll follows at once, and nothing is refused."""
    _answer(plane, encode_snapshot(_snapshot(3)))
    await snapshots.step()
    _answer(plane, b"", 304)
    assert 0.1 == await snapshots.step()
    assert ([3], 0, 0) == (_versions(snapshots), snapshots.refused_total, snapshots.failures_total)


async def test_a_cold_start_without_the_control_plane(tmp_path: Path, snapshots: Snapshots) -> None:
    """The last good snapshot on disk is enough to serve; an empty disk says so."""
    assert not snapshots.load()
    path = tmp_path / "proxy" / "snapshot.json"
    path.parent.mkdir()
    path.write_bytes(encode_snapshot(_snapshot(9)))
    async with open_uplink("http://127.0.0.1:1", token="t") as uplink:
        started = _poller(uplink, tmp_path)
        assert started.load()
        assert [0.1, 0.2, 0.4] == [await started.step() for _ in range(3)]
    assert ([9], 3) == (_versions(started), started.failures_total)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"<html>it works</html>",
        b'{"version":"x","created_us":1}',
        b"\xff\xfe",
        b"[" * 100_000,
        encode_snapshot(_snapshot(8, tenant="impossible")),
    ],
)
async def test_a_bad_document_is_refused_and_the_last_good_one_stays(
    snapshots: Snapshots, plane: FakeControlPlane, tmp_path: Path, document: bytes
) -> None:
    """In memory and on disk, whether it comes from the wire or lies there at a start; the pause grows while it lasts."""
    _answer(plane, encode_snapshot(_snapshot(7)))
    await snapshots.step()
    _answer(plane, document)
    assert [0.1, 0.2] == [await snapshots.step() for _ in range(2)]
    assert ([7], 2) == (_versions(snapshots), snapshots.refused_total)
    path = tmp_path / "proxy" / "snapshot.json"
    assert _snapshot(7) == decode_snapshot(path.read_bytes())
    path.write_bytes(document)
    restarted = _poller(snapshots._uplink, tmp_path)
    assert not restarted.load()


async def test_an_older_snapshot_is_refused(snapshots: Snapshots, plane: FakeControlPlane) -> None:
    """A stale replica cannot take a fleet back."""
    for version in (7, 6):
        _answer(plane, encode_snapshot(_snapshot(version)))
        await snapshots.step()
    assert ([7], 1) == (_versions(snapshots), snapshots.refused_total)


async def test_a_restored_control_plane_is_believed_though_it_counts_from_less(
    snapshots: Snapshots, plane: FakeControlPlane
) -> None:
    """A lower version made later than ours comes from a restored control plane, and is taken."""
    _answer(plane, encode_snapshot(_snapshot(120, created_us=1000)))
    await snapshots.step()
    _answer(plane, encode_snapshot(_snapshot(80, created_us=2000)))
    await snapshots.step()
    assert [120, 80] == _versions(snapshots)


async def test_now_and_then_the_whole_document_is_asked_for(snapshots: Snapshots, plane: FakeControlPlane) -> None:
    """A control plane that only tells what is newer than `have` is asked with 0 once in a while; the same answer changes nothing."""
    current = encode_snapshot(_snapshot(5))
    plane.answer = lambda asked: (200, current) if parse_qs(asked.query)["have"] == ["0"] else (304, b"")
    for _ in range(2 * FULL_POLL_EVERY):
        await snapshots.step()
    haves = [int(parse_qs(asked.query)["have"][0]) for asked in plane.asked]
    expected = [
        0 if at in (0, FULL_POLL_EVERY - 1, 2 * FULL_POLL_EVERY - 1) else 5 for at in range(2 * FULL_POLL_EVERY)
    ]
    assert expected == haves
    assert ([5], 0) == (_versions(snapshots), snapshots.refused_total)


@pytest.mark.parametrize("status", [0, 401, 404, 500, 503])
async def test_errors_are_counted_and_tried_again_with_growing_pauses(
    snapshots: Snapshots, plane: FakeControlPlane, status: int
) -> None:
    """Whatever the control plane says, the proxy goes on; after a success the pauses start anew."""
    _answer(plane, b"{}", status)
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0] == pytest.approx([await snapshots.step() for _ in range(8)])
    _answer(plane, encode_snapshot(_snapshot(1)))
    await snapshots.step()
    _answer(plane, b"{}", status)
    assert 0.1 == await snapshots.step()


async def test_a_snapshot_that_cannot_be_kept_is_used_all_the_same(
    snapshots: Snapshots, plane: FakeControlPlane, tmp_path: Path
) -> None:
    """A disk that refuses costs only the next cold start, and is counted."""
    (tmp_path / "proxy").write_text("a file where the directory should be")
    _answer(plane, encode_snapshot(_snapshot(2)))
    await snapshots.step()
    assert ([2], 1) == (_versions(snapshots), snapshots.unsaved_total)


class PublisherTransport(httpx.AsyncBaseTransport):
    """The control plane's publisher at the other end of the poll, as its internal API puts it there; None: it is down."""

    def __init__(self) -> None:
        self.publisher: Publisher | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One poll, without waiting."""
        if self.publisher is None:
            raise httpx.ConnectError("refused")
        snapshot = await self.publisher.wait_newer(int(request.url.params["have"]), 0.0)
        return httpx.Response(304) if snapshot is None else httpx.Response(200, content=encode_snapshot(snapshot))


def _compiled(tenant: str) -> Snapshot:
    return Snapshot(version=0, created_us=0, hash=tenant, tenants=(TenantPolicy(tenant),))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (9, 1), (3, 2), (2, 9), (5, 5)])
async def test_a_control_plane_restored_from_a_backup_is_followed_at_once(
    tmp_path: Path, before: int, after: int
) -> None:
    """Whether its count is behind ours, equal or ahead: the first poll after the interruption brings its content, the next its changes."""
    clock = ManualClock()
    link = PublisherTransport()
    journals: list[Journal] = []

    async def control_plane_of(name: str) -> Publisher:
        journal = Journal.open(f"sqlite:///{tmp_path}/{name}.db", now_us=clock.now_us)
        journals.append(journal)
        metrics = CatalogMetrics(CollectorRegistry())
        return await Publisher.open(
            journal, _compiled(f"{name}-0"), clock=clock, settings=PublishSettings(), metrics=metrics
        )

    async with httpx.AsyncClient(base_url="http://plane", transport=link) as uplink:
        snapshots = _poller(uplink, tmp_path)
        link.publisher = await control_plane_of("lost")
        for number in range(1, before):
            await link.publisher.publish(_compiled(f"lost-{number}"))
        await snapshots.step()
        link.publisher = None
        assert 0.1 == await snapshots.step()
        await clock.advance(5.0)
        link.publisher = await control_plane_of("restored")
        for number in range(1, after):
            await link.publisher.publish(_compiled(f"restored-{number}"))
        await snapshots.step()
        assert snapshots.current is not None
        assert f"restored-{after - 1}" == snapshots.current.tenants[0].id
        await link.publisher.publish(_compiled("restored-last"))
        await snapshots.step()
        assert "restored-last" == snapshots.current.tenants[0].id
    for journal in journals:
        journal.close()
    assert 0 == snapshots.refused_total

"""Tests of the shipper against a control plane on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.contract.wire import decode_batch
from proxy.ledger import Ledger
from proxy.shipper import POISON, Shipper
from proxy.spool import Spool
from proxy.uplink import Backoff, open_uplink
from tests.proxy.control_plane_fake import FakeControlPlane, control_plane
from tests.proxy.state_fakes import FakeClock, make_record


@pytest.fixture
async def plane() -> AsyncIterator[FakeControlPlane]:
    """A control plane."""
    async with control_plane() as fake:
        yield fake


@pytest.fixture
async def shipper(tmp_path: Path, plane: FakeControlPlane) -> AsyncIterator[Shipper]:
    """A shipper of an empty spool, without chance in its pauses."""
    clock = FakeClock()
    spool = Spool(tmp_path, ledger=Ledger(), bytes_max=10**9, segment_bytes=10**6, segment_age_s=1, monotonic=clock.s)
    async with open_uplink(plane.url, token="t0ken") as uplink:
        yield Shipper(spool, uplink, tick_s=0.5, retry_s_max=8, jitter=lambda: 1.0)
    spool.close()


def _fill(shipper: Shipper, *names: str) -> None:
    for name in names:
        shipper._spool.append(make_record(call_id=name))
        shipper._spool.seal()


def _names(plane: FakeControlPlane) -> list[str]:
    return [record.call_id for asked in plane.asked for record in decode_batch(asked.body)]


async def test_segments_go_in_order_as_they_lie_and_are_deleted(shipper: Shipper, plane: FakeControlPlane) -> None:
    """Each segment is one authorized POST under its own token, and is gone after the 200."""
    _fill(shipper, "a", "b")
    assert [0.0, 0.0, 0.5] == [await shipper.step() for _ in range(3)]
    assert ["a", "b"] == _names(plane)
    spool = shipper._spool
    assert [f"{spool.proxy_id}/{number:012d}" for number in (1, 2)] == [
        asked.headers["x-heph-batch-token"] for asked in plane.asked
    ]
    first = plane.asked[0]
    assert ("POST", "/api/v1/internal/batches", "Bearer t0ken") == (
        first.method,
        first.path,
        first.headers["authorization"],
    )
    assert (0, None, 2) == (spool.bytes_stored, spool.oldest, shipper.shipped_total)


@pytest.mark.parametrize("status", [0, 302, 401, 403, 404, 408, 429, 500, 503])
async def test_trouble_that_is_not_the_batch_s_own_is_tried_again(
    shipper: Shipper, plane: FakeControlPlane, status: int
) -> None:
    """The segment stays, the pauses double up to the limit, and the same token is sent until it succeeds."""
    _fill(shipper, "a")
    plane.answer = lambda asked: (status, b"no")
    assert [0.25, 0.5, 1, 2, 4, 8, 8] == [await shipper.step() for _ in range(7)]
    assert 1 == shipper._spool.oldest
    plane.answer = lambda asked: (200, b"")
    assert 0.0 == await shipper.step()
    assert 1 == len({asked.headers["x-heph-batch-token"] for asked in plane.asked})
    assert (1, 7, "") == (shipper.shipped_total, shipper.failures_total, shipper.last_error)
    plane.answer = lambda asked: (status, b"no")
    _fill(shipper, "b")
    assert 0.25 == await shipper.step()


async def test_a_control_plane_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    """A refused connection loses nothing."""
    spool = Spool(tmp_path, ledger=Ledger(), bytes_max=10**9, segment_bytes=1, segment_age_s=1)
    spool.append(make_record())
    async with open_uplink("http://127.0.0.1:1", token="t") as uplink:
        shipper = Shipper(spool, uplink, tick_s=0.5, retry_s_max=8, jitter=lambda: 0.0)
        assert 0.125 == await shipper.step()
        assert "Connect" in shipper.last_error
    assert 1 == spool.oldest
    spool.close()


@pytest.mark.parametrize("status", sorted(POISON))
async def test_a_batch_that_is_not_acceptable_is_set_aside(
    shipper: Shipper, plane: FakeControlPlane, status: int
) -> None:
    """A poisoned segment is kept in quarantine and counted, and the next one goes at once."""
    _fill(shipper, "bad", "good")
    plane.answer = lambda asked: (status if b"bad" in asked.body else 200, b"")
    assert [0.0, 0.0] == [await shipper.step() for _ in range(2)]
    spool = shipper._spool
    assert (1, 1, None) == (spool.quarantined, shipper.shipped_total, spool.oldest)


async def test_a_segment_that_somebody_took_away_is_counted_as_lost(shipper: Shipper, tmp_path: Path) -> None:
    """A missing file does not stop the rest."""
    _fill(shipper, "a", "b")
    (tmp_path / f"{1:012d}.seg").unlink()
    assert [0.0, 0.0] == [await shipper.step() for _ in range(2)]
    assert (1, 1) == (shipper.lost_total, shipper.shipped_total)


async def test_drain_ships_what_is_open_and_stops_at_the_first_failure(
    shipper: Shipper, plane: FakeControlPlane
) -> None:
    """At shutdown the open segment goes too; when the control plane is down the rest stays for the next start."""
    shipper._spool.append(make_record(call_id="a"))
    assert await shipper.drain()
    assert ["a"] == _names(plane)
    plane.answer = lambda asked: (503, b"")
    _fill(shipper, "b", "c")
    assert not await shipper.drain()
    assert 2 == shipper._spool.oldest
    assert 2 == len(plane.asked)


async def test_one_request_at_a_time(shipper: Shipper, plane: FakeControlPlane) -> None:
    """A drain while the loop runs does not send a segment twice."""
    _fill(shipper, *"abcdef")
    running = asyncio.create_task(shipper.run())
    await shipper.drain()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert list("abcdef") == _names(plane)
    assert 1 == plane.inflight_max


def test_pauses_are_bounded_and_at_least_half_their_step() -> None:
    """Chance spreads the pauses of many proxies, but never makes one shorter than half its step."""
    shortest = Backoff(min_s=1, max_s=10, jitter=lambda: 0.0)
    longest = Backoff(min_s=1, max_s=10, jitter=lambda: 1.0)
    assert [0.5, 1, 2, 4, 5, 5] == [shortest.failed() for _ in range(6)]
    assert [1, 2, 4, 8, 10, 10] == [longest.failed() for _ in range(6)]
    for _ in range(200):
        assert longest.failed() <= 10
    longest.succeeded()
    assert 1 == longest.failed()

"""Tests of the status report."""

from __future__ import annotations

import asyncio

import msgspec

from controlplane.contract.snapshot import ProxyStatus
from proxy.status import StatusReporter
from proxy.uplink import open_uplink
from tests.proxy.control_plane_fake import control_plane

STATUS = ProxyStatus("prx_1", at_us=5, snapshot_version=3, lease_ids=("lease_1",), ledger_nanousd=7)


async def test_a_status_is_posted_as_json() -> None:
    """The control plane gets exactly what was built, with the internal token."""
    async with control_plane() as plane, open_uplink(plane.url, token="t0ken") as uplink:
        reporter = StatusReporter(uplink, build=lambda: (STATUS,), every_s=60)
        assert await reporter.send()
    (asked,) = plane.asked
    assert ("POST", "/api/v1/internal/status", "Bearer t0ken") == (
        asked.method,
        asked.path,
        asked.headers["authorization"],
    )
    assert STATUS == msgspec.json.decode(asked.body, type=ProxyStatus)


async def test_a_refused_or_unheard_status_is_counted_and_not_repeated() -> None:
    """Neither an error nor a dead control plane raises; the next report says more."""
    async with control_plane() as plane, open_uplink(plane.url, token="t") as uplink:
        plane.answer = lambda asked: (500, b"")
        reporter = StatusReporter(uplink, build=lambda: (STATUS,), every_s=60)
        assert not await reporter.send()
    async with open_uplink("http://127.0.0.1:1", token="t") as nowhere:
        alone = StatusReporter(nowhere, build=lambda: (STATUS,), every_s=60)
        assert not await alone.send()
    assert (1, 1, 0) == (reporter.failures_total, alone.failures_total, reporter.sent_total)


async def test_a_hurried_report_does_not_wait_for_its_turn() -> None:
    """After a new snapshot the proof of it goes out at once, though the next turn is an hour away."""
    async with control_plane() as plane, open_uplink(plane.url, token="t") as uplink:
        reporter = StatusReporter(uplink, build=lambda: (STATUS,), every_s=3600)
        running = asyncio.create_task(reporter.run())
        await plane.heard(1)
        reporter.hurry()
        await plane.heard(2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert 2 == len(plane.asked)


async def test_reports_are_regular() -> None:
    """Without hurry a report goes out each time its period has passed."""
    async with control_plane() as plane, open_uplink(plane.url, token="t") as uplink:
        reporter = StatusReporter(uplink, build=lambda: (STATUS,), every_s=0.01)
        running = asyncio.create_task(reporter.run())
        await plane.heard(3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert reporter.failures_total == 0

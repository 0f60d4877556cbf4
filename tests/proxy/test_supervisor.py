"""Several workers as real processes: they share a port, a dead one comes back, all stop when told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from controlplane.contract.keys import hash_key
from controlplane.contract.snapshot import KeyEntry, Route, Snapshot, TenantPolicy
from tests.ports import free_port
from tests.proxy.fakes import KEY, PEPPER
from tests.proxy.processes import keep, said, start

pytestmark = pytest.mark.e2e


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Process, int]]:
    """`python -m proxy` with two workers that start from a snapshot on disk, and its port."""
    port = free_port()
    snapshot = Snapshot(
        version=3,
        created_us=time.time_ns() // 1000,
        tenants=(TenantPolicy(id="acme"),),
        keys=(KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="k", tenant="acme"),),
        routes=(Route(alias="gpt", deployments=()),),
    )
    keep(tmp_path, snapshot)
    process = await start(tmp_path, port, 2)
    yield process, port
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_a_worker_that_dies_is_replaced_and_all_stop_when_told(running: tuple[Process, int]) -> None:
    """After `kill -9` of one worker a new one listens; SIGTERM ends supervisor and workers with status 0."""
    process, port = running
    workers = psutil.Process(process.pid).children()
    workers[0].kill()
    await said(process, "a worker died")
    await said(process, "proxy listens")
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {KEY}"}
    ) as client:
        assert "gpt" == (await client.get("/v1/models")).json()["data"][0]["id"]
    workers = psutil.Process(process.pid).children()
    assert 2 == len(workers)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30.0):
        await process.communicate()
    assert 0 == process.returncode
    assert [False, False] == [worker.is_running() for worker in workers]


async def refused(port: int) -> None:
    """Returns when nobody listens any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
        writer.close()


async def test_who_connects_during_the_drain_is_refused_at_once(running: tuple[Process, int]) -> None:
    """After SIGTERM a worker may need its time, and meanwhile a new connection is refused, so that it can go elsewhere."""
    process, port = running
    busy, _ = psutil.Process(process.pid).children()
    busy.suspend()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30.0):
        await refused(port)
        assert busy.is_running()
        busy.resume()
        _, log = await process.communicate()
    assert (0, False) == (process.returncode, b"Traceback" in log)


async def test_workers_do_not_outlive_their_supervisor(running: tuple[Process, int]) -> None:
    """After `kill -9` of the supervisor the workers stop by themselves."""
    process, _ = running
    workers = psutil.Process(process.pid).children()
    process.kill()
    await process.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, workers, 20.0)
    assert (2, 0) == (len(gone), len(alive))


async def test_settings_that_do_not_fit_end_it_with_status_2(tmp_path: Path) -> None:
    """An unknown setting or a missing secret is said at once."""
    path = tmp_path / "settings.json"
    path.write_text('{"prot": 1}')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "--settings", str(path), stderr=PIPE, env=os.environ
    )
    _, errors = await process.communicate()
    assert 2 == process.returncode
    assert b"prot" in errors


class Caller:
    """Asks for the models again and again over kept connections, and over fresh ones, until told to stop."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/models"
        self.statuses: list[int] = []
        self.enough = asyncio.Event()

    async def kept(self) -> None:
        """Over one connection, as long as the server keeps it."""
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=30.0) as client:
            while not self.enough.is_set():
                self.statuses.append((await client.get(self._url)).status_code)

    async def fresh(self) -> None:
        """Over a new connection each time."""
        while not self.enough.is_set():
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=30.0) as client:
                self.statuses.append((await client.get(self._url)).status_code)


async def test_workers_are_replaced_one_by_one_without_a_failed_call(running: tuple[Process, int]) -> None:
    """After SIGHUP every worker is another process, and no call of clients that never paused has failed."""
    process, port = running
    before = {worker.pid for worker in psutil.Process(process.pid).children()}
    caller = Caller(port)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(caller.kept())
        group.create_task(caller.fresh())
        process.send_signal(signal.SIGHUP)
        await said(process, "a worker was replaced", times=2)
        caller.enough.set()
    after = {worker.pid for worker in psutil.Process(process.pid).children()}
    assert (2, set()) == (len(after), before & after)
    assert {200} == set(caller.statuses)
    process.terminate()
    assert 0 == await process.wait()


async def test_a_dead_workers_connections_are_served_by_its_sibling(running: tuple[Process, int]) -> None:
    """While a killed worker is not back yet, fresh connections are answered, whichever socket the kernel chose for them."""
    process, port = running
    workers = psutil.Process(process.pid).children()
    caller = Caller(port)
    async with asyncio.TaskGroup() as group:
        workers[0].kill()
        await said(process, "a worker died")
        group.create_task(caller.fresh())
        await said(process, "proxy listens")
        caller.enough.set()
    assert {200} == set(caller.statuses)


async def test_settings_that_do_not_fit_replace_nothing(running: tuple[Process, int], tmp_path: Path) -> None:
    """SIGHUP with broken settings, or with another number of workers, is refused in the log, and all go on."""
    process, _ = running
    before = {worker.pid for worker in psutil.Process(process.pid).children()}
    settings = tmp_path / "settings.json"
    good = json.loads(settings.read_text())
    for broken in ("{", json.dumps({**good, "workers": 3})):
        settings.write_text(broken)
        process.send_signal(signal.SIGHUP)
        await said(process, "the workers are not replaced")
    assert before == {worker.pid for worker in psutil.Process(process.pid).children()}

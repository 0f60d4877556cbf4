"""Responses over several real worker processes: any of them finds what another made, also after all of them were killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
from pathlib import Path

import httpx
import msgspec
import pytest

from controlplane.contract.records import CallRecord
from controlplane.contract.wire import TornFrame, frames
from proxy.transports.owners import Unsettled
from tests.ports import free_port
from tests.proxy.fakes import ScriptedUpstream, until
from tests.proxy.processes import keep, kill, start
from tests.proxy.responses_account import ANN, BOB, Account, snapshot

pytestmark = pytest.mark.e2e
WORKERS = 2


async def statuses(url: str, key: str, ids: list[str]) -> set[int]:
    """How calls on all of these end, each over a connection of its own, so that every worker gets some."""

    async def one(id_: str) -> int:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30.0) as client:
            return (await client.get(f"{url}/v1/responses/{id_}")).status_code

    return set(await asyncio.gather(*(one(id_) for id_ in ids for _ in range(3))))


def booked(folder: Path) -> list[CallRecord]:
    """The records with usage in the spools of all workers."""
    found: list[CallRecord] = []
    for segment in (folder / "proxy").glob("*/*.seg"):
        with contextlib.suppress(TornFrame):
            found += [record for _, record in frames(segment.read_bytes()) if record.tokens.total]
    return found


def claimed(folder: Path) -> bool:
    """Whether somebody is about to book an unsettled response."""
    with contextlib.closing(sqlite3.connect(folder / "proxy" / "unsettled" / "cache.db")) as file:
        values = [value for (value,) in file.execute("SELECT value FROM Cache")]
    return any(msgspec.msgpack.decode(value, type=Unsettled).claim is not None for value in values)


async def test_a_kill_while_usage_is_being_booked_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """A worker is killed when it has claimed a response and has no record of it yet: after the restart there is one record."""
    account = Account(busy=True)
    upstream = await ScriptedUpstream(account.script).start()
    port = free_port()
    (tmp_path / "proxy").mkdir()
    keep(tmp_path, snapshot([upstream.port]))
    url = f"http://127.0.0.1:{port}/v1/responses"
    process = await start(tmp_path, port, WORKERS, {"background_look_every_s": 3600.0, "state_wait_s": 30.0})
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {ANN}"}, timeout=30.0) as client:
        got = await client.post(url, json={"model": "gpt", "input": "hi", "background": True})
        id_ = got.json()["id"]
        account.finish(id_)
        lock = sqlite3.connect(tmp_path / "proxy" / "owners" / "cache.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")  # the second of the two files that a claim is written to
        asking = asyncio.create_task(client.get(f"{url}/{id_}"))
        await until(lambda: claimed(tmp_path))
        await kill(process)
        with contextlib.suppress(httpx.HTTPError):
            await asking
        lock.execute("ROLLBACK")
        lock.close()
        assert [] == booked(tmp_path)
        process = await start(tmp_path, port, WORKERS, {"background_look_every_s": 0.1})
        await until(lambda: booked(tmp_path) and not claimed(tmp_path))
        for _ in range(4):
            assert 200 == (await client.get(f"{url}/{id_}")).status_code
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30.0):
        await process.communicate()
    (record,) = booked(tmp_path)
    assert ("settlement", {"heph-settles": id_}, 15) == (record.channel, record.tags, record.tokens.total)
    await upstream.stop()


async def test_what_was_made_before_a_kill_is_found_by_every_worker(tmp_path: Path) -> None:
    """Each id that a client has seen, even in a stream that the kill cut off, is its tenant's and nobody else's afterwards."""
    account = Account()
    upstream = await ScriptedUpstream(account.script).start()
    port = free_port()
    (tmp_path / "proxy").mkdir()
    keep(tmp_path, snapshot([upstream.port]))
    url = f"http://127.0.0.1:{port}"
    process = await start(tmp_path, port, WORKERS)
    ids: list[str] = []

    async def make(*, stream: bool) -> None:
        """Notes the id as soon as it is seen."""
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {ANN}"}, timeout=30.0) as client:
            body = {"model": "gpt", "input": "hi", "stream": stream}
            async with client.stream("POST", f"{url}/v1/responses", json=body) as got:
                if not stream:
                    ids.append(json.loads(await got.aread())["id"])
                    return
                async for line in got.aiter_lines():
                    if line.startswith("data:"):
                        ids.append(json.loads(line[5:])["response"]["id"])
                        return

    await asyncio.gather(*(make(stream=bool(n % 2)) for n in range(16)))
    assert {200} == await statuses(url, ANN, ids)
    await kill(process)
    process = await start(tmp_path, port, WORKERS)
    assert 16 == len(set(ids))
    assert {200} == await statuses(url, ANN, ids)
    assert {404} == await statuses(url, BOB, ids)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30.0):
        await process.communicate()
    await upstream.stop()

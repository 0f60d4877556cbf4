"""Batches over real processes: what they used is booked once, whenever the proxy is killed on the way."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import httpx
import openai
import pytest

from controlplane.clock import ManualClock
from controlplane.contract.records import CallRecord
from controlplane.contract.wire import decode_batch
from proxy.ledger import BATCH_USAGE
from tests.e2e.processes import eventually
from tests.ports import free_port
from tests.proxy.batch_world import BATCH_S, begin, billed, line, simulated, snapshot
from tests.proxy.processes import keep, kill, start

pytestmark = pytest.mark.e2e
BATCHES = 3
OFTEN = {"background_look_every_s": 0.1}


def booked(folder: Path) -> list[CallRecord]:
    """The records of usage that any worker has written."""
    paths = sorted((folder / "proxy").glob("*/*.seg"))
    found = [record for path in paths if path.stat().st_size for record in decode_batch(path.read_bytes())]
    return [record for record in found if record.operation == BATCH_USAGE]


async def until_settled(url: str) -> None:
    """Waits until no batch waits to be booked."""
    shown = re.compile(r'heph_proxy_owners_unsettled\{worker="0"\} 0(\.0)?\n')
    await asyncio.to_thread(eventually, lambda: shown.search(httpx.get(f"{url}/metrics").text), seconds=60.0)


async def test_batches_are_booked_once_through_any_kill(tmp_path: Path) -> None:
    """Killed after each of the questions that settling asks, one life after the other: no batch is lost, and none is booked twice."""
    clock, port = ManualClock(), free_port()
    url = f"http://127.0.0.1:{port}"
    async with simulated(clock) as provider:
        (tmp_path / "proxy").mkdir()
        keep(tmp_path, snapshot(provider.ports))
        process = await start(tmp_path, port, 1, OFTEN)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-heph-ann", max_retries=0) as client:
            for n in range(BATCHES):
                await begin(client, line(f"a{n}"), line(f"b{n}"))
        await kill(process)
        clock.move(BATCH_S)
        stats = provider.upstreams[0].stats
        for questions in (1, 2, 4):
            process = await start(tmp_path, port, 1, OFTEN)
            before = stats.requests
            async with asyncio.timeout(60.0):
                while stats.requests < before + questions and len(booked(tmp_path)) < BATCHES:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0)
            await kill(process)
        process = await start(tmp_path, port, 1, OFTEN)
        await until_settled(url)
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        records = booked(tmp_path)
        assert BATCHES == len(records) == len({record.call_id for record in records})
        model = "gpt-4o-mini-2024-07-18"
        used = (sum(r.tokens.total_input for r in records), sum(r.tokens.total_output for r in records))
        assert billed(provider, model) == used


async def test_a_batch_is_booked_soon_whichever_worker_hears_that_it_has_ended(tmp_path: Path) -> None:
    """One worker books for all of them, and need not wait for its own next look."""
    clock, port = ManualClock(), free_port()
    url = f"http://127.0.0.1:{port}"
    async with simulated(clock) as provider:
        (tmp_path / "proxy").mkdir()
        keep(tmp_path, snapshot(provider.ports))
        process = await start(tmp_path, port, 2, OFTEN)

        async def once(batch_id: str = "") -> str:
            """Makes or reads a batch over a connection of its own, so that every worker gets some."""
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-heph-ann", max_retries=0) as client:
                return (await client.batches.retrieve(batch_id)).id if batch_id else await begin(client, line("a"))

        made = await asyncio.gather(*(once() for _ in range(8)))
        assert 8 == len(set(made))
        clock.move(BATCH_S)
        await asyncio.gather(*(once(batch_id) for batch_id in made))
        await asyncio.to_thread(eventually, lambda: len(booked(tmp_path)) == len(made))
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert sorted(made) == sorted(record.tags["heph-batch"] for record in booked(tmp_path))

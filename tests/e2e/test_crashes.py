"""Kill -9 of any process at any time: nothing settled is lost, nothing is counted twice, and the ledger agrees with the rows."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.load import Load, complete
from tests.e2e.processes import World, eventually, world

pytestmark = pytest.mark.e2e
SEEDS = 20


def _agrees(made: World) -> tuple[int, int, str] | None:
    """Rows, distinct calls and their cost, once the proxy's ledger says the same; None while they differ."""
    row = made.sql(
        "SELECT count() AS n, uniqExact(call_id) AS distinct, toInt64(sum(cost_usd) * 1000000000) AS nanousd FROM calls"
    )[0]
    status = made.api("/proxies").json()["proxies"]
    calls, nanousd = sum(one["ledger_calls"] for one in status), sum(one["ledger_nanousd"] for one in status)
    rows, distinct, cost = int(str(row["n"])), int(str(row["distinct"])), int(str(row["nanousd"]))
    return (rows, distinct, str(cost)) if status and (calls, nanousd) == (rows, cost) else None


def _wait_for_calls(load: Load, count: int) -> None:
    eventually(lambda: len(load.seen) >= count, every_s=0.01, what=f"{count} calls")


async def test_kill_nine_of_anything_loses_nothing_settled(tmp_path: Path) -> None:
    """After twenty seeds of random kills under load, every answer a client saw is one row, and ledger and rows are equal."""
    with world(tmp_path, latency_scale=0.02) as made:
        seen_complete: set[str] = set()
        for seed in range(SEEDS):
            chance = random.Random(seed)
            load = Load(made.base_url, made.key(), workers=6)
            running = asyncio.create_task(load.run())
            order = ["proxy", "controlplane", "provider"]
            chance.shuffle(order)
            for name in order[: chance.randint(1, 3)]:
                await asyncio.to_thread(_wait_for_calls, load, len(load.seen) + chance.randint(1, 60))
                await asyncio.to_thread(made.kill, name, signal.SIGKILL)
                await asyncio.to_thread(made.start, name)
            await asyncio.to_thread(made.wait_ready)
            load.stop()
            await running
            seen_complete |= {one.call_id for one in complete(load.seen)}
        rows, distinct, _ = await asyncio.to_thread(
            eventually, lambda: _agrees(made), seconds=60, what="ledger equals rows"
        )
        stored = {str(row["call_id"]) for row in made.sql("SELECT call_id FROM calls")}
        assert rows == distinct
        assert seen_complete - stored == set()


async def test_calls_go_on_without_the_control_plane(tmp_path: Path) -> None:
    """With the control plane dead, calls succeed; its records arrive after it is back, none lost and none doubled."""
    with world(tmp_path) as made:
        before = await Load(made.base_url, made.key()).burst(20)
        await asyncio.to_thread(made.kill, "controlplane")
        during = await Load(made.base_url, made.key()).burst(50)
        await asyncio.to_thread(made.kill, "proxy")
        made.start("proxy")  # from the snapshot on disk, with nobody to ask
        await asyncio.to_thread(
            eventually,
            lambda: made.get(f"http://127.0.0.1:{made.proxy_port}/readyz").status_code == 200,
            what="proxy ready alone",
        )
        alone = await Load(made.base_url, made.key()).burst(30)
        made.start("controlplane")
        await asyncio.to_thread(made.wait_ready)
        assert {one.status for one in (*before, *during, *alone)} == {200}
        rows, distinct, _ = await asyncio.to_thread(
            eventually, lambda: _agrees(made), seconds=60, what="ledger equals rows"
        )
        assert (rows, distinct) == (100, 100)

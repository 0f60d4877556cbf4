"""Kill -9 of any process at any time: nothing settled is lost, nothing is counted twice, and the ledger agrees with the rows."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tests.e2e.load import Load, Seen, complete
from tests.e2e.processes import World, eventually, world

pytestmark = pytest.mark.e2e
SEEDS = 20


def _agrees(made: World) -> int | None:
    """Rows of the proxy's calls once they and their cost are what its ledger says, and the roll-up holds them all; None until then."""
    proxies = made.api("/proxies").json()["proxies"]
    if not proxies:
        return None
    assert len(proxies) == 1
    ledger = proxies[0]
    assert ledger["spool_dropped"] == 0
    row = made.sql(
        "SELECT count() AS n, uniqExact(call_id) AS calls, toString(sum(cost_usd)) AS usd, "
        "(SELECT sum(calls) FROM calls_minute) - (SELECT count() FROM calls) AS astray "
        f"FROM calls WHERE proxy = '{ledger['id']}'"
    )[0]
    rows, nanousd = int(str(row["n"])), int(Decimal(str(row["usd"])).scaleb(9))
    if (ledger["ledger_calls"], ledger["ledger_nanousd"]) != (rows, nanousd):
        return None
    assert int(str(row["calls"])) == rows
    return rows if int(str(row["astray"])) == 0 else None  # the roll-up of an insert is seen a moment after its rows


def _assert_stored(made: World, seen: list[Seen]) -> None:
    """Every answer that a client saw to its end is a row, with the cost that its header said."""
    stored = {
        str(row["call_id"]): Decimal(str(row["usd"]))
        for row in made.sql("SELECT call_id, toString(cost_usd) AS usd FROM calls")
    }
    answered = complete(seen)
    assert {one.call_id for one in answered} - stored.keys() == set()
    said = {one.call_id: Decimal(one.cost_usd) for one in answered if not one.stream}
    assert said == {call_id: stored[call_id] for call_id in said}


def _wait_for_calls(load: Load, count: int) -> None:
    eventually(lambda: len(load.seen) >= count, every_s=0.01, what=f"{count} calls")


async def test_kill_nine_of_anything_loses_nothing_settled(tmp_path: Path, measured: Callable[[str], None]) -> None:
    """After twenty seeds of random kills under load, every answer a client saw is one row, and ledger and rows are equal."""
    with world(tmp_path, latency_scale=0.02) as made:
        seen: list[Seen] = []
        killed = dict.fromkeys(("proxy", "controlplane", "provider"), 0)
        for seed in range(SEEDS):
            chance = random.Random(seed)
            load = Load(made.base_url, made.key(), workers=6, pause_s=0.01)
            running = asyncio.create_task(load.run())
            order = list(killed)
            chance.shuffle(order)
            for name in order[: chance.randint(1, 3)]:
                await asyncio.to_thread(_wait_for_calls, load, len(load.seen) + chance.randint(1, 60))
                await asyncio.to_thread(made.kill, name, signal.SIGKILL)
                made.start(name)
                killed[name] += 1
            await asyncio.to_thread(made.wait_ready)
            load.stop()
            await running
            seen += load.seen
        rows = await asyncio.to_thread(eventually, lambda: _agrees(made), seconds=60, what="ledger equals rows")
        measured(f"{SEEDS} seeds, killed {killed}: {len(seen)} calls, {len(complete(seen))} answered, {rows} rows")
        assert len(complete(seen)) > SEEDS * 10
        assert rows >= len(complete(seen))
        _assert_stored(made, seen)


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
        seen = [*before, *during, *alone]
        assert {one.status for one in seen} == {200}
        assert 100 == await asyncio.to_thread(eventually, lambda: _agrees(made), seconds=60, what="ledger equals rows")
        _assert_stored(made, seen)

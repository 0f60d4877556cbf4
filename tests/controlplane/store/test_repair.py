"""Repair: a part that vanished behind its token's back is found missing and written again, roll-ups included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from controlplane.contract.records import Payload
from controlplane.ingest import steps
from controlplane.store.client import Store
from controlplane.store.repair import Repaired, make_whole
from controlplane.store.rows import batch_rows
from tests.controlplane.store.fakes import MINUTE_US, START_US, a_call

_LOSE_PARTS = """
import asyncio, shutil, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from controlplane.clock import SystemClock
from controlplane.contract.records import Payload
from controlplane.ingest import Ingest, steps
from controlplane.metrics import IngestMetrics
from controlplane.store.client import Store
from controlplane.store.migrate import migrate
from controlplane.store.rows import batch_rows
from tests.controlplane.store.fakes import MINUTE_US, START_US, a_call, a_segment

dsn, data_dir = sys.argv[1], Path(sys.argv[2])
store = Store.open(dsn, data_dir=data_dir)
migrate(store)
for number, victim in enumerate(("calls", "attempts", "payloads", "calls_minute", "attempts_minute", "batches")):
    token = f"p/{number:012d}"
    day = START_US + number * 86_400_000_000
    calls = [a_call(number * 10 + n, at_us=day + n * MINUTE_US, cost_nanousd=7, payload=Payload(b"q", b"a", 7)) for n in range(4)]
    store.command("SYSTEM STOP MERGES")  # a merged part would take earlier batches with it; until the store is closed
    for table, columns in steps(batch_rows(calls, token=token, body_bytes=1)):
        store.insert(table, columns, token=f"{token}:{table.name}")
        if table.name == victim.removesuffix("_minute"):
            break  # killed here
    parts = "SELECT path FROM system.parts WHERE active AND table = {t:String} ORDER BY max_block_number DESC LIMIT 1"
    path = str(store.rows(parts, {"t": victim})[0][0])
    store.close()
    shutil.rmtree(path)
    store = Store.open(dsn, data_dir=data_dir)
    ingest = Ingest(store, clock=SystemClock(), metrics=IngestMetrics(CollectorRegistry()))
    asyncio.run(ingest.accept(token, a_segment(*calls)))
    print(victim, *(store.rows(sql)[0] for sql in (
        "SELECT count(), uniqExact(call_id) FROM calls", "SELECT count() FROM attempts", "SELECT count() FROM payloads",
        "SELECT sum(calls), toInt64(sum(cost_usd) * 1000000000) FROM calls_minute", "SELECT sum(attempts) FROM attempts_minute",
        "SELECT count() FROM batches")))
store.close()
"""


def test_lost_parts_are_written_again(tmp_path: Path) -> None:
    """Whichever table lost what it had just been told, the batch is whole after it is sent again, and nothing is there twice."""
    run = subprocess.run(
        [sys.executable, "-c", _LOSE_PARTS, f"chdb://{tmp_path}/telemetry", str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [
        f"{victim} ({4 * n}, {4 * n}) ({4 * n},) ({4 * n},) ({4 * n}, {28 * n}) ({4 * n},) ({n},)"
        for n, victim in enumerate(("calls", "attempts", "payloads", "calls_minute", "attempts_minute", "batches"), 1)
    ] == [line for line in run.stdout.splitlines() if "(" in line and "batch_repaired" not in line]


def test_a_whole_batch_is_left_alone(store: Store) -> None:
    """When nothing is missing nothing is written."""
    calls = [a_call(n, at_us=START_US + n * MINUTE_US, payload=Payload(b"q", b"a", 7)) for n in range(5)]
    plan = steps(batch_rows(calls, token="p/1", body_bytes=1))
    for table, columns in plan:
        store.insert(table, columns, token=f"p/1:{table.name}")
    assert Repaired() == make_whole(store, plan, token="p/1")
    assert store.rows("SELECT count() FROM calls") == [(5,)]


def test_a_batch_that_is_not_there_is_written(store: Store) -> None:
    """Made whole from nothing, a batch is as if it had been stored; doing it twice changes nothing."""
    calls = [a_call(n, at_us=START_US + n * MINUTE_US, cost_nanousd=1) for n in range(5)]
    plan = steps(batch_rows(calls, token="p/1", body_bytes=1))
    assert Repaired(rows=11, minutes=0) == make_whole(store, plan, token="p/1")
    assert Repaired() == make_whole(store, plan, token="p/1")
    assert store.rows("SELECT sum(calls), sum(tokens_input) FROM calls_minute") == [(5, 50)]


def test_wrong_minutes_are_made_anew(store: Store) -> None:
    """Minutes whose roll-up disagrees with the facts are replaced, other minutes are not touched."""
    calls = [a_call(n, at_us=START_US + n * MINUTE_US, cost_nanousd=n + 1) for n in range(3)]
    plan = steps(batch_rows(calls, token="p/1", body_bytes=1))
    for table, columns in plan:
        store.insert(table, columns, token=f"p/1:{table.name}")
    right = store.rows("SELECT minute, sum(calls), sum(cost_usd) FROM calls_minute GROUP BY minute ORDER BY minute")
    store.command(
        "INSERT INTO calls_minute SELECT * FROM calls_minute WHERE minute = (SELECT min(minute) FROM calls_minute)"
    )
    assert Repaired(rows=0, minutes=1) == make_whole(store, plan, token="p/1")
    assert right == store.rows(
        "SELECT minute, sum(calls), sum(cost_usd) FROM calls_minute GROUP BY minute ORDER BY minute"
    )

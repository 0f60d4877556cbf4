"""Ingest: every settled call is stored once, whatever is repeated, cut short or killed."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from controlplane.clock import ManualClock
from controlplane.contract.records import AttemptError, CallRecord, Outcome, Payload
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.contract.wire import batch_token, encode_frame
from controlplane.errors import TooLarge, TooMany
from controlplane.ingest import Ingest, IngestResult, PoisonBatch, steps
from controlplane.metrics import IngestMetrics
from controlplane.settings import IngestSettings
from controlplane.store.client import Store
from controlplane.store.rows import batch_rows, nanousd
from tests.controlplane.store.fakes import START_US, a_call, a_segment, an_attempt

TOKEN = batch_token(proxy_id="proxy-1", segment=7)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
def registry() -> CollectorRegistry:
    """Fresh counters."""
    return CollectorRegistry()


@pytest.fixture
def ingest(store: Store, clock: ManualClock, registry: CollectorRegistry) -> Ingest:
    """Ingest into an empty store."""
    return Ingest(store, clock=clock, metrics=IngestMetrics(registry))


def some_calls(count: int = 5, *, first: int = 0) -> list[CallRecord]:
    """Calls with a retry, payloads, a denied one without a tenant, over two days."""
    failed = an_attempt(error=AttemptError.STATUS_5XX, cost_nanousd=3)
    calls = [
        a_call(
            first + n,
            at_us=START_US + n * 20_000_000_000,
            cost_nanousd=10 + n,
            attempts=(failed, an_attempt("azure/gpt", cost_nanousd=7 + n)),
            payload=Payload(b"question", b"answer", 7) if n % 2 else None,
        )
        for n in range(count - 1)
    ]
    denied = CallRecord(
        call_id=f"call_denied_{first}", started_us=START_US, latency_us=80, operation="chat", outcome=Outcome.DENIED, status=401
    )  # fmt: skip
    return [*calls, denied]


def counts(store: Store) -> dict[str, object]:
    """What is in every table that a batch goes to, roll-ups included."""
    return {
        "calls": store.rows("SELECT count(), uniqExact(call_id), sum(cost_usd) FROM calls")[0],
        "attempts": store.rows("SELECT count(), sum(cost_usd) FROM attempts")[0],
        "payloads": store.rows("SELECT count() FROM payloads")[0],
        "calls_minute": store.rows(
            "SELECT sum(calls), sum(attempts), sum(cost_usd), sum(tokens_input) FROM calls_minute"
        )[0],
        "attempts_minute": store.rows("SELECT sum(attempts), sum(cost_usd), sum(tokens_output) FROM attempts_minute")[
            0
        ],
        "batches": store.rows("SELECT token, records, attempts, payloads, cost_usd FROM batches ORDER BY token"),
    }


async def test_batch_is_stored(ingest: Ingest, store: Store, registry: CollectorRegistry) -> None:
    """Calls, attempts, payloads and roll-ups of a batch are there when accept returns, and counted."""
    calls = some_calls()
    body = a_segment(*calls)
    assert IngestResult(TOKEN, 5) == await ingest.accept(TOKEN, body)
    assert store.rows("SELECT count() FROM calls") == [(5,)]
    assert store.rows("SELECT count() FROM attempts") == [(8,)]
    assert store.rows("SELECT count() FROM payloads") == [(2,)]
    assert sum(call.cost_nanousd for call in calls) == nanousd(
        store.rows("SELECT sum(cost_usd) FROM calls_minute")[0][0]
    )
    assert store.rows("SELECT tenant, outcome, proxy FROM calls WHERE status = 401") == [("", "denied", "proxy-1")]
    assert registry.get_sample_value("heph_ingest_records_total") == 5
    assert registry.get_sample_value("heph_ingest_bytes_total") == len(body)
    assert registry.get_sample_value("heph_ingest_batches_total", {"result": "stored"}) == 1


async def test_repeated_batch_changes_nothing(ingest: Ingest, store: Store, registry: CollectorRegistry) -> None:
    """The same batch again, at once and concurrently, is answered as before and counted as repeated."""
    body = a_segment(*some_calls())
    await ingest.accept(TOKEN, body)
    before = counts(store)
    again = await asyncio.gather(*(ingest.accept(TOKEN, body) for _ in range(5)))
    assert [IngestResult(TOKEN, 5, duplicate=True)] * 5 == again
    assert before == counts(store)
    assert registry.get_sample_value("heph_ingest_batches_total", {"result": "repeated"}) == 5


async def test_lag_is_the_age_of_the_oldest_call_of_the_last_batch(
    ingest: Ingest, clock: ManualClock, registry: CollectorRegistry
) -> None:
    """An operator sees how far storing is behind; a call from the future is no lag."""
    now_us = clock.now_us()
    await ingest.accept("p/1", a_segment(a_call(1, at_us=now_us - 61_000_000), a_call(2, at_us=now_us - 9_000_000)))
    assert 60.0 == registry.get_sample_value("heph_ingest_lag_seconds")
    await ingest.accept("p/2", a_segment(a_call(3, at_us=now_us + 3_600_000_000)))
    assert 0.0 == registry.get_sample_value("heph_ingest_lag_seconds")


async def test_a_batch_that_was_there_in_part_is_counted_as_repaired(
    ingest: Ingest, store: Store, registry: CollectorRegistry
) -> None:
    """Only a batch that lacked something counts, not one that is merely the first of its proxy."""
    await ingest.accept("p/1", a_segment(a_call(1)))
    assert 0.0 == registry.get_sample_value("heph_ingest_repaired_total")
    calls = some_calls()
    plan = steps(batch_rows(calls, token="q/1", body_bytes=0))
    table, columns = plan[0]
    store.insert(table, [column[:2] for column in columns], token=f"q/1:{table.name}")
    result = await ingest.accept("q/1", a_segment(*calls))
    assert (result.repaired, 1.0) == (True, registry.get_sample_value("heph_ingest_repaired_total"))


async def test_more_proxies_than_remembered_are_counted(
    store: Store, clock: ManualClock, registry: CollectorRegistry
) -> None:
    """The one that was silent longest is forgotten, so its next word is stored whole again."""
    limits = IngestSettings(proxies_max=2)
    ingest = Ingest(store, clock=clock, metrics=IngestMetrics(registry), limits=limits)
    for name in ("a", "b", "c", "a"):
        clock.move(0.001)
        await ingest.status(ProxyStatus(proxy_id=name, at_us=clock.now_us(), snapshot_version=1))
    assert 2.0 == registry.get_sample_value("heph_ingest_statuses_forgotten_total")
    assert [("a", 2), ("b", 1), ("c", 1)] == store.rows(
        "SELECT proxy, count() FROM proxy_status GROUP BY proxy ORDER BY proxy"
    )


@pytest.mark.parametrize("done", range(5))
async def test_cut_short_after_any_step(ingest: Ingest, store: Store, done: int) -> None:
    """A batch whose inserts stopped after any of its steps is completed when it is sent again: none missing, none twice."""
    calls = some_calls()
    body = a_segment(*calls)
    plan = steps(batch_rows(calls, token=TOKEN, body_bytes=len(body)))
    assert len(plan) == 4
    for table, columns in plan[:done]:
        store.insert(table, columns, token=f"{TOKEN}:{table.name}")
    await ingest.accept(TOKEN, body)
    await ingest.accept(TOKEN, body)
    cut = counts(store)
    for name in ("calls", "attempts", "payloads", "calls_minute", "attempts_minute", "batches"):
        store.command(f"TRUNCATE TABLE {name}")
    await ingest.accept(TOKEN, body)
    assert counts(store) == cut


async def test_same_calls_under_another_token_are_others(ingest: Ingest, store: Store) -> None:
    """Only the token makes a batch a repetition; equal contents do not."""
    body = a_segment(*some_calls())
    await ingest.accept(batch_token(proxy_id="proxy-1", segment=1), body)
    await ingest.accept(batch_token(proxy_id="proxy-2", segment=1), body)
    assert store.rows("SELECT count(), uniqExact(proxy) FROM calls") == [(10, 2)]
    assert store.rows("SELECT sum(calls) FROM calls_minute") == [(10,)]


async def test_torn_tail_is_left_out(ingest: Ingest, store: Store, registry: CollectorRegistry) -> None:
    """Every way of cutting the last frame leaves the calls before it stored and the tail reported."""
    whole, last = a_segment(a_call(1), a_call(2)), encode_frame(a_call(3))
    for segment, cut in enumerate((1, 4, 7, 8, 9, len(last) // 2, len(last) - 1)):
        result = await ingest.accept(batch_token(proxy_id="p", segment=segment), whole + last[:cut])
        assert (2, cut) == (result.records, result.torn_bytes)
    zeros = await ingest.accept(batch_token(proxy_id="p", segment=99), whole + b"\x00" * 4096)
    assert (2, 4096) == (zeros.records, zeros.torn_bytes)
    cut_off = sum((1, 4, 7, 8, 9, len(last) // 2, len(last) - 1)) + 4096
    assert cut_off == registry.get_sample_value("heph_ingest_torn_bytes_total")
    assert store.rows("SELECT count(), uniqExact(call_id) FROM calls") == [(16, 2)]


def reframed(payload: bytes) -> bytes:
    """A frame around any payload, as the proxy writes it."""
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


BAD_RECORD = msgspec.msgpack.encode({"call_id": "c", "outcome": "no_such_outcome"})


@pytest.mark.parametrize(
    ("token", "body"),
    [
        ("", a_segment(a_call())),
        ("x" * 201, a_segment(a_call())),
        ("p/\n1", a_segment(a_call())),
        (TOKEN, b"not a segment"),
        (TOKEN, b"\x00" * 8),
        (TOKEN, b"\xff" * 100),
        (TOKEN, reframed(b"\xc1")),
        (TOKEN, reframed(BAD_RECORD)),
        (TOKEN, a_segment(a_call()) + reframed(BAD_RECORD)),
        (TOKEN, a_segment(a_call(cost_nanousd=10**18, attempts=()))),
        (TOKEN, a_segment(a_call(cost_nanousd=-1, attempts=()))),
        (TOKEN, a_segment(a_call(status=70_000))),
        (TOKEN, a_segment(a_call(latency_us=-1))),
    ],
)
async def test_poison_is_refused(
    ingest: Ingest, store: Store, registry: CollectorRegistry, token: str, body: bytes
) -> None:
    """What can never be stored is refused as such, counted, and leaves nothing that looks complete."""
    with pytest.raises(PoisonBatch) as caught:
        await ingest.accept(token, body)
    assert caught.value.status == 422
    assert registry.get_sample_value("heph_ingest_batches_total", {"result": "refused"}) == 1
    assert store.rows("SELECT count() FROM batches") == [(0,)]
    assert store.rows("SELECT count() FROM calls") == [(0,)]


async def test_empty_segment_is_stored_as_nothing(ingest: Ingest, store: Store) -> None:
    """A segment without records is acknowledged, so that its proxy can delete it."""
    assert IngestResult(TOKEN, 0) == await ingest.accept(TOKEN, b"")
    assert store.rows("SELECT records FROM batches") == [(0,)]


async def test_bounds(store: Store, clock: ManualClock, registry: CollectorRegistry) -> None:
    """Bodies and waiting batches are bounded."""
    ingest = Ingest(
        store, clock=clock, metrics=IngestMetrics(registry), limits=IngestSettings(batch_bytes_max=2_000, waiting_max=2)
    )
    with pytest.raises(TooLarge, match="2000"):
        await ingest.accept(TOKEN, b"x" * 2_001)
    tokens = [batch_token(proxy_id="p", segment=n) for n in range(4)]
    results = await asyncio.gather(*(ingest.accept(t, a_segment(a_call())) for t in tokens), return_exceptions=True)
    assert [IngestResult, IngestResult, TooMany, TooMany] == [type(result) for result in results]
    assert registry.get_sample_value("heph_ingest_waiting") == 0


async def test_cancelled_request_still_leaves_a_whole_batch(ingest: Ingest, store: Store) -> None:
    """A proxy that hangs up while its batch is stored finds it stored once when it sends it again."""
    body = a_segment(*some_calls())
    task = asyncio.ensure_future(ingest.accept(TOKEN, body))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ingest.accept(TOKEN, body)
    assert store.rows("SELECT count(), uniqExact(call_id) FROM calls") == [(5, 5)]
    assert store.rows("SELECT sum(calls) FROM calls_minute") == [(5,)]


def a_status(*, at_us: int = START_US, state: str = "closed", leases: tuple[str, ...] = ()) -> ProxyStatus:
    """A worker with two deployments, of which one is in `state`."""
    return ProxyStatus(
        proxy_id="proxy-1",
        at_us=at_us,
        snapshot_version=3,
        lease_ids=leases,
        breakers=(
            BreakerStatus(
                deployment="openai/gpt", state=state, since_us=START_US, reason="errors", error_ratio=0.5, calls=9
            ),
            BreakerStatus(deployment="azure/gpt", state="closed", since_us=START_US),
        ),
        ledger_calls=11,
        ledger_nanousd=10**18 + 1,
        spool_bytes=5,
    )


async def test_status_is_stored_on_change_and_once_in_a_while(ingest: Ingest, store: Store, clock: ManualClock) -> None:
    """An unchanged status is stored every ten seconds; a changed breaker or lease at once, and only that."""
    assert await ingest.status(a_status()) == 3
    assert await ingest.status(a_status()) == 0
    assert await ingest.status(a_status(state="open")) == 1
    assert await ingest.status(a_status(state="open", leases=("lease_1",))) == 1
    clock.move(IngestSettings().status_every_s)
    assert await ingest.status(a_status(state="open", leases=("lease_1",))) == 3
    assert store.rows("SELECT deployment, state, count() FROM deployment_status GROUP BY 1, 2 ORDER BY 1, 2") == [
        ("azure/gpt", "closed", 2), ("openai/gpt", "closed", 1), ("openai/gpt", "open", 2),
    ]  # fmt: skip
    ledger = store.rows("SELECT max(ledger_usd), max(ledger_calls), uniqExact(leases) FROM proxy_status")[0]
    assert (10**18 + 1, 11, 2) == (nanousd(ledger[0]), *ledger[1:])


_STORE_BATCHES = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from controlplane.clock import SystemClock
from controlplane.contract.wire import batch_token
from controlplane.ingest import Ingest
from controlplane.metrics import IngestMetrics
from controlplane.store.client import Store
from controlplane.store.migrate import migrate
from tests.controlplane.store.fakes import a_call, a_segment

async def main(dsn, data_dir, batches):
    store = Store.open(dsn, data_dir=Path(data_dir))
    migrate(store)
    ingest = Ingest(store, clock=SystemClock(), metrics=IngestMetrics(CollectorRegistry()))
    for segment in range(int(batches)):
        body = a_segment(*(a_call(segment * 50 + n, cost_nanousd=7) for n in range(50)))
        await ingest.accept(batch_token(proxy_id="p", segment=segment), body)
        print(segment, flush=True)
    print(store.rows("SELECT count(), uniqExact(call_id) FROM calls"), store.rows("SELECT count() FROM attempts"),
          store.rows("SELECT sum(calls), toString(sum(cost_usd)) FROM calls_minute"), store.rows("SELECT sum(attempts) FROM attempts_minute"))
    store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_killed_control_plane_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """`kill -9` at any moment of the inserts, several times over: in the end every call is there once."""
    arguments = [sys.executable, "-c", _STORE_BATCHES, f"chdb://{tmp_path}/telemetry", str(tmp_path), "12"]
    for kill_after in (0, 3, 7):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip().isdigit() and int(line) >= kill_after:  # the log speaks there too
                    os.kill(process.pid, signal.SIGKILL)
                    break
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert "[(600, 600)] [(600,)] [(600, '0.0000042')] [(600,)]" == run.stdout.splitlines()[-1]

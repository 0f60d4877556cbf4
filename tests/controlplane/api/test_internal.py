"""What proxies call."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from controlplane.api.app import create_app
from controlplane.contract.snapshot import ProxyStatus, Snapshot, decode_snapshot
from controlplane.contract.wire import BATCH_PATH, SNAPSHOT_PATH, STATUS_PATH, TOKEN_HEADER
from controlplane.errors import StoreUnavailable, TooMany
from controlplane.settings import IngestSettings, Settings
from tests.controlplane.api.conftest import BASE_URL
from tests.controlplane.api.fakes import INTERNAL, START_US, World

TOKEN = {TOKEN_HEADER: "proxy-1/000000000001"}


async def test_a_proxy_gets_a_newer_snapshot_at_once(world: World, proxy: httpx.AsyncClient) -> None:
    """Who has an older version gets the current one without waiting."""
    answer = await proxy.get(SNAPSHOT_PATH, params={"have": 3, "proxy": "p", "wait_s": 25})
    assert world.publisher.current == decode_snapshot(answer.content)
    assert "application/json" == answer.headers["content-type"]


async def test_a_proxy_that_is_up_to_date_hears_304(proxy: httpx.AsyncClient) -> None:
    """Who has the current version is told so when its wait is over."""
    answer = await proxy.get(SNAPSHOT_PATH, params={"have": 7, "wait_s": 0})
    assert (304, b"") == (answer.status_code, answer.content)


async def test_a_waiting_proxy_is_woken_by_a_new_snapshot(world: World, proxy: httpx.AsyncClient) -> None:
    """A long poll is answered when a newer snapshot is published."""
    polling = asyncio.create_task(proxy.get(SNAPSHOT_PATH, params={"have": 7, "wait_s": 30}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not polling.done()
    world.publisher.publish(Snapshot(version=8, created_us=START_US))
    assert 8 == decode_snapshot((await polling).content).version


async def test_a_long_poll_ends_when_the_server_stops(world: World, proxy: httpx.AsyncClient) -> None:
    """A waiting proxy is sent away at once, and one that comes later too, so that stopping waits for nobody."""
    polling = asyncio.create_task(proxy.get(SNAPSHOT_PATH, params={"have": 7, "wait_s": 30}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not polling.done()
    world.parts.stopping.set()
    assert 304 == (await polling).status_code
    assert 304 == (await proxy.get(SNAPSHOT_PATH, params={"have": 7, "wait_s": 30})).status_code
    assert 200 == (await proxy.get(SNAPSHOT_PATH, params={"have": 6, "wait_s": 30})).status_code


@pytest.mark.parametrize(
    "query",
    [{"have": "-1"}, {"have": "x"}, {"wait_s": "-1"}, {"wait_s": "nan"}, {"wait_s": "nan?"}, {"proxy": "p" * 129}],
)
async def test_a_senseless_poll_is_refused(proxy: httpx.AsyncClient, query: dict[str, str]) -> None:
    """Parameters out of their range are a bad request."""
    assert 400 == (await proxy.get(SNAPSHOT_PATH, params=query)).status_code


async def test_a_batch_is_taken_as_it_lies_on_disk(world: World, proxy: httpx.AsyncClient) -> None:
    """The body reaches the ingest untouched, under its token, as often as it is sent."""
    body = bytes(range(256)) * 10
    for _ in range(2):
        assert 200 == (await proxy.post(BATCH_PATH, content=body, headers=TOKEN)).status_code
    assert {"proxy-1/000000000001": body} == world.ingest.batches


async def test_a_batch_without_a_token_is_refused(world: World, proxy: httpx.AsyncClient) -> None:
    """A batch that has no name cannot be told from its repetition."""
    assert 400 == (await proxy.post(BATCH_PATH, content=b"x")).status_code
    assert {} == world.ingest.batches


async def test_a_batch_that_is_too_large_is_refused() -> None:
    """A body above the setting is cut off with 413, also without a length in front."""
    world = World(settings=Settings(ingest=IngestSettings(batch_bytes_max=2048)))
    headers = {"authorization": f"Bearer {INTERNAL}", **TOKEN}

    async def chunks():  # type: ignore[no-untyped-def] # an iterator of bytes
        for _ in range(5):
            yield b"x" * 1000

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(world.parts)), base_url=BASE_URL, headers=headers
    ) as client:
        assert 413 == (await client.post(BATCH_PATH, content=b"x" * 2049)).status_code
        assert 413 == (await client.post(BATCH_PATH, content=chunks())).status_code
        assert {} == world.ingest.batches
        assert 200 == (await client.post(BATCH_PATH, content=b"x" * 2048)).status_code


@pytest.mark.parametrize(
    ("trouble", "status"), [(StoreUnavailable("down"), 503), (TooMany("later"), 429), (OSError("disk"), 500)]
)
async def test_a_batch_that_is_not_stored_is_not_acknowledged(
    world: World, proxy: httpx.AsyncClient, trouble: Exception, status: int
) -> None:
    """Anything but 200 tells the proxy to keep the batch."""
    world.ingest.trouble = trouble
    assert status == (await proxy.post(BATCH_PATH, content=b"x", headers=TOKEN)).status_code


async def test_a_status_confirms_and_learns_the_version(world: World, proxy: httpx.AsyncClient) -> None:
    """A proxy's word is remembered, and it hears which version it should have."""
    status = ProxyStatus(proxy_id="proxy-1", at_us=START_US, snapshot_version=6)
    answer = await proxy.post(STATUS_PATH, content=msgspec.json.encode(status))
    assert {"snapshot_version": 7} == answer.json()
    assert [status] == world.publisher.statuses()


async def test_a_status_counts_also_when_it_cannot_be_stored(world: World, proxy: httpx.AsyncClient) -> None:
    """A store that is down does not keep a proxy from confirming."""
    world.ingest.trouble = StoreUnavailable("down")
    status = ProxyStatus(proxy_id="proxy-1", at_us=START_US, snapshot_version=7)
    assert 200 == (await proxy.post(STATUS_PATH, content=msgspec.json.encode(status))).status_code
    assert [status] == world.publisher.statuses()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"proxy_id":1,"at_us":1,"snapshot_version":1}', b"null"]
)
async def test_a_damaged_status_is_refused(world: World, proxy: httpx.AsyncClient, body: bytes) -> None:
    """What is no status confirms nothing."""
    assert 400 == (await proxy.post(STATUS_PATH, content=body)).status_code
    assert [] == world.publisher.statuses()


def a_breaker(**changes: object) -> dict[str, object]:
    """A breaker as JSON."""
    return {"deployment": "a/m", "state": "open", "since_us": 1, **changes}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("proxy_id", ""),
        ("proxy_id", "p" * 129),
        ("proxy_id", "p\n"),
        ("at_us", -1),
        ("at_us", 2**63),
        ("snapshot_version", -1),
        ("snapshot_version", 2**63),
        ("calls_inflight", -1),
        ("calls_total", 2**64),
        ("ledger_calls", -1),
        ("ledger_nanousd", 10**40),
        ("spool_bytes", -1),
        ("spool_dropped", -1),
        ("breakers", [a_breaker(state="broken")]),
        ("breakers", [a_breaker(error_ratio=1.5)]),
        ("breakers", [a_breaker(error_ratio=-1)]),
        ("breakers", [a_breaker(since_us=-1)]),
        ("breakers", [a_breaker(calls=2**63)]),
    ],
)
async def test_a_status_that_cannot_be_is_refused(
    world: World, proxy: httpx.AsyncClient, field: str, value: object
) -> None:
    """Absurd values reach neither the publisher nor the store; the answer names the field."""
    sane = {"proxy_id": "p9", "at_us": START_US, "snapshot_version": 7}
    before = world.publisher.statuses()
    answer = await proxy.post(STATUS_PATH, json={**sane, field: value})
    assert 400 == answer.status_code, answer.text
    assert field.removesuffix("s") in answer.text or field in answer.text
    assert before == world.publisher.statuses()
    assert 200 == (await proxy.post(STATUS_PATH, json={**sane, "breakers": [a_breaker()]})).status_code

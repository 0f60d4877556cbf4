"""How the results of a batch are read: for as long as they come, again when they break off, and beside everything else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from controlplane.contract.records import CallRecord, Outcome
from proxy.ledger import BATCH_USAGE
from proxy.runtime import Runtime
from proxy.settlement import ASIDE_MAX, Settlement
from proxy.transports.owners import Batched, BatchModel, Owner, Promised, Unsettled
from tests.proxy.fakes import PRICE, Received, Script, Wire, World, answer, until

LINES = [
    json.dumps({"response": {"status_code": 200, "body": {"model": "m", "usage": {"prompt_tokens": tokens, "completion_tokens": 1}}}}).encode()
    for tokens in (10, 20, 30, 40)
]  # fmt: skip
RESULTS = b"\n".join(LINES) + b"\n"
TYPE = "application/octet-stream"


def results(*, pause_s: float = 0.0, content_type: str = TYPE, until_: Callable[[], object] | None = None) -> Script:
    """Results that come in pieces, whose last line comes so much later, or as soon as this holds."""

    async def script(wire: Wire, _: Received) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(RESULTS)}\r\n\r\n"
        cut = RESULTS.rindex(LINES[-1])
        await wire.send(head.encode() + RESULTS[: cut // 2])
        await wire.send(RESULTS[cut // 2 : cut])
        ends = time.monotonic() + pause_s
        await until(lambda: time.monotonic() >= ends if until_ is None else until_())
        await wire.send(RESULTS[cut:])

    return script


async def stands_still(wire: Wire, _: Received) -> None:
    """The first line, and then nothing."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {TYPE}\r\ncontent-length: {len(RESULTS)}\r\n\r\n"
    await wire.send(head.encode() + LINES[0] + b"\n")
    await wire.hang()


async def serve(world: World, **scripts: list[Script]) -> None:
    """An upstream at which batches have ended, each with these scripts for its results, and the tenant that made them."""

    async def script(wire: Wire, request: Received) -> None:
        name = request.line.split()[1].split("/")[3]
        if "/content" in request.line:
            turns = scripts[name]
            await (turns.pop(0) if len(turns) > 1 else turns[0])(wire, request)
        else:
            await wire.send(answer(json.dumps({"id": name, "status": "completed", "output_file_id": name}).encode()))

    await world.upstream(script)
    for name in scripts:
        await world.worker.owners.keep("acme", [name], Owner("u0", "u0/m"))
        model = BatchModel("gpt", "u0/m", "m", PRICE)
        batch = Promised(Batched("chat", 4, 0, (model,)), "u0", "0", time.time_ns() // 1_000_000)
        await world.worker.owners.promise(Unsettled("acme", "key_1", name, batch))


def booked(world: World) -> list[CallRecord]:
    """What was booked of batches."""
    return [record for record in world.records() if record.operation == BATCH_USAGE]


@pytest.mark.parametrize("content_type", [TYPE, "application/jsonl", "application/json"])
async def test_results_are_read_for_as_long_as_they_come(tmp_path: Path, content_type: str) -> None:
    """Longer than any call may take, whatever they call themselves: to the client byte for byte, and to the bill."""
    world = await World(tmp_path).start(timeout_s_max=0.5)
    await serve(world, b1=[results(pause_s=0.6, content_type=content_type)])
    world.apply(route={"timeout_s": 0.4})
    response = await world.client.get("/v1/files/b1/content")
    assert (200, RESULTS) == (response.status_code, response.content)
    await world.worker.settlement.look_at_all()
    (record,) = booked(world)
    assert (100, 4) == (record.tokens.input, record.tokens.output)
    assert [] == await world.worker.owners.unsettled()
    await world.stop()


async def test_results_that_stand_still_are_read_again(tmp_path: Path) -> None:
    """From their beginning, with nothing booked of what came before; a client sees that its file is not whole."""
    world = await World(tmp_path).start()
    await serve(world, b1=[stands_still, stands_still, results()])
    world.apply(upstream={"idle_timeout_s": 0.1})
    with pytest.raises(httpx.RemoteProtocolError):
        await world.client.get("/v1/files/b1/content")
    (item,) = await world.worker.owners.unsettled()
    await world.worker.settlement.look(item)
    assert [] == booked(world)
    await world.worker.settlement.look(item)
    (record,) = booked(world)
    assert (100, 4) == (record.tokens.input, record.tokens.output)
    await world.stop()


async def test_a_download_has_an_end(tmp_path: Path) -> None:
    """After `download_s_max` it is cut off though it goes on, and counted."""
    world = await World(tmp_path).start(download_s_max=0.2)
    await serve(world, b1=[results(pause_s=0.4)])
    world.apply()
    with pytest.raises(httpx.RemoteProtocolError):
        await world.client.get("/v1/files/b1/content")
    shown = world.worker.metrics.render().decode()
    assert 'heph_proxy_bound_hits_total{bound="download_s_max",worker="0"} 1.0' in shown
    await world.until_idle()
    assert [Outcome.TIMED_OUT] == [record.outcome for record in world.records()]
    await world.stop()


async def test_a_long_look_keeps_no_other_waiting(world: World) -> None:
    """It goes on beside the next ones, is not begun a second time, and nothing of it is lost; what wants to delete it is told to come again."""
    gate: list[bool] = []
    await serve(world, b1=[results(until_=lambda: gate)], b2=[results()], b3=[results()])
    world.apply()
    settlement = Settlement(
        world.worker.pipeline,
        world.worker.owners,
        lambda: world.worker.app.runtime,
        every_s=0.0,
        bills=world.worker.bills,
        aside_after_s=0.5,
    )
    world.worker.batches.look = settlement.look_soon
    await settlement.look_at_all()
    assert (2, 1) == (len(booked(world)), settlement.aside)
    await settlement.look_at_all()
    refused = await world.client.delete("/v1/files/b1")
    assert (503, "not_ready") == (refused.status_code, refused.json()["error"]["code"])
    assert 3 == settlement.looks_total
    gate.append(True)
    async with asyncio.timeout(60.0):
        while settlement.aside:
            await settlement.look_at_all()
            await asyncio.sleep(0)
    assert (3, 3) == (settlement.looks_total, len(booked(world)))


async def test_a_look_under_way_ends_with_the_loop(world: World) -> None:
    """A worker that stops does not wait for results that come slowly; nothing is booked, and the batch is still to be settled."""
    await serve(world, b1=[results(until_=lambda: False)])
    world.apply()
    settlement = Settlement(
        world.worker.pipeline, world.worker.owners, lambda: world.worker.app.runtime, every_s=0.0, bills=world.worker.bills
    )  # fmt: skip
    running = asyncio.create_task(settlement.run())
    await until(lambda: len(world.upstreams[0].received) == 2)
    running.cancel()
    async with asyncio.timeout(60.0):
        assert [True] == [
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(running, return_exceptions=True)
        ]
    assert ([], 1) == (booked(world), len(await world.worker.owners.unsettled()))


async def test_a_look_that_fails_does_not_end_the_loop(world: World) -> None:
    """What nobody foresaw is told, and costs that look alone: the batch is booked by the next one."""
    await serve(world, b1=[results()])
    world.apply()
    failures = [ZeroDivisionError("unforeseen")]

    def runtime() -> Runtime | None:
        if failures:
            raise failures.pop()
        return world.worker.app.runtime

    settlement = Settlement(
        world.worker.pipeline, world.worker.owners, runtime, every_s=0.0, bills=world.worker.bills
    )  # fmt: skip
    running = asyncio.create_task(settlement.run())
    await until(lambda: booked(world) or running.done())
    assert (1, False) == (len(booked(world)), running.done())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_long_looks_at_batches_leave_room_for_responses(world: World) -> None:
    """However many results come slowly, what ran in the background is booked meanwhile."""
    names = [f"b{number}" for number in range(ASIDE_MAX + 1)]
    await serve(world, **{name: [results(until_=lambda: False)] for name in names})
    world.apply()
    await world.worker.owners.keep("acme", ["resp_1"], Owner("u0", "u0/m", background=True))
    await world.worker.owners.promise(Unsettled("acme", "key_1", "resp_1"))
    settlement = Settlement(
        world.worker.pipeline, world.worker.owners, lambda: world.worker.app.runtime, every_s=0.0, bills=world.worker.bills, aside_after_s=0.1,
    )  # fmt: skip
    running = asyncio.create_task(settlement.run())
    asked = world.upstreams[0].received
    await until(lambda: settlement.aside >= ASIDE_MAX - 1)
    async with asyncio.timeout(5.0):
        await until(lambda: any("/responses/resp_1" in one.line for one in asked))
    assert settlement.aside <= ASIDE_MAX
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

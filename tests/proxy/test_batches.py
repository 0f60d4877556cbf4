"""OpenAI's files and batches through the proxy: whose they are, what may be in them, and what they cost, booked once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from controlplane.clock import ManualClock
from controlplane.contract.records import CostState, Outcome
from controlplane.demo.provider.server import Provider
from tests.proxy.batch_world import BATCH_S, begin, billed, line, sdk, simulated, snapshot, usage_records
from tests.proxy.fakes import World

SMALL, LARGE = "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06"


@pytest.fixture
def clock() -> ManualClock:
    """The provider's clock."""
    return ManualClock()


@pytest.fixture
async def provider(clock: ManualClock, world: World) -> AsyncIterator[Provider]:
    """A provider that the worker knows."""
    async with simulated(clock) as made:
        world.worker.apply(snapshot(made.ports))
        yield made


async def settle(world: World) -> None:
    """One round of the loop that settles."""
    await world.worker.settlement.look_at_all()


async def test_a_batch_is_made_done_read_and_booked(world: World, provider: Provider, clock: ManualClock) -> None:
    """Its answers are the provider's, and what the provider billed is on one record for each model, at the batch price, once."""
    client = sdk(world)
    batch_id = await begin(
        client, line("a"), line("b"), line("c", model="large"), line("d", model="large", temperature=99)
    )
    await settle(world)
    assert [] == usage_records(world)
    clock.move(BATCH_S)
    done = await client.batches.retrieve(batch_id)
    assert ("completed", 3) == (done.status, done.request_counts and done.request_counts.completed)
    assert done.output_file_id is not None
    answers = [json.loads(text) for text in (await client.files.content(done.output_file_id)).text.splitlines()]
    assert {"a", "b", "c"} == {answer["custom_id"] for answer in answers}
    for _ in range(3):
        await settle(world)
    records = {record.alias: record for record in usage_records(world)}
    assert {"small": SMALL, "large": LARGE}.keys() == records.keys()
    for alias, model in (("small", SMALL), ("large", LARGE)):
        record = records[alias]
        tokens_in, tokens_out = billed(provider, model)
        assert (tokens_in, tokens_out) == (record.tokens.total_input, record.tokens.total_output)
        cached = record.tokens.cache_read
        assert (tokens_in - cached) * 1_000 + cached * 500 + tokens_out * 4_000 == record.cost_nanousd
        assert (CostState.FINAL, "p1/batch", "ann", "key_ann") == (
            record.cost_state,
            record.price_version,
            record.tenant,
            record.key_id,
        )
        assert batch_id == record.tags["heph-batch"]
    assert sum(record.cost_nanousd for record in records.values()) == world.worker.ledger.nanousd
    assert {Outcome.OK} == {record.outcome for record in world.records()}

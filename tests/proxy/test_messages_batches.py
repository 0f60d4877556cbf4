"""Anthropic's batches through the proxy: whose they are, what may be in them, and what they cost, booked once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from controlplane.clock import ManualClock
from controlplane.contract.records import CostState
from controlplane.contract.snapshot import Budget, TenantPolicy, Window
from controlplane.demo.provider.server import Provider
from tests.proxy.batch_world import BATCH_S, billed, claude, simulated, snapshot, usage_records
from tests.proxy.fakes import World


def asked(custom_id: str, **more: Any) -> Any:
    """One request of a batch."""
    messages = [{"role": "user", "content": f"Tell me about {custom_id}."}]
    return {"custom_id": custom_id, "params": {"model": "claude", "max_tokens": 50, "messages": messages} | more}


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


async def test_a_batch_is_made_done_read_and_booked(world: World, provider: Provider, clock: ManualClock) -> None:
    """Its results come from here, and what the provider billed is on one record at the batch price, once."""
    client = claude(world)
    made = await client.messages.batches.create(requests=[asked("a"), asked("b"), asked("c", top_k=-5)])
    assert "in_progress" == made.processing_status
    clock.move(BATCH_S)
    done = await client.messages.batches.retrieve(made.id)
    assert f"/v1/messages/batches/{made.id}/results" == done.results_url
    results = {result.custom_id: result.result.type async for result in await client.messages.batches.results(made.id)}
    assert {"a": "succeeded", "b": "succeeded", "c": "errored"} == results
    for _ in range(2):
        await world.worker.settlement.look_at_all()
    (record,) = usage_records(world)
    tokens = (record.tokens.total_input, record.tokens.total_output)
    assert billed(provider, record_model(provider)) == tokens
    assert tokens[0] * 1_000 + tokens[1] * 4_000 == record.cost_nanousd == world.worker.ledger.nanousd
    assert (CostState.FINAL, "p1/batch", "claude", "2") == (
        record.cost_state,
        record.price_version,
        record.alias,
        record.tags["heph-batch-requests"],
    )


def record_model(provider: Provider) -> str:
    """The one model that the provider has billed."""
    (model,) = provider.upstreams[0].stats.by_model
    return model


async def test_nothing_of_another_tenant_can_be_reached(world: World, provider: Provider, clock: ManualClock) -> None:
    """A batch of one tenant is for the other one what never was, in Anthropic's words, and is in no list of it."""
    ann, bob = claude(world), claude(world, "bob")
    made = [(await client.messages.batches.create(requests=[asked("a")])).id for client in (ann, bob, ann, bob, ann)]
    clock.move(BATCH_S)
    before = provider.upstreams[0].stats.requests
    own = made[0]
    batches = bob.messages.batches
    for name in (own, "msgbatch_none"):
        for ask in (batches.retrieve, batches.cancel, batches.delete, batches.results):
            with pytest.raises(anthropic.NotFoundError, match=f"Batch with id '{name}' not found") as refused:
                await ask(name)
            assert "not_found_error" == refused.value.body["error"]["type"]  # type: ignore[index]
    assert before == provider.upstreams[0].stats.requests
    for client, ids in ((ann, made[::2]), (bob, made[1::2])):
        assert ids[::-1] == [batch.id async for batch in client.messages.batches.list(limit=1)]


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (asked("b", model="none"), "not_found_error", "line 2: there is no model `none`"),
        (asked("b", model="small"), "not_found_error", "line 2: no upstream of model `small` takes batches"),
        (asked("b", stream=True), "invalid_request_error", "line 2: a request of a batch has no `stream`"),
        (asked("b", max_tokens=-1), "invalid_request_error", "line 2: `max_tokens`"),
    ],
)
async def test_a_request_that_may_not_be_is_refused_with_its_number(
    world: World, provider: Provider, request_: Any, kind: str, message: str
) -> None:
    """Before anything of the batch has left the proxy."""
    with pytest.raises(anthropic.APIStatusError) as refused:
        await claude(world).messages.batches.create(requests=[asked("a"), request_])
    assert kind == refused.value.body["error"]["type"]  # type: ignore[index]
    assert message in refused.value.message
    assert 0 == provider.upstreams[0].stats.requests


async def test_what_a_batch_may_cost_is_held_until_it_is_booked(
    world: World, provider: Provider, clock: ManualClock
) -> None:
    """A cancelled one books what was done."""
    budget = Budget("day", Window.DAY, nanousd=10**12)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", budgets=(budget,))))
    client = claude(world)
    made = await client.messages.batches.create(requests=[asked(str(n)) for n in range(4)])
    assert 4 * 50 * 4_000 < world.worker.ledger.reserved("ann")[1]
    clock.move(BATCH_S / 2)
    assert "canceling" == (await client.messages.batches.cancel(made.id)).processing_status
    clock.move(BATCH_S / 10)
    await world.worker.settlement.look_at_all()
    (record,) = usage_records(world)
    assert (0, 0) == world.worker.ledger.reserved("ann")
    assert "2" == record.tags["heph-batch-requests"]


async def test_a_batch_is_booked_before_it_is_deleted(world: World, provider: Provider, clock: ManualClock) -> None:
    """One that is not done cannot be deleted, and after it is deleted it is nobody's."""
    client = claude(world)
    made = await client.messages.batches.create(requests=[asked("a")])
    with pytest.raises(anthropic.APIStatusError, match="is not booked yet"):
        await client.messages.batches.delete(made.id)
    clock.move(BATCH_S)
    assert made.id == (await client.messages.batches.delete(made.id)).id
    (record,) = usage_records(world)
    assert billed(provider, record_model(provider)) == (record.tokens.total_input, record.tokens.total_output)
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.batches.retrieve(made.id)


async def test_a_batch_that_is_gone_is_given_up(world: World, provider: Provider, clock: ManualClock) -> None:
    """Somebody with the provider's own key has deleted it: that is counted, and what was held is given back."""
    budget = Budget("day", Window.DAY, nanousd=10**12)
    world.worker.apply(snapshot(provider.ports, version=2, ann=TenantPolicy("ann", budgets=(budget,))))
    made = await claude(world).messages.batches.create(requests=[asked("a")])
    clock.move(BATCH_S)
    async with anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{provider.port}", api_key="sk-ant") as operator:
        await operator.messages.batches.delete(made.id)
    await world.worker.settlement.look_at_all()
    assert (1, (0, 0)) == (world.worker.bills.given_up_total, world.worker.ledger.reserved("ann"))
    assert [] == await world.worker.owners.unsettled()

"""Batches of messages as the official client sees them: states, results, cancelling, deleting, lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types.messages import MessageBatch

from controlplane.clock import ManualClock
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.provider.vendor_types import strictly

MODEL = "claude-haiku-4-5"
Client = anthropic.AsyncAnthropic


def asked(custom_id: str, **more: Any) -> Any:
    """One request of a batch."""
    messages = [{"role": "user", "content": f"Tell me about {custom_id}."}]
    return {"custom_id": custom_id, "params": {"model": MODEL, "max_tokens": 50, "messages": messages} | more}


@pytest.fixture
async def provider(clock: ManualClock) -> AsyncIterator[Provider]:
    """A provider whose batches take a hundred seconds of a clock that stands still."""
    latency = Latency(first_token_s=0.0, between_tokens_s=0.0, sigma=0.0)
    running = Provider(ProviderConfig(upstreams=(UpstreamConfig(port=0),), latency=latency, batch_s=100.0), clock=clock)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[Client]:
    """The official client."""
    async with Client(base_url=f"http://127.0.0.1:{provider.port}", api_key="sk-test", max_retries=0) as made:
        yield made


async def test_a_batch_answers_what_messages_answer(client: Client, provider: Provider, clock: ManualClock) -> None:
    """Each result is the message of a call of its own in the class `batch`, the refused one is an error, and all is billed."""
    made = await client.messages.batches.create(requests=[asked("a"), asked("b"), asked("c", model="nothing")])
    assert ("in_progress", 3, None) == (made.processing_status, made.request_counts.processing, made.results_url)
    clock.move(100.0)
    done = await client.messages.batches.retrieve(made.id)
    strictly(MessageBatch, done.model_dump(mode="json"))
    assert ("ended", 2, 1) == (done.processing_status, done.request_counts.succeeded, done.request_counts.errored)
    results = {result.custom_id: result.result async for result in await client.messages.batches.results(made.id)}
    first, refused = results["a"], results["c"]
    assert first.type == "succeeded"
    assert refused.type == "errored"
    assert "not_found_error" == refused.error.error.type
    alone = await client.messages.create(**asked("a")["params"])
    assert (alone.content, "batch") == (first.message.content, first.message.usage.service_tier)
    billed = provider.upstreams[0].stats.model(alone.model)
    used = [result.message.usage for result in results.values() if result.type == "succeeded"]
    assert billed.completion_tokens == sum(usage.output_tokens for usage in [*used, alone.usage])


async def test_a_cancelled_batch_says_what_was_not_done(client: Client, clock: ManualClock) -> None:
    """Its results tell those that were answered from those that were canceled."""
    made = await client.messages.batches.create(requests=[asked(str(n)) for n in range(4)])
    clock.move(50.0)
    assert "canceling" == (await client.messages.batches.cancel(made.id)).processing_status
    clock.move(10.0)
    kinds = [result.result.type async for result in await client.messages.batches.results(made.id)]
    assert ["succeeded", "succeeded", "canceled", "canceled"] == kinds
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.batches.cancel(made.id)


async def test_batches_are_listed_and_deleted(client: Client, clock: ManualClock) -> None:
    """The newest first, page by page; one that is not done cannot be deleted, and one that is deleted is gone."""
    made = [(await client.messages.batches.create(requests=[asked("a")])).id for _ in range(3)]
    assert made[::-1] == [batch.id async for batch in client.messages.batches.list(limit=2)]
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.batches.delete(made[0])
    clock.move(100.0)
    assert "message_batch_deleted" == (await client.messages.batches.delete(made[0])).type
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.batches.retrieve(made[0])


@pytest.mark.parametrize("requests", [[], [asked("a"), asked("a")]])
async def test_a_batch_that_is_wrong_is_refused(client: Client, requests: Any) -> None:
    """At once, with the reason."""
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.batches.create(requests=requests)

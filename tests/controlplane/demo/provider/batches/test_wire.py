"""OpenAI's files and batches as the official client sees them: uploads, states, results, errors, cancelling, expiry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types import Batch, FileObject

from controlplane.clock import ManualClock
from controlplane.demo.provider import Latency, Provider, ProviderConfig, UpstreamConfig
from tests.controlplane.demo.provider.vendor_types import strictly

CHAT = "/v1/chat/completions"


def line(custom_id: str, *, url: str = CHAT, **body: Any) -> str:
    """One request of a batch."""
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Tell me about {custom_id}."}]} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": asked})


@pytest.fixture
async def slow(clock: ManualClock) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a provider whose batches take a hundred seconds of a clock that stands still."""
    running = Provider(
        ProviderConfig(upstreams=(UpstreamConfig(port=0),), latency=Latency(scale=1), batch_s=100.0), clock=clock
    )
    await running.start()
    async with openai.AsyncOpenAI(base_url=running.base_url, api_key="sk-test", max_retries=0, timeout=10) as made:
        yield made
    await running.stop()


async def upload(client: openai.AsyncOpenAI, *lines: str) -> FileObject:
    """A file of requests."""
    content = "\n".join(lines).encode()
    return await client.files.create(file=("in.jsonl", content), purpose="batch")


async def begin(client: openai.AsyncOpenAI, *lines: str, endpoint: Any = CHAT) -> Batch:
    """A batch of these requests."""
    file = await upload(client, *lines)
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


async def results(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    assert file_id is not None
    return [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]


async def test_a_batch_answers_what_the_endpoint_answers(client: openai.AsyncOpenAI, provider: Provider) -> None:
    """Each line has the answer and the usage of a call of its own, the refused one is in the error file, and all is billed."""
    made = await begin(client, line("a"), line("b"), line("c", model="nothing"))
    assert "validating" == made.status
    done = strictly(Batch, json.loads((await client.batches.with_raw_response.retrieve(made.id)).text))
    assert done.request_counts is not None
    assert done.usage is not None
    assert ("completed", 3, 2, 1) == (
        done.status,
        *done.request_counts.model_dump(include={"total"}).values(),
        done.request_counts.completed,
        done.request_counts.failed,
    )
    answers = await results(client, done.output_file_id)
    (refused,) = await results(client, done.error_file_id)
    assert ["a", "b"] == [answer["custom_id"] for answer in answers]
    assert ("c", 404) == (refused["custom_id"], refused["response"]["status_code"])
    alone = await client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Tell me about a."}]
    )
    body = answers[0]["response"]["body"]
    assert alone.usage is not None
    assert (alone.choices[0].message.content, alone.usage.total_tokens) == (
        body["choices"][0]["message"]["content"],
        body["usage"]["total_tokens"],
    )
    used = sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers)
    assert used == done.usage.total_tokens
    billed = provider.upstreams[0].stats.model("gpt-4o-mini-2024-07-18")
    assert used + alone.usage.total_tokens == billed.prompt_tokens + billed.completion_tokens


async def test_a_batch_passes_through_its_states(slow: openai.AsyncOpenAI, clock: ManualClock) -> None:
    """It is validated, worked on, written down and completed, as time goes by."""
    made = await begin(slow, *(line(str(n)) for n in range(8)))
    seen = []
    for _ in range(4):
        now = await slow.batches.retrieve(made.id)
        assert now.request_counts is not None
        seen.append((now.status, now.request_counts.completed))
        clock.move(45.0)
    assert [("validating", 0), ("in_progress", 3), ("finalizing", 8), ("completed", 8)] == seen


async def test_a_cancelled_batch_keeps_what_was_done(slow: openai.AsyncOpenAI, clock: ManualClock) -> None:
    """Its output holds the lines that were answered before."""
    made = await begin(slow, *(line(str(n)) for n in range(8)))
    clock.move(50.0)
    assert "cancelling" == (await slow.batches.cancel(made.id)).status
    clock.move(11.0)
    done = await slow.batches.retrieve(made.id)
    assert ("cancelled", 4) == (done.status, len(await results(slow, done.output_file_id)))
    with pytest.raises(openai.ConflictError):
        await slow.batches.cancel(made.id)


async def test_a_batch_that_takes_more_than_a_day_expires(clock: ManualClock) -> None:
    """What was not done by then is in the error file."""
    config = ProviderConfig(upstreams=(UpstreamConfig(port=0),), batch_s=172_800.0)
    running = Provider(config, clock=clock)
    await running.start()
    async with openai.AsyncOpenAI(base_url=running.base_url, api_key="sk-test") as client:
        made = await begin(client, *(line(str(n)) for n in range(8)))
        clock.move(86_400.0)
        done = await client.batches.retrieve(made.id)
        assert ("expired", 4) == (done.status, len(await results(client, done.output_file_id)))
        errors = await results(client, done.error_file_id)
        assert 4 * ["batch_expired"] == [error["error"]["code"] for error in errors]
    await running.stop()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["{"], "invalid_json_line"),
        ([line("a", url="/v1/embeddings")], "invalid_url"),
        ([line("a"), line("a")], "duplicate_custom_id"),
        ([""], "empty_file"),
    ],
)
async def test_a_file_that_is_wrong_fails_its_batch(client: openai.AsyncOpenAI, lines: list[str], code: str) -> None:
    """With the reason, and the number of the line."""
    made = await client.batches.retrieve((await begin(client, *lines)).id)
    assert made.errors is not None
    assert made.errors.data is not None
    assert ("failed", code) == (made.status, made.errors.data[0].code)


async def test_files_and_batches_are_listed_and_deleted(client: openai.AsyncOpenAI) -> None:
    """The newest first, page by page; what is deleted is gone."""
    made = [await begin(client, line(str(n))) for n in range(3)]
    assert [batch.id for batch in made[::-1]] == [batch.id async for batch in client.batches.list(limit=2)]
    inputs = [file.id async for file in client.files.list(purpose="batch")]
    assert [batch.input_file_id for batch in made[::-1]] == inputs
    assert (await client.files.delete(inputs[0])).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(inputs[0])


async def test_files_are_kept_within_a_number_of_bytes(clock: ManualClock) -> None:
    """The oldest give way, and one that is larger than all room is refused."""
    config = ProviderConfig(upstreams=(UpstreamConfig(port=0),), files_bytes_max=1_000)
    running = Provider(config, clock=clock)
    await running.start()
    async with openai.AsyncOpenAI(base_url=running.base_url, api_key="sk-test", max_retries=0) as client:
        first, second = [await upload(client, "x" * 600) for _ in range(2)]
        assert [second.id] == [file.id async for file in client.files.list()]
        with pytest.raises(openai.APIStatusError):
            await upload(client, "x" * 1_001)
        assert first.id != second.id
    await running.stop()

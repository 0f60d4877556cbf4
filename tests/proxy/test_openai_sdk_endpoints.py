"""The official OpenAI SDK, unchanged, on every endpoint beside chat, through the proxy to the simulated provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pydantic
import pytest
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall, ResponseInputItemParam

from controlplane.contract.keys import hash_key
from controlplane.contract.pricing import Price
from controlplane.contract.records import CostState, Outcome
from controlplane.contract.snapshot import Deployment, KeyEntry, Route, Snapshot, TenantPolicy, Upstream
from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from tests.proxy.fakes import PEPPER, World

MODELS = (
    "gpt-4o-mini", "gpt-3.5-turbo-instruct", "omni-moderation-latest", "tts-1", "gpt-4o-transcribe", "whisper-1", "gpt-image-1", "dall-e-2",
)  # fmt: skip
PRICE = Price(1_000_000_000, 2_000_000_000, 500_000_000, audio_input=1, image_input=1, image_output=1, version="p")
WAV = (
    b"RIFF\x24\x7d\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x00\x7d\x00\x00"
    + bytes(32_000)
)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
WEATHER: FunctionToolParam = {
    "type": "function", "name": "weather", "description": "the weather", "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip


@pytest.fixture
async def served(world: World) -> AsyncIterator[World]:
    """A worker in front of a simulated provider, with two tenants."""
    config = ProviderConfig(upstreams=(UpstreamConfig(name="primary", port=0),), admin_port=0, latency=Latency(scale=0))
    provider = Provider(config)
    await provider.start()
    world.worker.apply(
        Snapshot(
            version=1,
            created_us=1,
            tenants=(TenantPolicy("ann"), TenantPolicy("bob")),
            keys=tuple(
                KeyEntry(hash_key(f"sk-heph-{name}".encode(), PEPPER), f"key_{name}", name) for name in ("ann", "bob")
            ),
            upstreams=(Upstream("sim", "openai", f"http://127.0.0.1:{provider.ports['primary']}/v1", "env:UP_KEY"),),
            routes=tuple(Route(name, (Deployment(f"sim/{name}", "sim", name, price=PRICE),)) for name in MODELS),
        )
    )
    yield world
    await provider.stop()


def client(world: World, name: str = "ann") -> openai.AsyncOpenAI:
    """The SDK of a tenant."""
    return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=f"sk-heph-{name}", max_retries=0)


async def test_a_response_its_stream_and_what_follows(served: World) -> None:
    """Create, stream, continue, retrieve, list the input, cancel what cannot be, delete; each call has its record."""
    async with client(served) as ann:
        whole = await ann.responses.create(model="gpt-4o-mini", input="Tell me about the sea.")
        assert whole.output_text
        assert whole.usage is not None
        async with ann.responses.stream(model="gpt-4o-mini", input="Tell me about the sea.") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert whole.output_text == final.output_text
        assert list(range(len(events))) == [event.sequence_number for event in events]
        after = await ann.responses.create(model="gpt-4o-mini", input="And?", previous_response_id=final.id)
        assert final.id == after.previous_response_id
        assert after.output_text == (await ann.responses.retrieve(after.id)).output_text
        items = await ann.responses.input_items.list(after.id)
        assert "message" == items.data[0].type
        await ann.responses.delete(whole.id)
        with pytest.raises(openai.NotFoundError):
            await ann.responses.retrieve(whole.id)
    records = served.records()
    assert final.usage is not None
    assert [whole.usage.total_tokens, final.usage.total_tokens] == [record.tokens.total for record in records[:2]]
    assert records[0].tokens == records[1].tokens
    assert records[0].cost_nanousd == records[1].cost_nanousd
    assert ["", "", "", "_get", "_input_items", "_delete", "_get"] == [
        record.operation.removeprefix("responses") for record in records
    ]


async def test_another_tenant_gets_what_an_unknown_id_gets(served: World) -> None:
    """The SDK of another tenant raises NotFoundError for everything of ours, and continues nothing."""
    async with client(served) as ann, client(served, "bob") as bob:
        mine = await ann.responses.create(model="gpt-4o-mini", input="secret")
        home = await ann.conversations.create()
        for work in (
            bob.responses.retrieve(mine.id),
            bob.responses.delete(mine.id),
            bob.responses.cancel(mine.id),
            bob.responses.create(model="gpt-4o-mini", input="go on", previous_response_id=mine.id),
            bob.responses.create(model="gpt-4o-mini", input="go on", conversation=home.id),
            bob.conversations.retrieve(home.id),
            bob.conversations.delete(home.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await work
        assert mine.id == (await ann.responses.retrieve(mine.id)).id


class City(pydantic.BaseModel):
    """What the model is told to answer."""

    name: str
    people: int


async def test_tools_and_structured_output(served: World) -> None:
    """A forced function call and a JSON schema come back in the SDK's own types; what a tool said goes on from there."""
    async with client(served) as ann:
        called = await ann.responses.create(
            model="gpt-4o-mini", input="Weather in Oslo?", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
        )  # fmt: skip
        (call,) = called.output
        assert isinstance(call, ResponseFunctionToolCall)
        said: ResponseInputItemParam = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        again = await ann.responses.create(model="gpt-4o-mini", previous_response_id=called.id, input=[said])
        assert again.output_text
        parsed = await ann.responses.parse(model="gpt-4o-mini", input="Oslo", text_format=City)
        assert isinstance(parsed.output_parsed, City)
    assert {Outcome.OK} == {record.outcome for record in served.records()}


async def test_conversations(served: World) -> None:
    """A conversation is made, filled by a response, read item by item, changed and deleted."""
    async with client(served) as ann:
        home = await ann.conversations.create(metadata={"topic": "sea"})
        await ann.responses.create(model="gpt-4o-mini", input="hello", conversation=home.id)
        items = [item async for item in ann.conversations.items.list(home.id)]
        assert 2 == len(items)
        found = await ann.conversations.items.retrieve(str(items[0].id), conversation_id=home.id)
        assert items[0].id == found.id
        changed = await ann.conversations.update(home.id, metadata={"topic": "land"})
        assert {"topic": "land"} == changed.metadata
        await ann.conversations.items.create(home.id, items=[{"type": "message", "role": "user", "content": "more"}])
        await ann.conversations.delete(home.id)
        with pytest.raises(openai.NotFoundError):
            await ann.conversations.retrieve(home.id)


async def test_the_blocking_client_on_every_endpoint(served: World) -> None:
    """Responses, completions, moderations, speech, transcriptions and images, synchronously; each call leaves one record."""

    def work() -> int:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-heph-ann", max_retries=0) as ann:
            made = ann.responses.create(model="gpt-4o-mini", input="hi")
            assert made.output_text == ann.responses.retrieve(made.id).output_text
            events = list(ann.responses.create(model="gpt-4o-mini", input="hi", stream=True))
            assert "response.completed" == events[-1].type
            old = ann.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once", max_tokens=8)
            assert old.choices[0].text
            parts = list(
                ann.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once", max_tokens=8, stream=True)
            )
            assert old.choices[0].text == "".join(part.choices[0].text for part in parts if part.choices)
            assert ann.moderations.create(input="hi").results
            assert len(ann.audio.speech.create(model="tts-1", voice="alloy", input="hi").content) > 100
            file = ("a.wav", WAV, "audio/wav")
            assert ann.audio.transcriptions.create(model="gpt-4o-transcribe", file=file).text
            assert ann.audio.translations.create(model="whisper-1", file=file).text
            assert ann.images.generate(model="gpt-image-1", prompt="a cat").data
            assert ann.images.edit(model="gpt-image-1", image=("a.png", PNG, "image/png"), prompt="a dog").data
            assert ann.images.create_variation(model="dall-e-2", image=("a.png", PNG, "image/png")).data
        return 12

    assert await asyncio.to_thread(work) == len(served.records())
    states = {record.operation: record.cost_state for record in served.records()}
    assert {"audio_speech", "audio_translations", "images_variations"} == {
        name for name, state in states.items() if state is CostState.UNPRICED
    }


async def test_streams_of_sound_and_pictures(served: World) -> None:
    """A transcription and an image arrive as their events, and are metered like the whole answers."""
    async with client(served) as ann:
        heard = [
            event
            async for event in await ann.audio.transcriptions.create(
                model="gpt-4o-transcribe", file=("a.wav", WAV, "audio/wav"), stream=True
            )
        ]
        assert "transcript.text.done" == heard[-1].type
        drawn = [
            event
            async for event in await ann.images.generate(
                model="gpt-image-1", prompt="a cat", stream=True, partial_images=1
            )
        ]
        assert "image_generation.completed" == drawn[-1].type
        await ann.images.generate(model="gpt-image-1", prompt="a cat")
    records = served.records()
    assert all(record.tokens.total for record in records)
    assert records[1].tokens.image_output

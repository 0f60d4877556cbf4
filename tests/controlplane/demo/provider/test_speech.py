"""Speech as the official client sees it."""

from __future__ import annotations

import base64
import json

import openai
import pytest

from controlplane.demo.faults import Fault, FaultKind
from controlplane.demo.provider import Provider
from tests.controlplane.demo.fakes import RawClient, post


@pytest.mark.parametrize(("kind", "beginning"), [("mp3", b"\xff\xfb"), ("wav", b"RIFF"), ("opus", b"OggS")])
async def test_audio_has_the_format_that_was_asked_for(client: openai.AsyncOpenAI, kind: str, beginning: bytes) -> None:
    """The bytes and their type are of the asked format, streamed by the SDK in chunks."""
    async with client.audio.speech.with_streaming_response.create(
        model="tts-1",
        voice="alloy",
        input="Hello there.",
        response_format=kind,  # type: ignore[arg-type]
    ) as response:
        assert response.headers["content-type"].startswith("audio/")
        assert (await response.read()).startswith(beginning)


async def test_longer_texts_take_longer(client: openai.AsyncOpenAI) -> None:
    """A longer text makes a longer file."""
    sizes = []
    for text in ("Hello.", "Hello there, how are you all today?"):
        made = await client.audio.speech.create(model="tts-1", voice="alloy", input=text, response_format="wav")
        sizes.append(len(made.content))
    assert sizes[0] < sizes[1]


async def test_events_carry_the_audio_and_its_usage(raw: RawClient) -> None:
    """As events, the pieces make the same file, and the last one says what it cost."""
    body = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "Hello there.", "response_format": "wav"}
    await raw.send(post(body, path="/v1/audio/speech"))
    audio = (await raw.answer())[2]
    await raw.send(post(body | {"stream_format": "sse"}, path="/v1/audio/speech"))
    events = [json.loads(part.removeprefix(b"data: ")) for part in (await raw.answer())[2].split(b"\n\n") if part]
    *pieces, done = events
    assert audio == b"".join(base64.b64decode(piece["audio"]) for piece in pieces)
    usage = done["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]


async def test_text_is_required(raw: RawClient) -> None:
    """An empty text is refused."""
    await raw.send(post({"model": "tts-1", "voice": "alloy", "input": ""}, path="/v1/audio/speech"))
    assert 400 == (await raw.answer())[0]


async def test_audio_that_breaks_off(provider: Provider, raw: RawClient) -> None:
    """An error in the middle of audio is an end without an end: no event is written into it."""
    provider.faults.add(Fault(FaultKind.STREAM_ERROR, after_chunks=1))
    await raw.send(post({"model": "tts-1", "voice": "alloy", "input": "Hello. " * 40}, path="/v1/audio/speech"))
    await raw.head()
    rest = await raw.reader.read()
    assert b"error" not in rest
    assert not rest.endswith(b"0\r\n\r\n")

"""Transcriptions and translations as the official client sees them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from controlplane.demo.faults import Fault, FaultKind, FaultMatch
from controlplane.demo.provider import Provider, sound

FILE = ("talk.wav", sound.wav(2.5), "audio/wav")


async def test_every_format_says_the_same(client: openai.AsyncOpenAI) -> None:
    """The same recording has the same text in each format, and its length where the format tells it."""
    create: Any = client.audio.transcriptions.create
    made = await create(model="whisper-1", file=FILE)
    assert (3, "duration") == (made.usage.seconds, made.usage.type)
    assert f"{made.text}\n" == await create(model="whisper-1", file=FILE, response_format="text")
    verbose = await create(
        model="whisper-1", file=FILE, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert (made.text, 2.5) == (verbose.text, verbose.duration)
    assert made.text.split() == [word.word for word in verbose.words]
    assert [made.text] == [segment.text for segment in verbose.segments]
    srt = await create(model="whisper-1", file=FILE, response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:02,500\n")
    assert (await create(model="whisper-1", file=FILE, response_format="vtt")).startswith("WEBVTT\n\n00:00:00.000")


async def test_newer_models_count_tokens(client: openai.AsyncOpenAI) -> None:
    """Ten tokens of audio a second, those of the prompt, and those of the text; a stream says the same."""
    create: Any = client.audio.transcriptions.create
    made = await create(model="gpt-4o-transcribe", file=FILE, prompt="Names: Ada")
    usage = made.usage
    assert (25, usage.input_tokens) == (
        usage.input_token_details.audio_tokens,
        usage.input_token_details.audio_tokens + usage.input_token_details.text_tokens,
    )
    events = [
        event async for event in await create(model="gpt-4o-transcribe", file=FILE, prompt="Names: Ada", stream=True)
    ]
    assert made.text == events[-1].text == "".join(event.delta for event in events[:-1])
    assert usage.model_dump() == events[-1].usage.model_dump()


async def test_translations_speak_english(client: openai.AsyncOpenAI) -> None:
    """A translation has a text in the formats of a transcription."""
    made = await client.audio.translations.create(model="whisper-1", file=FILE)
    assert made.text
    verbose: Any = await client.audio.translations.create(model="whisper-1", file=FILE, response_format="verbose_json")
    assert made.text == verbose.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "gpt-4o"}, "does not exist"),
        ({"model": "gpt-4o-transcribe", "response_format": "srt"}, "not compatible"),
        ({"file": ("a.wav", b"")}, "too short"),
    ],
)
async def test_mistakes_are_told(client: openai.AsyncOpenAI, fields: dict[str, Any], words: str) -> None:
    """Each mistake is told in OpenAI's words."""
    create: Any = client.audio.transcriptions.create
    with pytest.raises(openai.APIStatusError, match=words):
        await create(**({"model": "whisper-1", "file": FILE} | fields))


async def test_faults_find_the_model_of_a_form(provider: Provider, client: openai.AsyncOpenAI) -> None:
    """A fault for one model meets the forms that name it."""
    provider.faults.add(Fault(FaultKind.OUTAGE_503, match=FaultMatch(model="whisper-*")))
    with pytest.raises(openai.InternalServerError):
        await client.audio.transcriptions.create(model="whisper-1", file=FILE)
    await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=FILE)

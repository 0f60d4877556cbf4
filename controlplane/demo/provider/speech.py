"""Speech: a text becomes a file of silence of about the length that it would take to say it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec

from controlplane.demo.provider import problems, sound
from controlplane.demo.provider.answer import EVENTS, Answer, Usage
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import MODELS
from controlplane.demo.provider.request import read

WORD_S = 0.03  # a hurried speaker, so that files stay small
SECONDS_MAX = 4.0
CHUNK_BYTES = 4_096
TOKENS_PER_S = 20


class SpeechRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/audio/speech."""

    model: str
    input: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    voice: str | dict[str, str]
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4)] | None = None
    stream_format: Literal["sse", "audio"] | None = None


def answer(request: Request, inference: Inference) -> Answer:
    """The audio in chunks, or as events that carry it. Raises Problem."""
    asked = read(request.body, SpeechRequest)
    model = MODELS.get(asked.model)
    if model is None or model.kind != "speech":
        raise problems.unknown_model(asked.model)
    tokenizer = inference.tokenizer(model)
    seconds = min(SECONDS_MAX, WORD_S * (1 + len(asked.input.split())) / (asked.speed or 1))
    kind = asked.response_format or "mp3"
    audio = sound.silence(kind, seconds)
    usage = Usage(
        tokenizer.count(asked.input) + tokenizer.count(asked.instructions or ""), round(TOKENS_PER_S * seconds)
    )
    chunks = [audio[start : start + CHUNK_BYTES] for start in range(0, len(audio), CHUNK_BYTES)]
    told = asked.stream_format == "sse"
    if told:
        chunks = [_event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}) for part in chunks]
        counts = {"input_tokens": usage.prompt, "output_tokens": usage.completion}
        done = {"type": "speech.audio.done", "usage": counts | {"total_tokens": usage.prompt + usage.completion}}
        chunks.append(_event(done))
    return Answer(
        model.name,
        usage,
        usage if told else None,
        content_type=EVENTS if told else sound.CONTENT_TYPES[kind],
        events=tuple(chunks),
        steps=tuple(range(1, len(chunks) + 1)),
        produced=tuple(usage.completion * (index + 1) // len(chunks) for index in range(len(chunks))),
    )


def _event(document: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(document)

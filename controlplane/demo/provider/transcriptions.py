"""Transcriptions and translations: a recording becomes a text that its bytes decide, in each format that can be asked for."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import msgspec

from controlplane.demo.provider import problems, prose, sound
from controlplane.demo.provider.answer import EVENTS, JSON, Answer, Usage
from controlplane.demo.provider.encoding import STREAM_END
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import MODELS, Model
from controlplane.demo.provider.multipart import Form, read_form
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.tokens import Tokenizer

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TOKENS_PER_S = 10  # of audio
_TEXT = b"text/plain; charset=utf-8"
Json = dict[str, Any]  # JSON on its way to bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """What was understood of a recording."""

    model: Model
    text: str
    tokens: list[int]
    seconds: float
    language: str
    prompt_tokens: int
    usage: Usage

    def told(self) -> Json:
        """The usage, by tokens or by time."""
        if self.model.name == "whisper-1":
            return {"type": "duration", "seconds": -int(-self.seconds // 1)}
        return {
            "type": "tokens",
            "total_tokens": self.usage.prompt + self.usage.completion,
            "input_tokens": self.usage.prompt,
            "input_token_details": {
                "text_tokens": self.prompt_tokens,
                "audio_tokens": self.usage.prompt - self.prompt_tokens,
            },
            "output_tokens": self.usage.completion,
        }


def transcription(request: Request, inference: Inference) -> Answer:
    """The text of a recording. Raises Problem."""
    form = read_form(request)
    heard = _heard(form, inference)
    if form.fields.get("stream") == "true" and heard.model.name != "whisper-1":
        return _streamed(heard, inference.tokenizer(heard.model))
    return _answer(form, heard, task="transcribe")


def translation(request: Request, inference: Inference) -> Answer:
    """The text of a recording in English. Raises Problem."""
    form = read_form(request)
    heard = _heard(form, inference)
    if heard.model.name != "whisper-1":
        raise Problem(400, f"The model `{heard.model.name}` does not support translations.", param="model")
    return _answer(form, heard, task="translate")


def _heard(form: Form, inference: Inference) -> Heard:
    name = form.fields.get("model", "")
    if not name:
        raise problems.no_model()
    model = MODELS.get(name)
    if model is None or model.kind != "transcription":
        raise problems.unknown_model(name)
    content = form.file("file").content
    if not content:
        raise Problem(
            400, "Audio file is too short. Minimum audio length is 0.1 seconds.", code="audio_too_short", param="file"
        )
    digest = hashlib.blake2b(content, digest_size=16, key=str(inference.seed).encode()).digest()
    tokenizer = inference.tokenizer(model)
    text = prose.answer("the recording of a meeting", random.Random(digest))
    tokens = tokenizer.encode(text)
    seconds = sound.seconds_of(content)
    prompt = tokenizer.count(form.fields.get("prompt", ""))
    usage = Usage(prompt + max(1, round(TOKENS_PER_S * seconds)), len(tokens))
    return Heard(model, text, tokens, seconds, form.fields.get("language", "english"), prompt, usage)


def _answer(form: Form, heard: Heard, *, task: str) -> Answer:
    kind = form.fields.get("response_format", "json")
    if kind not in FORMATS:
        raise Problem(400, f"Invalid value: '{kind}'.", param="response_format", code="invalid_value")
    if kind not in ("json", "text") and heard.model.name != "whisper-1":
        message = (
            f"response_format '{kind}' is not compatible with model '{heard.model.name}'. Use 'json' or 'text' instead."
        )
        raise Problem(400, message, param="response_format", code="unsupported_value")
    if kind in ("text", "srt", "vtt"):
        body, content_type = _as_text(heard, kind), _TEXT
    else:
        document: Json = {"text": heard.text} if kind == "json" else _verbose(form, heard, task)
        if task == "transcribe":
            document["usage"] = heard.told()
        body, content_type = msgspec.json.encode(document), JSON
    reported = heard.usage if content_type == JSON and heard.model.name != "whisper-1" else None
    return Answer(heard.model.name, heard.usage, reported, body, content_type)


def _verbose(form: Form, heard: Heard, task: str) -> Json:
    """A document with one segment, and its words where they were asked for."""
    seconds = round(heard.seconds, 2)
    document: Json = {"task": task, "language": heard.language, "duration": seconds, "text": heard.text}
    wanted = form.lists.get("timestamp_granularities", ["segment"])
    if "word" in wanted:
        words = heard.text.split()
        step = heard.seconds / len(words)
        document["words"] = [
            {"word": word, "start": round(step * index, 2), "end": round(step * (index + 1), 2)}
            for index, word in enumerate(words)
        ]
    if "segment" in wanted:
        segment = {"id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": heard.text, "tokens": heard.tokens}
        odds = {"temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.2, "no_speech_prob": 0.01}
        document["segments"] = [segment | odds]
    return document


def _as_text(heard: Heard, kind: str) -> bytes:
    if kind == "text":
        return heard.text.encode() + b"\n"
    point = "," if kind == "srt" else "."
    times = f"{_clock(0.0, point)} --> {_clock(heard.seconds, point)}\n{heard.text}\n\n"
    return (f"1\n{times}" if kind == "srt" else f"WEBVTT\n\n{times}").encode()


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{milliseconds:03d}"


def _streamed(heard: Heard, tokenizer: Tokenizer) -> Answer:
    """A delta for each token, then the whole text with its usage."""
    pieces = [piece for piece in tokenizer.pieces(heard.tokens) if piece]
    documents: list[Json] = [{"type": "transcript.text.delta", "delta": piece} for piece in pieces]
    documents.append({"type": "transcript.text.done", "text": heard.text, "usage": heard.told()})
    events = tuple(b"data: %b\n\n" % msgspec.json.encode(document) for document in documents)
    return Answer(
        heard.model.name,
        heard.usage,
        heard.usage,
        content_type=EVENTS,
        events=events,
        steps=(*range(1, len(pieces)), len(events)),
        produced=(*range(1, len(pieces)), heard.usage.completion),
        end=STREAM_END,
    )

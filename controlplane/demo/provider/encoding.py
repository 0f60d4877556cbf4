"""Chat completions as bytes, in OpenAI's field order and layout."""

from __future__ import annotations

from typing import Any

import msgspec

from controlplane.demo.provider.answer import EVENTS, ID, SECONDS, Answer, Usage
from controlplane.demo.provider.composition import Choice, Composition
from controlplane.demo.provider.tokens import Tokenizer

_JSON_START = b'{\n  "id": "chatcmpl-' + ID + b'",\n  "object": "chat.completion",\n  "created": ' + SECONDS
_EVENT_START = b'data: {"id":"chatcmpl-' + ID + b'","object":"chat.completion.chunk","created":' + SECONDS
STREAM_END = b"data: [DONE]\n\n"
_PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
Json = dict[str, Any]  # JSON on its way to bytes


def json_answer(
    made: Composition,
    reported: Usage | None,
    *,
    fingerprint: str | None,
    logprobs: int | None,
    tokenizer: Tokenizer,
    tier: str,
) -> Answer:
    """A composition as one JSON document. logprobs: None, or how many alternatives each token gets. tier: the one that serves it."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "logprobs": None if logprobs is None else _logprobs(tokenizer.pieces(choice.tokens), logprobs),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(made.choices)
    ]
    document: Json = {"model": made.model.name, "choices": choices}
    if reported is not None:
        document["usage"] = usage_document(reported)
    document |= {"service_tier": tier, "system_fingerprint": fingerprint}
    laid_out = msgspec.json.format(msgspec.json.encode(document), indent=2)
    return Answer(made.model.name, made.usage, reported, _JSON_START + b"," + laid_out[1:] + b"\n", marked=True)


def stream_answer(
    made: Composition,
    reported: Usage | None,
    *,
    fingerprint: str | None,
    logprobs: int | None,
    tokenizer: Tokenizer,
    tier: str,
    include_usage: bool,
    obfuscated: bool,
) -> Answer:
    """A composition as server-sent events: for each choice its role first, then a token each, then its finish reason."""
    model = made.model.name
    start = msgspec.json.encode({"model": model, "service_tier": tier, "system_fingerprint": fingerprint})
    start = b"," + start[1:-1] + b',"choices":['
    end = b'],"usage":null' if include_usage else b"]"
    deltas = [_deltas(choice, tokenizer, logprobs) for choice in made.choices]
    events: list[bytes] = []
    steps: list[int] = []
    produced: list[int] = []
    tokens = made.usage.reasoning
    for step in range(max(map(len, deltas))):
        for index, choice in enumerate(made.choices):
            if step < len(deltas[index]):
                last = step == len(deltas[index]) - 1
                for delta, odds in deltas[index][step]:
                    events.append(_event(start, end, index, delta, odds, None, obfuscated=obfuscated))
                if last:
                    events.append(_event(start, end, index, {}, None, choice.finish_reason, obfuscated=obfuscated))
                tokens += 1
        steps.append(len(events))
        produced.append(min(tokens, made.usage.completion))
    if include_usage and reported is not None:
        usage = msgspec.json.encode(usage_document(reported))
        events.append(start + b'],"usage":' + usage + _padding(len(events), obfuscated=obfuscated) + b"}\n\n")
    steps[-1] = len(events)
    produced[-1] = made.usage.completion
    return Answer(
        model,
        made.usage,
        reported,
        content_type=EVENTS,
        events=tuple(events),
        steps=tuple(steps),
        produced=tuple(produced),
        start=_EVENT_START,
        end=STREAM_END,
        hidden=made.usage.reasoning,
    )


def usage_document(usage: Usage) -> Json:
    """The usage object of a chat completion."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _message(choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text}
    if choice.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return message | {"refusal": None, "annotations": []}


def _deltas(choice: Choice, tokenizer: Tokenizer, logprobs: int | None) -> list[list[tuple[Json, Json | None]]]:
    """The deltas of a choice by step; the role comes with the first token, a finish reason is added by the caller."""
    if not choice.calls:
        steps: list[list[tuple[Json, Json | None]]] = [[({"role": "assistant", "content": "", "refusal": None}, None)]]
        pieces = [piece for piece in tokenizer.pieces(choice.tokens) if piece]
        for number, piece in enumerate(pieces):
            delta = ({"content": piece}, None if logprobs is None else _logprobs([piece], logprobs))
            if number == 0:
                steps[0].append(delta)
            else:
                steps.append([delta])
        return steps
    steps = []
    for index, call in enumerate(choice.calls):
        opened = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        delta_of_role: Json = {"role": "assistant", "content": None}
        if len(choice.calls) == 1:
            steps.append([(delta_of_role | {"tool_calls": [opened], "refusal": None}, None)])
        else:
            first = [(delta_of_role | {"refusal": None}, None)] if index == 0 else []
            steps.append([*first, ({"tool_calls": [opened]}, None)])
        for piece in tokenizer.pieces(tokenizer.encode(call.arguments)):
            if piece:
                steps.append([({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None)])
    return steps


def _event(
    start: bytes,
    end: bytes,
    index: int,
    delta: Json,
    logprobs: Json | None,
    finish_reason: str | None,
    *,
    obfuscated: bool,
) -> bytes:
    choice = msgspec.json.encode({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
    return start + choice + end + _padding(len(choice), obfuscated=obfuscated) + b"}\n\n"


def _padding(seed: int, *, obfuscated: bool) -> bytes:
    """Padding of a length that says nothing about the text; the same for the same event."""
    if not obfuscated:
        return b""
    length = 1 + seed * 7 % 16
    return b',"obfuscation":"%b"' % _PADDING[seed % 40 :][:length].encode()


def _logprobs(pieces: list[str], alternatives: int) -> Json:
    """Log probabilities that look like a model's: the chosen token first, the alternatives below it."""
    content = []
    for piece in pieces:
        chosen = -(sum(piece.encode()) % 97) / 128
        ranked = [_odds(piece if rank == 0 else f"{piece}{rank}", chosen - rank) for rank in range(alternatives)]
        content.append(_odds(piece, chosen) | {"top_logprobs": ranked})
    return {"content": content, "refusal": None}


def _odds(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

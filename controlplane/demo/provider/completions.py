"""Legacy completions: a prompt is continued, without roles."""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Any

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import EVENTS, ID, SECONDS, Answer, Usage
from controlplane.demo.provider.composition import Choice, choose
from controlplane.demo.provider.encoding import STREAM_END
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import MODELS, Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import (
    AtLeast1,
    Between0And2,
    BetweenMinus2And2,
    ChatRequest,
    Message,
    StreamOptions,
    missing,
    read,
)
from controlplane.demo.provider.tokens import Tokenizer

TOKENS_DEFAULT = 16  # of one answer when the client names no ceiling
_JSON_START = b'{\n  "id": "cmpl-' + ID + b'",\n  "object": "text_completion",\n  "created": ' + SECONDS
_EVENT_START = b'data: {"id":"cmpl-' + ID + b'","object":"text_completion","created":' + SECONDS
Json = dict[str, Any]  # JSON on its way to bytes


class CompletionsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. Fields that do not change a simulated answer are checked and otherwise unused."""

    model: str
    prompt: str | list[str | int | list[int]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None
    max_tokens: AtLeast1 | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    temperature: Between0And2 | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: BetweenMinus2And2 | None = None
    presence_penalty: BetweenMinus2And2 | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    user: str | None = None


def answer(request: Request, inference: Inference) -> Answer:
    """The encoded continuation of a prompt, or of several. Raises Problem."""
    asked = read(request.body, CompletionsRequest)
    model = MODELS.get(asked.model)
    if model is None:
        raise problems.unknown_model(asked.model)
    if model.kind != "completions":
        message = "This is a chat model and not supported in the v1/completions endpoint. Did you mean to use v1/chat/completions?"
        raise Problem(404, message, param="model")
    tokenizer = inference.tokenizer(model)
    prompts = _prompts(asked, tokenizer)
    room = asked.max_tokens or TOKENS_DEFAULT
    longest = max(tokenizer.count(prompt) for prompt in prompts)
    if longest + room > model.context_tokens_max:
        raise Problem(
            400,
            f"This model's maximum context length is {model.context_tokens_max} tokens, however you requested {longest + room} tokens "
            f"({longest} in your prompt; {room} for the completion). Please reduce your prompt; or completion length.",
            code="context_length_exceeded",
        )
    choices = [
        _choice(prompt, index, asked, model, tokenizer, inference.seed, room)
        for prompt in prompts
        for index in range(asked.n or 1)
    ]
    usage = Usage(sum(map(tokenizer.count, prompts)), sum(choice.completion_tokens for choice in choices))
    echoed = [prompt if asked.echo else "" for prompt in prompts for _ in range(asked.n or 1)]
    if asked.stream:
        return _streamed(asked, model, choices, echoed, usage, tokenizer)
    return _whole(model, choices, echoed, usage)


def _prompts(asked: CompletionsRequest, tokenizer: Tokenizer) -> list[str]:
    """The prompts as texts; token arrays become the text that they stand for."""
    given = asked.prompt
    if given is None:
        raise missing("prompt")
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        given = [[item for item in given if isinstance(item, int)]]
    texts = [item if isinstance(item, str) else tokenizer.decode(item) for item in given if not isinstance(item, int)]
    if not texts or len(texts) != len(given):
        raise Problem(400, "'$.prompt' is invalid. Please check the API reference.")
    return texts


def _choice(
    prompt: str, index: int, asked: CompletionsRequest, model: Model, tokenizer: Tokenizer, seed: int, room: int
) -> Choice:
    identity = f"{index}/{seed}/{model.name}/completions/{prompt}"
    draw = random.Random(hashlib.blake2b(identity.encode(errors="replace"), digest_size=16).digest())
    return choose(ChatRequest(model.name, [Message("user", prompt)], stop=asked.stop), tokenizer, draw, room)


def _whole(model: Model, choices: list[Choice], echoed: list[str], usage: Usage) -> Answer:
    document = {
        "model": model.name,
        "choices": [
            {"text": f"{echo}{choice.text}", "index": index, "logprobs": None, "finish_reason": choice.finish_reason}
            for index, (choice, echo) in enumerate(zip(choices, echoed, strict=True))
        ],
        "usage": _usage(usage),
    }
    laid_out = msgspec.json.format(msgspec.json.encode(document), indent=2)
    return Answer(model.name, usage, usage, _JSON_START + b"," + laid_out[1:] + b"\n", marked=True)


def _streamed(
    asked: CompletionsRequest,
    model: Model,
    choices: list[Choice],
    echoed: list[str],
    usage: Usage,
    tokenizer: Tokenizer,
) -> Answer:
    told = asked.stream_options is not None and asked.stream_options.include_usage
    events: list[bytes] = []
    steps: list[int] = []

    def event(parts: list[Json], extra: Json) -> None:
        document = {"choices": parts, "model": model.name} | extra
        events.append(b"," + msgspec.json.encode(document)[1:] + b"\n\n")

    unknown: Json = {"usage": None} if told else {}
    for index, choice in enumerate(choices):
        pieces = tokenizer.pieces(choice.tokens) or [""]
        for number, piece in enumerate(pieces):
            text = f"{echoed[index]}{piece}" if number == 0 else piece
            event([{"text": text, "index": index, "logprobs": None, "finish_reason": None}], unknown)
            steps.append(len(events))
        event([{"text": "", "index": index, "logprobs": None, "finish_reason": choice.finish_reason}], unknown)
        steps[-1] = len(events)
    if told:
        event([], {"usage": _usage(usage)})
        steps[-1] = len(events)
    return Answer(
        model.name,
        usage,
        usage if told else None,
        content_type=EVENTS,
        events=tuple(events),
        steps=tuple(steps),
        produced=tuple(min(token + 1, usage.completion) for token in range(len(steps))),
        start=_EVENT_START,
        end=STREAM_END,
    )


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }

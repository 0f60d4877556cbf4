"""Responses as bytes: one JSON document, or every event of the life of a response, numbered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from controlplane.demo.provider import prose
from controlplane.demo.provider.answer import EVENTS, ID, Answer, Usage
from controlplane.demo.provider.composition import Choice, Composition
from controlplane.demo.provider.responses.hosted import STEPS, hosted_calls
from controlplane.demo.provider.responses.request import Item, ResponsesRequest
from controlplane.demo.provider.tokens import Tokenizer

Json = dict[str, Any]  # JSON on its way to bytes
MARK = "<number>"  # stands for the mark until the JSON is made
_TIME = 4_102_444_799  # stands for the time; no answer is made in the last second of 2099
_SUMMARY_WORDS = 24


@dataclass(frozen=True, slots=True)
class Made:
    """An answer of the model with everything that is made of it. whole: the finished response as JSON, with marks."""

    document: Json
    output: list[Item]
    usage: Usage
    answer: Answer
    whole: bytes

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return self.answer.size_bytes + 3 * len(self.whole)


def make(request: ResponsesRequest, made: Composition, tokenizer: Tokenizer) -> Made:
    """A composition as a response, streamed or not."""
    choice = made.choices[0]
    summary = _summary(request, made)
    output = _output(choice, made, summary, hosted_calls(request, MARK))
    cut = choice.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    finished = document(request, made.model.name, status=status, output=output, usage=made.usage)
    whole = laid_out(finished)
    name = made.model.name
    if not request.stream:
        return Made(finished, output, made.usage, Answer(name, made.usage, made.usage, whole, marked=True), whole)
    writing = _Writing()
    begun = document(request, name, status="in_progress", output=[], usage=None)
    if request.background:
        writing.add("response.queued", response=begun | {"status": "queued"})
    writing.add("response.created", response=begun)
    writing.add("response.in_progress", response=begun)
    for index, item in enumerate(output):
        writing.item(index, item, choice, tokenizer)
    end = writing.encoded(f"response.{status}", response=finished)
    writing.step(0)
    answer = Answer(
        name,
        made.usage,
        made.usage,
        content_type=EVENTS,
        events=tuple(writing.events),
        steps=tuple(writing.steps),
        produced=tuple(min(made.usage.reasoning + tokens, made.usage.completion) for tokens in writing.produced),
        end=end,
        marked=True,
        hidden=made.usage.reasoning,
    )
    return Made(finished, output, made.usage, answer, whole)


def document(request: ResponsesRequest, model: str, *, status: str, output: list[Item], usage: Usage | None) -> Json:
    """A response in the state that it is in."""
    text, reasoning = request.text, request.reasoning
    form = text.format if text is not None else None
    ended = status == "completed"
    document: Json = {
        "id": f"resp_{MARK}",
        "object": "response",
        "created_at": _TIME,
        "status": status,
        "background": bool(request.background),
        "completed_at": _TIME if ended else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "model": model,
        "output": output,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": request.tier,
        "store": request.store is not False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {
            "format": {"type": "text"} if form is None else _given(form),
            "verbosity": (text.verbosity if text else None) or "medium",
        },
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None if usage is None else usage_document(usage),
        "user": request.user,
        "metadata": request.metadata or {},
    }
    if request.conversation_id:
        document["conversation"] = {"id": request.conversation_id}
    return document


def usage_document(usage: Usage) -> Json:
    """The usage of a response."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def laid_out(document: Json) -> bytes:
    """A response as JSON, laid out as OpenAI does, with marks."""
    return _marked(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"


def _given(form: msgspec.Struct) -> Json:
    """The fields of a format that were given."""
    fields = msgspec.structs.asdict(form)
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _marked(data: bytes) -> bytes:
    return data.replace(MARK.encode(), ID).replace(b"%d" % _TIME, b"\x01")


# --- output --------------------------------------------------------------------------------------------------------------


def _output(choice: Choice, made: Composition, summary: str, hosted: list[Item]) -> list[Item]:
    """The items of an answer: its reasoning, what the provider's own tools did, then its calls or its message."""
    items: list[Item] = []
    if made.usage.reasoning:
        parts = [{"type": "summary_text", "text": summary}] if summary else []
        items.append({"id": _id("rs", 0), "type": "reasoning", "summary": parts})
    items += hosted
    status = "incomplete" if choice.finish_reason == "length" else "completed"
    for call in choice.calls:
        items.append(
            {
                "id": _id("fc", len(items)),
                "type": "function_call",
                "status": status,
                "arguments": call.arguments,
                "call_id": call.id,
                "name": call.name,
            }
        )
    if choice.text:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": choice.text}
        items.append(
            {"id": _id("msg", len(items)), "type": "message", "status": status, "content": [part], "role": "assistant"}
        )
    return items


def _id(kind: str, index: int) -> str:
    return f"{kind}_{MARK}{index:02x}"


def _summary(request: ResponsesRequest, made: Composition) -> str:
    """What is told of the reasoning: nothing, unless a summary was asked for."""
    if request.reasoning is None or request.reasoning.summary is None or not made.usage.reasoning:
        return ""
    words = prose.keywords(request.input if isinstance(request.input, str) else str(request.model))
    return f"**Considering {words[0]}**\n\nI weigh {' and '.join(words[:_SUMMARY_WORDS])}."


# --- events --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Writing:
    """A stream while it is written, with how much of it is out after each token."""

    events: list[bytes] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    produced: list[int] = field(default_factory=list)
    number: int = 0
    tokens: int = 0

    def encoded(self, kind: str, **fields: object) -> bytes:
        """The next event."""
        event = {"type": kind, "sequence_number": self.number} | fields
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _marked(msgspec.json.encode(event)))

    def add(self, kind: str, **fields: object) -> None:
        self.events.append(self.encoded(kind, **fields))

    def step(self, tokens: int) -> None:
        """So many more tokens are there."""
        self.tokens += tokens
        self.steps.append(len(self.events))
        self.produced.append(self.tokens)

    def item(self, index: int, item: Item, choice: Choice, tokenizer: Tokenizer) -> None:
        """All events of one output item."""
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            self.add("response.output_item.added", output_index=index, item=item | {"summary": []})
            for part in item["summary"]:
                self._summary(place, part)
        elif item["type"] in STEPS:
            self._hosted(place, item)
        elif item["type"] == "function_call":
            opened = item | {"status": "in_progress", "arguments": ""}
            self.add("response.output_item.added", output_index=index, item=opened)
            for piece in tokenizer.pieces(tokenizer.encode(item["arguments"])):
                if piece:
                    self.add("response.function_call_arguments.delta", **place, delta=piece)
                    self.step(1)
            done = {"arguments": item["arguments"], "name": item["name"]}
            self.add("response.function_call_arguments.done", **place, **done)
        else:
            opened = item | {"status": "in_progress", "content": []}
            self.add("response.output_item.added", output_index=index, item=opened)
            self._text(place | {"content_index": 0}, item["content"][0], tokenizer.pieces(choice.tokens))
        self.add("response.output_item.done", output_index=index, item=item)

    def _hosted(self, place: Json, item: Item) -> None:
        """A call of a tool of the provider's own, step by step."""
        kind = item["type"]
        kept = ("id", "type", "action", "queries", "container_id")
        opened = {name: value for name, value in item.items() if name in kept} | {"status": "in_progress"}
        self.add("response.output_item.added", output_index=place["output_index"], item=opened)
        for step in STEPS[kind]:
            if step == "interpreting":
                self.add("response.code_interpreter_call_code.delta", **place, delta=item["code"])
                self.add("response.code_interpreter_call_code.done", **place, code=item["code"])
            self.add(f"response.{kind}.{step}", **place)

    def _summary(self, place: Json, part: Json) -> None:
        place = place | {"summary_index": 0}
        self.add("response.reasoning_summary_part.added", **place, part=part | {"text": ""})
        for piece in part["text"].splitlines(keepends=True):
            self.add("response.reasoning_summary_text.delta", **place, delta=piece)
        self.add("response.reasoning_summary_text.done", **place, text=part["text"])
        self.add("response.reasoning_summary_part.done", **place, part=part)

    def _text(self, place: Json, part: Json, pieces: list[str]) -> None:
        self.add("response.content_part.added", **place, part=part | {"text": ""})
        for piece in pieces:
            if piece:
                self.add("response.output_text.delta", **place, delta=piece, logprobs=[])
                self.step(1)
        self.add("response.output_text.done", **place, text=part["text"], logprobs=[])
        self.add("response.content_part.done", **place, part=part)

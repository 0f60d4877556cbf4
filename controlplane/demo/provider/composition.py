"""What the simulated model says: choices, tool calls and exact token counts, decided by the prompt and the seed alone."""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from controlplane.demo.provider import problems, prose
from controlplane.demo.provider.answer import Usage
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import ChatRequest, Function, Message, Schema, Tool, ToolChoice
from controlplane.demo.provider.schema import Instance
from controlplane.demo.provider.tokens import Tokenizer

CACHE_FROM_TOKENS = 1024  # prompts shorter than this are never read from the provider's prompt cache
CACHE_STEP_TOKENS = 128
PREFIXES_MAX = 50_000  # remembered prompt prefixes
_ASKS_FOR_A_TOOL = re.compile(
    r"\b(?:use|call|invoke|run) (?:the|a|your|any) (?:\w+ )?(?:tools?|functions?)\b", re.IGNORECASE
)
ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A tool call that the model makes."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a call, as text or as tool calls."""

    text: str | None
    tokens: list[int]  # of the text
    calls: tuple[MadeCall, ...]
    finish_reason: str
    completion_tokens: int
    stopped_at: str | None = None  # the stop sequence that ended the text


@dataclass(frozen=True, slots=True)
class Composition:
    """A whole answer before it is encoded."""

    model: Model
    choices: tuple[Choice, ...]
    usage: Usage


@dataclass(slots=True)
class PromptCache:
    """The prefixes of long prompts that were seen before, as the provider's own prompt cache knows them."""

    _known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def read(self, tokens: list[int]) -> int:
        """How many leading tokens are known, in steps of 128 from 1024 on; all of them are known from now on."""
        if len(tokens) < CACHE_FROM_TOKENS:
            return 0
        digest = hashlib.blake2b(digest_size=16)
        cached = start = 0
        for end in range(CACHE_FROM_TOKENS, len(tokens) + 1, CACHE_STEP_TOKENS):
            digest.update(array("I", tokens[start:end]).tobytes())
            start = end
            prefix = digest.digest()
            if prefix in self._known:
                cached = end
                self._known.move_to_end(prefix)
            else:
                self._known[prefix] = None
        while len(self._known) > PREFIXES_MAX:
            self._known.popitem(last=False)
        return cached


def compose(
    request: ChatRequest, model: Model, tokenizer: Tokenizer, *, seed: int, prompts: PromptCache
) -> Composition:
    """The answer to a checked request. Raises Problem when the prompt is too long or a schema cannot be met."""
    if model.reasons and request.max_tokens is not None:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        raise Problem(400, message, param="max_tokens", code="unsupported_parameter")
    prompt_tokens = count_prompt(request, tokenizer)
    _check_lengths(request, model, prompt_tokens)
    cached = 0
    if prompt_tokens >= CACHE_FROM_TOKENS:
        cached = min(prompt_tokens, prompts.read(tokenizer.encode(whole_prompt(request))))
    identity = f"{seed}/{model.name}/{whole_prompt(request)}"
    room = request.tokens_max or model.output_tokens_max
    choices = []
    reasoning = 0
    for index in range(request.n or 1):
        draw = random.Random(hashlib.blake2b(f"{index}/{identity}".encode(errors="replace"), digest_size=16).digest())
        thought = min(room, 64 * draw.randint(1, 6)) if model.reasons else 0
        reasoning += thought
        choices.append(choose(request, tokenizer, draw, room - thought))
    completion = reasoning + sum(choice.completion_tokens for choice in choices)
    return Composition(model, tuple(choices), Usage(prompt_tokens, completion, cached, reasoning))


def count_prompt(request: ChatRequest, tokenizer: Tokenizer) -> int:
    """Prompt tokens by OpenAI's published counting: 3 per message, 1 per name, 3 for the answer's start, and tools by their own rule.

    Source: the OpenAI cookbook, "How to count tokens with tiktoken".
    """
    tokens = 3
    for message in request.messages:
        tokens += 3 + tokenizer.count(message.role) + tokenizer.count(message.text)
        if message.name:
            tokens += 1 + tokenizer.count(message.name)
        for call in message.tool_calls or ():
            tokens += tokenizer.count(call.function.name) + tokenizer.count(call.function.arguments)
        if not isinstance(message.content, str):
            tokens += sum(_picture_tokens(part.image_url.detail) for part in message.content or () if part.image_url)
    if request.tools:
        tokens += 12 + sum(_count_function(tool.function, tokenizer) for tool in request.tools)
    return tokens


def _picture_tokens(detail: str) -> int:
    """A picture of unknown size: 85 tokens in low detail, else 85 and four tiles of 170."""
    return 85 if detail == "low" else 765


def _count_function(function: Function, tokenizer: Tokenizer) -> int:
    tokens = 7 + tokenizer.count(f"{function.name}:{function.description.removesuffix('.')}")
    properties = (function.parameters or {}).get("properties")
    if not isinstance(properties, dict) or not properties:
        return tokens
    tokens += 3
    for name, schema in properties.items():
        described = schema if isinstance(schema, dict) else {}
        tokens += 3
        if isinstance(described.get("enum"), list):
            tokens += sum(3 + tokenizer.count(str(item)) for item in described["enum"]) - 3
        text = str(described.get("description", "")).removesuffix(".")
        tokens += tokenizer.count(f"{name}:{described.get('type', '')}:{text}")
    return tokens


def _check_lengths(request: ChatRequest, model: Model, prompt_tokens: int) -> None:
    """Refuses prompts beyond the context and ceilings beyond the model's."""
    asked = request.tokens_max
    if asked is not None and asked > model.output_tokens_max:
        name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
        message = (
            f"{name} is too large: {asked}. This model supports at most {model.output_tokens_max} completion tokens, "
            f"whereas you provided {asked}."
        )
        raise Problem(400, message, param=name, code="invalid_value")
    if prompt_tokens > model.context_tokens_max:
        raise problems.context_exceeded(model.context_tokens_max, prompt_tokens)


def whole_prompt(request: ChatRequest) -> str:
    """Everything that decides the answer, as one text; a stream gets the same answer as a call without one."""
    parts = [tool.function.name for tool in request.tools or ()]
    for message in request.messages:
        parts += [message.role, message.name, message.text]
        parts += [f"{call.function.name}{call.function.arguments}" for call in message.tool_calls or ()]
    return "\n".join(parts)


def choose(request: ChatRequest, tokenizer: Tokenizer, draw: random.Random, room: int) -> Choice:
    """One answer within so many tokens."""
    if room <= 0:
        return Choice("", [], (), "length", 0)
    wanted = _wanted_tools(request)
    if wanted:
        return _calling(wanted, request, tokenizer, draw, room)
    text, mark = _cut_at_stop(_said(request, draw), request.stop)
    tokens = tokenizer.encode(text)
    if len(tokens) <= room:
        return Choice(text, tokens, (), "stop", len(tokens), mark)
    return Choice(tokenizer.decode(tokens[:room]), tokens[:room], (), "length", room)


def _said(request: ChatRequest, draw: random.Random) -> str:
    """The text of an answer, in the form that was asked for."""
    prompt = last_text(request.messages)
    form = request.response_format
    if form is None or form.type == "text":
        return prose.answer(prompt, draw)
    words = prose.keywords(prompt)
    if form.json_schema is None:
        document: object = {"answer": prose.answer(prompt, draw), "topics": words[:3]}
    else:
        document = Instance(form.json_schema.schema or {"type": "object"}, draw=draw, words=words).make()
    return msgspec.json.encode(document).decode()


def last_text(messages: list[Message]) -> str:
    """The last thing that the user said, or whatever was said last."""
    return next((message.text for message in reversed(messages) if message.role == "user"), messages[-1].text)


def _cut_at_stop(text: str, stop: str | list[str] | None) -> tuple[str, str | None]:
    """The text before the first stop sequence in it, and that sequence."""
    stops = [stop] if isinstance(stop, str) else stop or []
    ends = [(text.find(mark), mark) for mark in stops if mark and mark in text]
    if not ends:
        return text, None
    end, mark = min(ends)
    return text[:end], mark


# --- tools ---------------------------------------------------------------------------------------------------------------


def _wanted_tools(request: ChatRequest) -> list[Tool]:
    """The tools to call: the one that is forced, else the ones that the user's last message asks for."""
    tools = request.tools or []
    choice = request.tool_choice
    if not tools or choice == "none":
        return []
    if isinstance(choice, ToolChoice):
        return [tool for tool in tools if tool.function.name == choice.function.name][:1]
    last = request.messages[-1]
    if choice != "required" and last.role != "user":
        return []
    text = last_text(request.messages).lower()
    asked = [tool for tool in tools if _asked_for(tool, text)]
    if not asked and (choice == "required" or _ASKS_FOR_A_TOOL.search(text)):
        asked = tools[:1]
    return asked[:1] if request.parallel_tool_calls is False else asked


def _asked_for(tool: Tool, text: str) -> bool:
    """Whether a text names a tool, or all the telling words of its name."""
    name = tool.function.name.lower()
    words = [word for word in re.split(r"[_\-]+", name) if len(word) > 3]
    return name in text or (bool(words) and all(word in text for word in words))


def _calling(wanted: list[Tool], request: ChatRequest, tokenizer: Tokenizer, draw: random.Random, room: int) -> Choice:
    """Tool calls within so many tokens; the last one is cut off when they run out."""
    words = prose.keywords(last_text(request.messages))
    calls: list[MadeCall] = []
    used = 0
    finish_reason = "stop" if isinstance(request.tool_choice, ToolChoice) else "tool_calls"
    for tool in wanted:
        call_id = "call_" + "".join(draw.choices(ID_LETTERS, k=24))
        arguments = _arguments(tool.function.parameters, draw, words)
        name_tokens = tokenizer.count(tool.function.name)
        tokens = tokenizer.encode(arguments)
        left = room - used - name_tokens
        if len(tokens) > left:
            tokens = tokens[: max(0, left)]
            arguments = tokenizer.decode(tokens)
            finish_reason = "length"
        used = min(room, used + name_tokens + len(tokens))
        calls.append(MadeCall(call_id, tool.function.name, arguments))
        if finish_reason == "length":
            break
    return Choice(None, [], tuple(calls), finish_reason, used)


def _arguments(parameters: Schema | None, draw: random.Random, words: list[str]) -> str:
    made = Instance(parameters or {"type": "object", "properties": {}}, draw=draw, words=words).make()
    return msgspec.json.encode(made).decode()

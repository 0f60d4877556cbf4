"""What the simulated Claude says: thinking, text and tool calls, decided by the prompt and the seed alone."""

from __future__ import annotations

import base64
import hashlib
import random
from dataclasses import dataclass
from typing import Literal

import msgspec

from controlplane.demo.provider import prose
from controlplane.demo.provider.answer import Usage
from controlplane.demo.provider.anthropic import problems
from controlplane.demo.provider.anthropic.hosted import HostedUse, Json, container_id, hosted_uses, is_hosted
from controlplane.demo.provider.anthropic.prompt import Cached
from controlplane.demo.provider.anthropic.request import Block, Message, MessagesRequest
from controlplane.demo.provider.composition import ID_LETTERS, Choice, choose, last_text, whole_prompt
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.request import (
    CalledFunction,
    ChatRequest,
    ChosenFunction,
    Function,
    JsonSchema,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)
from controlplane.demo.provider.request import Message as Turn
from controlplane.demo.provider.tokens import Tokenizer

THOUGHT_TOKENS_MAX = 400  # of one answer, however large its budget
_CHOICES: dict[str, Literal["none", "auto", "required"]] = {"any": "required", "auto": "auto", "none": "none"}


@dataclass(frozen=True, slots=True)
class Said:
    """One content block of an answer. pieces: its text, or a tool's input as JSON, token by token."""

    type: str  # "thinking", "text", "tool_use", "server_tool_use", or what comes back of the last
    tokens: int
    pieces: tuple[str, ...] = ()
    signature: str = ""
    id: str = ""
    name: str = ""
    result: Json | None = None  # of a tool of the provider's own, as a whole block

    @property
    def text(self) -> str:
        """Its pieces together."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer before it is encoded."""

    model: Model
    blocks: tuple[Said, ...]
    stop_reason: str
    stop_sequence: str | None
    usage: Usage
    thinks: bool
    searches: int = 0  # of the web
    container: str = ""  # in which code ran


def reply(
    request: MessagesRequest, model: Model, tokenizer: Tokenizer, *, seed: int, prompt_tokens: int, cached: Cached
) -> Reply:
    """The answer to a checked request. Raises Problem when it cannot be answered within the model's limits."""
    room = request.max_tokens or 0
    if room > model.output_tokens_max:
        raise problems.invalid(
            f"max_tokens: {room} > {model.output_tokens_max}, which is the maximum allowed number of output tokens for {model.name}"
        )
    if prompt_tokens > model.context_tokens_max:
        raise problems.too_long(prompt_tokens, model.context_tokens_max)
    asked = as_chat(request)
    identity = f"{seed}/{model.name}/{whole_prompt(asked)}"
    draw = random.Random(hashlib.blake2b(identity.encode(errors="replace"), digest_size=16).digest())
    blocks: list[Said] = []
    if request.thinks and room:
        blocks.append(_thought(request, asked, tokenizer, draw, room))
    uses = hosted_uses(request.tools, last_text(asked.messages), draw) if room else []
    for use in uses:
        blocks += _hosted(use, tokenizer)
    left = max(0, room - sum(block.tokens for block in blocks))
    choice = choose(asked, tokenizer, draw, left)
    blocks += _said(request, asked, choice, tokenizer, draw, left)
    completion = sum(block.tokens for block in blocks)
    thinking = sum(block.tokens for block in blocks if block.type == "thinking")
    usage = Usage(prompt_tokens, completion, cached.read, thinking, cached.written_5m, cached.written_1h)
    reason = _stop_reason(choice, cut=completion >= room)
    searches = sum(use.name == "web_search" for use in uses)
    container = container_id(draw) if len(uses) > searches else ""
    return Reply(model, tuple(blocks), reason, choice.stopped_at, usage, request.thinks, searches, container)


def _hosted(use: HostedUse, tokenizer: Tokenizer) -> list[Said]:
    """A call of a tool of the provider's own, and its result, which costs the model nothing to write."""
    pieces = tokenizer.encode(msgspec.json.encode(use.input).decode())
    call = Said("server_tool_use", len(pieces), tuple(tokenizer.pieces(pieces)), id=use.id, name=use.name)
    return [call, Said(str(use.result["type"]), 0, result=use.result)]


def as_chat(request: MessagesRequest) -> ChatRequest:
    """What decides the answer, in the words that the simulated models understand."""
    turns = [Turn("system", block.text) for block in request.system_blocks]
    for message in request.messages:
        turns += _turns(message)
    choice = request.tool_choice
    tools = [
        Tool("function", Function(tool.name, tool.description, tool.input_schema))
        for tool in request.tools or ()
        if not is_hosted(tool)
    ]
    wanted: Literal["none", "auto", "required"] | ToolChoice | None = None
    if choice is not None:
        forced = choice.type == "tool"
        wanted = ToolChoice("function", ChosenFunction(choice.name)) if forced else _CHOICES[choice.type]
    form = request.format
    return ChatRequest(
        model=request.model,
        messages=turns,
        stop=request.stop_sequences,
        tools=tools or None,
        tool_choice=wanted,
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        response_format=None if form is None else ResponseFormat("json_schema", JsonSchema("answer", form.schema)),
    )


def _turns(message: Message) -> list[Turn]:
    """A message as turns: a user's text and each tool result are turns of their own."""
    turns = [
        Turn("tool", _text_of(block), tool_call_id=block.tool_use_id)
        for block in message.blocks
        if block.type == "tool_result"
    ]
    text = " ".join(block.text for block in message.blocks if block.type == "text")
    calls = [
        ToolCall(block.id, "function", CalledFunction(block.name, msgspec.json.encode(block.input or {}).decode()))
        for block in message.blocks
        if block.type == "tool_use"
    ]
    if text or calls or not turns:
        turns.append(Turn(message.role, text, tool_calls=calls or None))
    return turns


def _text_of(block: Block) -> str:
    """The text of a tool's result."""
    if isinstance(block.content, str):
        return block.content
    parts = block.content if isinstance(block.content, list) else []
    return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _thought(
    request: MessagesRequest, asked: ChatRequest, tokenizer: Tokenizer, draw: random.Random, room: int
) -> Said:
    """Thinking within its budget."""
    thinking = request.thinking
    budget = thinking.budget_tokens if thinking is not None and thinking.budget_tokens else THOUGHT_TOKENS_MAX
    tokens = tokenizer.encode(prose.answer(last_text(asked.messages), draw))[: min(budget, room, THOUGHT_TOKENS_MAX)]
    omitted = thinking is not None and thinking.display == "omitted"
    signature = base64.b64encode(draw.randbytes(180)).decode()
    return Said("thinking", len(tokens), () if omitted else tuple(tokenizer.pieces(tokens)), signature)


def _said(
    request: MessagesRequest, asked: ChatRequest, choice: Choice, tokenizer: Tokenizer, draw: random.Random, room: int
) -> list[Said]:
    """The blocks of a choice: its text, or a sentence of introduction and its tool calls."""
    if not choice.calls:
        tokens = choice.completion_tokens
        return [Said("text", tokens, tuple(tokenizer.pieces(choice.tokens)))] if tokens else []
    blocks = []
    forced = request.tool_choice is not None and request.tool_choice.type in ("any", "tool")
    if not forced and request.format is None:
        intro = tokenizer.encode(
            f"I'll use {choice.calls[0].name} for {draw.choice(prose.keywords(last_text(asked.messages)))}."
        )
        if len(intro) <= room - choice.completion_tokens:
            blocks.append(Said("text", len(intro), tuple(tokenizer.pieces(intro))))
    for call in choice.calls:
        pieces = tokenizer.encode(call.arguments)
        name_tokens = tokenizer.count(call.name)
        used = min(len(pieces) + name_tokens, room)
        number = "".join(draw.choices(ID_LETTERS, k=22))
        blocks.append(Said("tool_use", used, tuple(tokenizer.pieces(pieces)), id=f"toolu_01{number}", name=call.name))
    return blocks


def _stop_reason(choice: Choice, *, cut: bool) -> str:
    if choice.finish_reason == "length" and cut:
        return "max_tokens"
    if choice.calls:
        return "tool_use"
    return "stop_sequence" if choice.stopped_at is not None else "end_turn"

"""OpenAI's responses as structs: what a translation writes of an answer and its stream. Every field that clients look for is there."""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import Tokens


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Text."""

    text: str
    annotations: tuple[str, ...] = ()
    logprobs: tuple[str, ...] = ()


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class CallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call that the model asks for."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str


Item = MessageItem | CallItem


class InputDetails(msgspec.Struct):
    """Parts of `input_tokens`."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct):
    """Parts of `output_tokens`."""

    reasoning_tokens: int


class Usage(msgspec.Struct):
    """Usage as clients of responses read it."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Reason(msgspec.Struct):
    """Why an answer is incomplete."""

    reason: str


class Response(msgspec.Struct):
    """An answer. What it says of the request is what holds where nothing was asked for: a translation does not see the request again."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[Item]
    usage: Usage | None = None
    incomplete_details: Reason | None = None
    object: str = "response"
    background: bool = False
    error: None = None
    instructions: None = None
    max_output_tokens: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: None = None
    tool_choice: str = "auto"
    tools: tuple[str, ...] = ()
    top_p: None = None
    truncation: str = "disabled"


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def usage_of(tokens: Tokens | None) -> Usage | None:
    """Disjoint tokens in the words of responses; None where the upstream has not said."""
    if tokens is None:
        return None
    written = tokens.cache_write + tokens.cache_write_1h
    return Usage(
        tokens.total_input,
        InputDetails(tokens.cache_read, written),
        tokens.total_output,
        OutputDetails(tokens.reasoning),
        tokens.total,
    )


def ended(response: Response, finish_reason: str) -> str:
    """Gives a response the status that a chat's finish reason means; what the record says of it."""
    why = _INCOMPLETE.get(finish_reason)
    response.status = "completed" if why is None else "incomplete"
    response.incomplete_details = None if why is None else Reason(why)
    return why or "completed"


def identity_of(upstream_id: str) -> str:
    """What the identities of a response and its items share, made from a completion's."""
    return upstream_id.removeprefix("chatcmpl-") or "0"

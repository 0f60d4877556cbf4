"""Anthropic's Messages language as structs: what a translation reads of a request, an answer and a stream, and what it writes."""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.dialects.translate_chat_words import NOTHING  # one object, for what equals a default is left out by identity

Effort = Literal["low", "medium", "high", "xhigh", "max"]


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    """Bytes inside the request."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    """Bytes at an address."""

    url: str


class TextSource(msgspec.Struct, tag_field="type", tag="text"):
    """A plain text document."""

    data: str
    media_type: str = "text/plain"


class TextBlock(msgspec.Struct, tag_field="type", tag="text", omit_defaults=True):
    """Text."""

    text: str
    cache_control: msgspec.Raw = NOTHING


class ImageBlock(msgspec.Struct, tag_field="type", tag="image", omit_defaults=True):
    """An image."""

    source: Base64Source | UrlSource
    cache_control: msgspec.Raw = NOTHING


class DocumentBlock(msgspec.Struct, tag_field="type", tag="document", omit_defaults=True):
    """A document."""

    source: Base64Source | UrlSource | TextSource
    title: str | None = None
    cache_control: msgspec.Raw = NOTHING


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use", omit_defaults=True):
    """A call that the model asks for. input: a JSON object."""

    id: str
    name: str
    input: msgspec.Raw = NOTHING
    cache_control: msgspec.Raw = NOTHING


class ToolResultBlock(msgspec.Struct, tag_field="type", tag="tool_result", omit_defaults=True):
    """What a tool returned."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None
    cache_control: msgspec.Raw = NOTHING


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought; the signature lets it be sent back."""

    thinking: str
    signature: str = ""


class RedactedBlock(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """What the model thought, encrypted."""

    data: str = ""


UserBlock = TextBlock | ImageBlock | DocumentBlock | ToolResultBlock
AssistantBlock = TextBlock | ToolUseBlock | ThinkingBlock | RedactedBlock


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    """What the user says and what tools returned."""

    content: str | list[UserBlock]


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    """What the model said."""

    content: str | list[AssistantBlock]


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    """Instructions in the middle of a conversation."""

    content: str | list[TextBlock]


Message = UserMessage | AssistantMessage | SystemMessage


class WrittenMessage(msgspec.Struct):
    """A message as a translation writes it; a block that is bytes comes from the client as it is."""

    role: Literal["user", "assistant"]
    content: list[TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | msgspec.Raw]


class Tool(msgspec.Struct, omit_defaults=True):
    """A tool of the client's; a type other than `custom` means one that Anthropic runs or defines."""

    name: str
    input_schema: msgspec.Raw = NOTHING
    description: str | None = None
    type: str | None = None
    cache_control: msgspec.Raw = NOTHING
    strict: bool | None = None


class ToolChoice(msgspec.Struct, omit_defaults=True):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, omit_defaults=True):
    """Whether the model thinks first."""

    type: str
    budget_tokens: int | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    schema: msgspec.Raw


class OutputConfig(msgspec.Struct, omit_defaults=True):
    """The form of the answer and the effort put into it."""

    effort: Effort | None = None
    format: SchemaFormat | None = None


class Metadata(msgspec.Struct, omit_defaults=True):
    """Whom the request is for."""

    user_id: str | None = None


class Request(msgspec.Struct, omit_defaults=True):
    """A Messages request as a translation writes it. thinking: our own, or the client's as it came."""

    model: str
    max_tokens: int
    messages: list[WrittenMessage]
    system: list[TextBlock] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | msgspec.Raw | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None


class AnswerBlock(msgspec.Struct, omit_defaults=True):
    """A block of an answer, of whatever type: those that we do not know are passed over."""

    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = NOTHING


class Answer(msgspec.Struct):
    """A whole reply as an upstream sends it; also the beginning of a stream."""

    content: list[AnswerBlock]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None


class BlockDelta(msgspec.Struct):
    """What one event adds to a block, or says about the whole message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class Event(msgspec.Struct):
    """One event of a stream, of whatever type."""

    type: str
    index: int = 0
    message: Answer | None = None
    content_block: AnswerBlock | None = None
    delta: BlockDelta | None = None

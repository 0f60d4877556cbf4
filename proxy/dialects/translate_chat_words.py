"""OpenAI's chat language as structs: what a translation reads of a request, an answer and a stream, and what it writes.

Whatever is a value of the client's own (schemas, arguments, metadata) stays as the bytes it came in.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from controlplane.contract.pricing import Tokens

NOTHING = msgspec.Raw(b"")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextPart(msgspec.Struct, tag_field="type", tag="text", omit_defaults=True):
    """Text. cache_control: an extension that clients of several providers send."""

    text: str
    cache_control: msgspec.Raw = NOTHING


class ImageAddress(msgspec.Struct, omit_defaults=True):
    """Where an image is: an address or a data URL."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", omit_defaults=True):
    """An image."""

    image_url: ImageAddress
    cache_control: msgspec.Raw = NOTHING


class FileContent(msgspec.Struct, omit_defaults=True):
    """A file's bytes as a data URL, or the identity of one stored at the provider."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class FilePart(msgspec.Struct, tag_field="type", tag="file", omit_defaults=True):
    """A document."""

    file: FileContent
    cache_control: msgspec.Raw = NOTHING


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    """What an assistant said when it declined."""

    refusal: str


Part = TextPart | ImagePart | FilePart | RefusalPart
Content = str | list[Part] | None


class FunctionCall(msgspec.Struct):
    """A call's function and its arguments, a JSON text."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, tag_field="type", tag="function"):
    """A call that an assistant asks for."""

    id: str
    function: FunctionCall


class SystemMessage(msgspec.Struct, tag_field="role", tag="system", omit_defaults=True):
    """Instructions."""

    content: str | list[TextPart]
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer", omit_defaults=True):
    """Instructions, by their newer name."""

    content: str | list[TextPart]
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user", omit_defaults=True):
    """What the user says."""

    content: str | list[Part]
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant", omit_defaults=True):
    """What the model said.

    thinking_blocks and reasoning_content are extensions: what the model thought, as clients of some providers send it back.
    """

    content: Content = None
    tool_calls: list[ToolCall] | None = None
    thinking_blocks: list[msgspec.Raw] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: msgspec.Raw = NOTHING


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool", omit_defaults=True):
    """What a tool returned."""

    tool_call_id: str
    content: str | list[Part]


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(msgspec.Struct, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = NOTHING
    strict: bool | None = None


class Tool(msgspec.Struct, tag_field="type", tag="function", omit_defaults=True):
    """A tool; functions are the only kind that both languages know."""

    function: Function
    cache_control: msgspec.Raw = NOTHING


class FunctionName(msgspec.Struct):
    """The name of a function."""

    name: str


class NamedChoice(msgspec.Struct, tag_field="type", tag="function"):
    """The tool that must be called."""

    function: FunctionName


class AllowedTool(msgspec.Struct, tag_field="type", tag="function"):
    """A tool among those that may be called."""

    function: FunctionName


class AllowedTools(msgspec.Struct):
    """Those of the tools that may be called."""

    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class AllowedChoice(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """A choice among some of the tools."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    """Text of any form."""


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    """A JSON object of any form."""


class SchemaOf(msgspec.Struct, omit_defaults=True):
    """A JSON schema with its name."""

    name: str
    description: str | None = None
    schema: msgspec.Raw = NOTHING
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    json_schema: SchemaOf


class StreamOptions(msgspec.Struct, omit_defaults=True):
    """The options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Request(msgspec.Struct, omit_defaults=True):
    """A chat completion request as a translation writes it."""

    model: str
    messages: list[Message]
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    reasoning_effort: Effort | None = None
    user: str | None = None
    service_tier: str | None = None
    thinking: msgspec.Raw = NOTHING  # an extension, for models of Anthropic's behind a gateway


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """A piece of a call inside a stream, or a whole one inside an answer."""

    name: str | None = None
    arguments: str | None = None


class CallPart(msgspec.Struct, omit_defaults=True):
    """A tool call, whole or in pieces; whoever begins one says its identity and type."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: CalledFunction | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    """What one event of a stream adds to an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None  # an extension
    thinking_blocks: list[msgspec.Raw] | None = None  # an extension
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None


class ReadChoice(msgspec.Struct):
    """One answer's part of an event, as an upstream sends it."""

    delta: Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class ChunkChoice(msgspec.Struct):
    """One answer's part of an event, as a translation writes it."""

    delta: Delta
    finish_reason: str | None = None
    index: int = 0


class PromptDetails(msgspec.Struct):
    """Parts of `prompt_tokens`."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Parts of `completion_tokens`."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(msgspec.Struct):
    """Usage as OpenAI's clients read it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_of(tokens: Tokens) -> Usage:
    """Disjoint tokens in OpenAI's words, where parts are counted inside their whole."""
    written = tokens.cache_write + tokens.cache_write_1h
    return Usage(
        tokens.total_input,
        tokens.total_output,
        tokens.total,
        PromptDetails(tokens.cache_read, written, tokens.audio_input),
        CompletionDetails(tokens.reasoning, tokens.audio_output),
    )


class Chunk(msgspec.Struct):
    """One event of a stream, as an upstream sends it."""

    id: str = ""
    model: str = ""
    choices: list[ReadChoice] | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """The message of a whole reply, as an upstream sends it."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None
    thinking_blocks: list[msgspec.Raw] | None = None  # an extension


class AnswerChoice(msgspec.Struct):
    """One answer of a whole reply, as an upstream sends it."""

    message: Answer
    finish_reason: str | None = None


class Reply(msgspec.Struct):
    """A whole reply as an upstream sends it."""

    choices: list[AnswerChoice]
    id: str = ""
    model: str = ""


class WrittenAnswer(msgspec.Struct, omit_defaults=True):
    """The message of a whole reply as a translation writes it; every field that a client looks for is there."""

    role: str
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    thinking_blocks: list[msgspec.Raw] | None = None
    tool_calls: list[CallPart] | None = None


class WrittenChoice(msgspec.Struct):
    """One answer of a whole reply as a translation writes it."""

    index: int
    message: WrittenAnswer
    finish_reason: str
    logprobs: None = None


class WrittenReply(msgspec.Struct, omit_defaults=True):
    """A whole reply as a translation writes it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[WrittenChoice]
    usage: Usage | None = None

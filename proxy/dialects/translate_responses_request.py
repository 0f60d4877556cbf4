"""A request for a response in the words of a chat. docs/reference/translations.md has the table of what is mapped, approximated and refused."""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.translate_errors import malformed

_ABSENT = frozenset((b"", b"null", b"false", b"{}", b"[]", b"0"))
_encode = msgspec.json.Encoder().encode


class Part(msgspec.Struct):
    """A part of a message or of a result."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    file_data: str | None = None
    filename: str | None = None


class Item(msgspec.Struct):
    """One item of the input, of whatever type; a message may leave its type out."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] | None = None


class Tool(msgspec.Struct, tag_field="type", tag="function"):
    """A function that the model may call; tools of any other type are OpenAI's own."""

    name: str
    description: str | None = None
    parameters: msgspec.Raw = chat.NOTHING
    strict: bool | None = None


class NamedChoice(msgspec.Struct, tag_field="type", tag="function"):
    """The tool that must be called, or one that may be."""

    name: str


class AllowedChoice(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """A choice among some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[NamedChoice]


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    name: str
    schema: msgspec.Raw
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct):
    """The form of the answer."""

    format: chat.TextFormat | chat.ObjectFormat | SchemaFormat | None = None


class Reasoning(msgspec.Struct):
    """How much the model thinks first."""

    effort: chat.Effort | None = None


class ResponsesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Every field of a request; one that is not here is refused by its name."""

    model: str
    input: str | list[Item] = ""
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    # Hints, and matters of the provider's own: left out.
    include: msgspec.Raw = chat.NOTHING
    max_tool_calls: msgspec.Raw = chat.NOTHING
    metadata: msgspec.Raw = chat.NOTHING
    prompt_cache_key: msgspec.Raw = chat.NOTHING
    prompt_cache_options: msgspec.Raw = chat.NOTHING
    prompt_cache_retention: msgspec.Raw = chat.NOTHING
    store: msgspec.Raw = chat.NOTHING
    stream_options: msgspec.Raw = chat.NOTHING
    truncation: msgspec.Raw = chat.NOTHING
    # Refused unless they ask for nothing: an upstream that speaks another language keeps no state.
    background: msgspec.Raw = chat.NOTHING
    conversation: msgspec.Raw = chat.NOTHING
    context_management: msgspec.Raw = chat.NOTHING
    moderation: msgspec.Raw = chat.NOTHING
    previous_response_id: msgspec.Raw = chat.NOTHING
    prompt: msgspec.Raw = chat.NOTHING
    top_logprobs: msgspec.Raw = chat.NOTHING


_REFUSED = (
    "background", "conversation", "context_management", "moderation", "previous_response_id", "prompt", "top_logprobs",
)  # fmt: skip
_decode = msgspec.json.Decoder(ResponsesRequest).decode


def chat_request(body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
    """The request as a chat. Raises Malformed, naming the field, for what cannot be said there."""
    try:
        asked = _decode(body)
        for name in _REFUSED:
            if bytes(getattr(asked, name)) not in _ABSENT:
                raise Malformed(f"`{name}` cannot be had from this model; leave it out", name)
        request = chat.Request(
            model=model,
            messages=_messages(asked),
            max_completion_tokens=view.max_output_tokens or output_ceiling,
            temperature=asked.temperature,
            top_p=asked.top_p,
            user=asked.user or asked.safety_identifier,
            service_tier=asked.service_tier,
            reasoning_effort=None if asked.reasoning is None else asked.reasoning.effort,
            response_format=_format(asked.text),
        )
        if asked.stream:
            request.stream, request.stream_options = True, chat.StreamOptions(include_usage=True)
        _put_tools(request, asked)
        return _encode(request)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(error) from error


def _format(text: Text | None) -> chat.TextFormat | chat.ObjectFormat | chat.SchemaFormat | None:
    wanted = None if text is None else text.format
    if isinstance(wanted, SchemaFormat):
        return chat.SchemaFormat(chat.SchemaOf(wanted.name, wanted.description, wanted.schema, wanted.strict))
    return wanted


def _put_tools(request: chat.Request, asked: ResponsesRequest) -> None:
    if not asked.tools:
        return
    request.tools = [
        chat.Tool(chat.Function(tool.name, tool.description, tool.parameters or chat.NOTHING, tool.strict))
        for tool in asked.tools
    ]
    choice = asked.tool_choice
    if isinstance(choice, NamedChoice):
        request.tool_choice = chat.NamedChoice(chat.FunctionName(choice.name))
    elif isinstance(choice, AllowedChoice):
        tools = [chat.AllowedTool(chat.FunctionName(tool.name)) for tool in choice.tools]
        request.tool_choice = chat.AllowedChoice(chat.AllowedTools(choice.mode, tools))
    else:
        request.tool_choice = choice
    request.parallel_tool_calls = asked.parallel_tool_calls


def _messages(asked: ResponsesRequest) -> list[chat.Message]:
    messages: list[chat.Message] = []
    if asked.instructions:
        messages.append(chat.SystemMessage(asked.instructions))
    if isinstance(asked.input, str):
        messages.append(chat.UserMessage(asked.input))
        return messages
    for place, item in enumerate(asked.input):
        param = f"input.{place}"
        if item.type == "message":
            messages.append(_message(item, param))
        elif item.type == "function_call":
            call = chat.ToolCall(item.call_id, chat.FunctionCall(item.name, item.arguments))
            last = messages[-1] if messages else None
            if isinstance(last, chat.AssistantMessage):  # calls of one turn belong to one message
                last.tool_calls = [*(last.tool_calls or ()), call]
            else:
                messages.append(chat.AssistantMessage(None, [call]))
        elif item.type == "function_call_output":
            messages.append(chat.ToolMessage(item.call_id, _content(item.output, f"{param}.output")))
        elif item.type != "reasoning":  # thinking is left out; another model does not take it
            raise Malformed(f"an item of type `{item.type}` cannot be translated", f"{param}.type")
    return messages


def _message(item: Item, param: str) -> chat.Message:
    content = _content(item.content, f"{param}.content")
    if item.role == "user":
        return chat.UserMessage(content)
    if item.role == "assistant":
        return chat.AssistantMessage(content)
    if item.role in ("system", "developer"):
        if isinstance(content, str):
            return chat.SystemMessage(content)
        return chat.SystemMessage([part for part in content if isinstance(part, chat.TextPart)])
    raise Malformed("`role` must be `user`, `assistant`, `system` or `developer`", f"{param}.role")


def _content(content: str | list[Part] | None, param: str) -> str | list[chat.Part]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(part, f"{param}.{place}") for place, part in enumerate(content)]
    if len(parts) == 1 and isinstance(parts[0], chat.TextPart):
        return parts[0].text
    return parts


def _part(part: Part, param: str) -> chat.Part:
    if part.type in ("input_text", "output_text", "text"):
        return chat.TextPart(part.text)
    if part.type == "refusal":
        return chat.RefusalPart(part.refusal)
    if part.type == "input_image" and part.image_url:
        return chat.ImagePart(chat.ImageAddress(part.image_url))
    if part.type == "input_file" and part.file_data:
        return chat.FilePart(chat.FileContent(filename=part.filename, file_data=part.file_data))
    raise Malformed(f"a part of type `{part.type}` must come with its text or bytes", param)

"""A Messages request in OpenAI's words. docs/reference/translations.md has the table of what is mapped, approximated and refused.

Fields that we do not know are left out: Anthropic's clients send new ones with every release and expect gateways to bear them.
"""

from __future__ import annotations

import hashlib

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.translate_errors import malformed
from proxy.dialects.translate_messages_turns import messages_of
from proxy.dialects.translate_models import reasons, thinks
from proxy.dialects.translate_schema import is_strict, of_arguments
from proxy.dialects.translate_tool_names import ToolNames

_STOPS_MAX = 4
_USER_CHARS_MAX = 64
_ABSENT = frozenset((b"", b"null", b"false", b"{}", b"[]"))
_LOW_BELOW, _MEDIUM_BELOW = 4096, 16_384  # thinking budgets, in tokens
_TIERS = {"auto": "auto", "standard_only": "default"}
_encode = msgspec.json.Encoder().encode


class _OutputConfig(msgspec.Struct):
    effort: anthropic.Effort | None = None
    format: anthropic.SchemaFormat | None = None


class MessagesRequest(msgspec.Struct):
    """What is read of a Messages request."""

    model: str
    messages: list[anthropic.Message]
    max_tokens: int | None = None
    system: str | list[anthropic.TextBlock] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[anthropic.Tool] | None = None
    tool_choice: anthropic.ToolChoice | None = None
    thinking: anthropic.Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: anthropic.SchemaFormat | None = None  # its name before `output_config`
    metadata: anthropic.Metadata | None = None
    service_tier: str | None = None
    container: msgspec.Raw = chat.NOTHING
    mcp_servers: msgspec.Raw = chat.NOTHING


_decode = msgspec.json.Decoder(MessagesRequest).decode


def chat_request(
    body: bytes, *, view: RequestView, model: str, output_ceiling: int | None, names: ToolNames, claude: bool = False
) -> bytes:
    """The request as OpenAI must have it. Raises Malformed, naming the field, for what cannot be said there.

    names: of tools, where they are too long. claude: behind the chat is a model of Anthropic's: `cache_control` and `thinking` stay.
    """
    try:
        asked = _decode(body)
        for name in ("container", "mcp_servers"):
            if bytes(getattr(asked, name)) not in _ABSENT:
                raise Malformed(f"`{name}` cannot be had from a model of OpenAI's; leave it out", name)
        if view.continues:
            raise Malformed("`thread` is kept at another upstream; send the whole conversation", "thread")
        if asked.max_tokens == 0:  # fills Anthropic's prompt cache; there it would ask for an answer without an end
            raise Malformed("`max_tokens` must be at least 1 for a model of OpenAI's", "max_tokens")
        request = chat.Request(
            model=model,
            messages=messages_of(asked.system, asked.messages, claude=claude),
            max_completion_tokens=view.max_output_tokens or output_ceiling,
            stop=_stop(asked.stop_sequences),
            user=_user(asked.metadata),
            service_tier=_TIERS.get(asked.service_tier or ""),
            response_format=_format(asked),
        )
        if asked.stream:
            request.stream, request.stream_options = True, chat.StreamOptions(include_usage=True)
        if reasons(model):
            request.reasoning_effort = _effort(asked)
        else:
            request.temperature, request.top_p = asked.temperature, asked.top_p
        _put_tools(request, asked)
        if claude:
            _put_claude(request, asked)
        _shorten(request, names)
        return _encode(request)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(error) from error


def _stop(stops: list[str] | None) -> list[str] | None:
    if stops is not None and len(stops) > _STOPS_MAX:
        raise Malformed(f"`stop_sequences` may hold at most {_STOPS_MAX} for a model of OpenAI's", "stop_sequences")
    return stops or None


def _user(metadata: anthropic.Metadata | None) -> str | None:
    """Whom the request is for; a longer name than OpenAI takes is told by its hash, so that it still tells users apart."""
    name = metadata.user_id if metadata is not None else None
    if name is None or len(name) <= _USER_CHARS_MAX:
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:_USER_CHARS_MAX]


def _format(asked: MessagesRequest) -> chat.SchemaFormat | None:
    wanted = asked.output_format
    if asked.output_config is not None and asked.output_config.format is not None:
        wanted = asked.output_config.format
    if wanted is None:
        return None
    return chat.SchemaFormat(chat.SchemaOf("answer", schema=wanted.schema, strict=is_strict(wanted.schema)))


def _effort(asked: MessagesRequest) -> chat.Effort | None:
    """The effort that was asked for, or what a budget for thinking comes to; None leaves it to the model."""
    if asked.output_config is not None and asked.output_config.effort is not None:
        return "high" if asked.output_config.effort in ("xhigh", "max") else asked.output_config.effort
    thinking = asked.thinking
    if thinking is None or thinking.budget_tokens is None or thinking.type != "enabled":
        return None
    if thinking.budget_tokens < _LOW_BELOW:
        return "low"
    return "medium" if thinking.budget_tokens < _MEDIUM_BELOW else "high"


def _put_claude(request: chat.Request, asked: MessagesRequest) -> None:
    """What only Anthropic's models take: how much they may think, and where a prompt cache ends among the tools."""
    if asked.thinking is not None and thinks(request.model):
        request.thinking = msgspec.Raw(_encode(asked.thinking))
    for tool, given in zip(request.tools or (), asked.tools or (), strict=True):
        tool.cache_control = given.cache_control


def _shorten(request: chat.Request, names: ToolNames) -> None:
    """Gives every tool the name that OpenAI takes, wherever it is named."""
    for tool in request.tools or ():
        tool.function.name = names.short(tool.function.name)
    if isinstance(request.tool_choice, chat.NamedChoice):
        request.tool_choice.function.name = names.short(request.tool_choice.function.name)
    for message in request.messages:
        if isinstance(message, chat.AssistantMessage):
            for call in message.tool_calls or ():
                call.function.name = names.short(call.function.name)


def _put_tools(request: chat.Request, asked: MessagesRequest) -> None:
    if not asked.tools:
        return
    request.tools = [_tool(tool, place) for place, tool in enumerate(asked.tools)]
    choice = asked.tool_choice
    if choice is None:
        return
    if choice.type == "tool":
        if not choice.name:
            raise Malformed("`tool_choice.name` is missing", "tool_choice.name")
        request.tool_choice = chat.NamedChoice(chat.FunctionName(choice.name))
    elif choice.type == "any":
        request.tool_choice = "required"
    else:
        request.tool_choice = choice.type
    if choice.disable_parallel_tool_use:
        request.parallel_tool_calls = False


def _tool(tool: anthropic.Tool, place: int) -> chat.Tool:
    if tool.type not in (None, "custom"):
        param = f"tools.{place}.type"
        raise Malformed(
            f"`{param}`: a tool of type `{tool.type}` is Anthropic's own; no model of OpenAI's has it", param
        )
    strict = True if tool.strict and is_strict(tool.input_schema) else None
    return chat.Tool(chat.Function(tool.name, tool.description, of_arguments(tool.input_schema), strict))

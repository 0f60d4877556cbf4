"""A chat completion request in Anthropic's words. docs/reference/translations.md has the table of what is mapped, approximated and refused."""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.translate_chat_turns import turns_of
from proxy.dialects.translate_errors import malformed
from proxy.dialects.translate_models import takes_effort_xhigh, takes_sampling, thinks_adaptively
from proxy.dialects.translate_schema import enforceable, of_arguments

MAX_TOKENS = 16_384  # the ceiling that Anthropic demands, where neither the client nor the caller knows one
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 32_768}
_BUDGET_MIN = 1024
_TOP_P_WITH_THINKING = 0.95
_USER_CHARS_MAX = 256
_ABSENT = frozenset((b"", b"null", b"false", b"{}", b"[]"))
_JSON_ONLY = "Answer with one JSON object and nothing else: no prose around it, and no code fence."
_TIERS = {"auto": "auto", "default": "standard_only"}
_encode = msgspec.json.Encoder().encode


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Every field of a chat completion request; one that is not here is refused by its name, as OpenAI does."""

    model: str
    messages: list[chat.Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: chat.StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[chat.Tool] | None = None
    tool_choice: chat.ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: chat.TextFormat | chat.ObjectFormat | chat.SchemaFormat | None = None
    reasoning_effort: chat.Effort | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    n: int | None = None
    modalities: list[Literal["text"]] | None = None
    # Anthropic's own, which clients of several providers send beside OpenAI's.
    thinking: msgspec.Raw = chat.NOTHING
    top_k: int | None = None
    # Hints and matters of the provider's own: left out, for the answer does not say less without them.
    frequency_penalty: msgspec.Raw = chat.NOTHING
    metadata: msgspec.Raw = chat.NOTHING
    prediction: msgspec.Raw = chat.NOTHING
    presence_penalty: msgspec.Raw = chat.NOTHING
    prompt_cache_key: msgspec.Raw = chat.NOTHING
    prompt_cache_options: msgspec.Raw = chat.NOTHING
    prompt_cache_retention: msgspec.Raw = chat.NOTHING
    seed: msgspec.Raw = chat.NOTHING
    store: msgspec.Raw = chat.NOTHING
    verbosity: msgspec.Raw = chat.NOTHING
    # Refused unless they ask for nothing: their answer could not be given.
    audio: msgspec.Raw = chat.NOTHING
    function_call: msgspec.Raw = chat.NOTHING
    functions: msgspec.Raw = chat.NOTHING
    logit_bias: msgspec.Raw = chat.NOTHING
    logprobs: msgspec.Raw = chat.NOTHING
    moderation: msgspec.Raw = chat.NOTHING
    top_logprobs: msgspec.Raw = chat.NOTHING
    web_search_options: msgspec.Raw = chat.NOTHING


_decode = msgspec.json.Decoder(ChatRequest).decode
_decode_thinking = msgspec.json.Decoder(anthropic.Thinking).decode


def messages_request(body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
    """The request as Anthropic must have it. Raises Malformed, naming the field, for what cannot be said there."""
    try:
        asked = _decode(body)
        _refuse(asked)
        system, turns, thought = turns_of(asked.messages)
        request = anthropic.Request(
            model=model,
            max_tokens=view.max_output_tokens or output_ceiling or MAX_TOKENS,
            messages=turns,
            stream=asked.stream or None,
            stop_sequences=_stop(asked.stop),
            metadata=_metadata(asked),
            service_tier=_TIERS.get(asked.service_tier or ""),
        )
        _put_tools(request, asked)
        _put_format(request, asked, system)
        _put_thinking(request, asked, thought=thought)
        _put_sampling(request, asked)
        request.system = system or None
        return _encode(request)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(error) from error


def _refuse(asked: ChatRequest) -> None:
    if asked.n is not None and asked.n > 1:
        raise Malformed("`n` above 1 cannot be had from a model of Anthropic's; ask once for each answer", "n")
    for name in ("functions", "function_call"):
        if bytes(getattr(asked, name)) not in _ABSENT:
            raise Malformed(f"`{name}` cannot be translated; use `tools` and `tool_choice`", name)
    for name in ("audio", "logit_bias", "logprobs", "moderation", "top_logprobs", "web_search_options"):
        given = bytes(getattr(asked, name))
        if name == "top_logprobs" and given == b"0":
            continue
        if given not in _ABSENT or (
            given == b"{}" and name == "web_search_options"
        ):  # which asks for a search as it comes
            raise Malformed(f"`{name}` cannot be had from a model of Anthropic's; leave it out", name)


def _stop(stop: str | list[str] | None) -> list[str] | None:
    """Stop sequences; blank ones are refused there, so they are left out."""
    stops = [stop] if isinstance(stop, str) else stop or []
    return [text for text in stops if text.strip()] or None


def _metadata(asked: ChatRequest) -> anthropic.Metadata | None:
    user = asked.user or asked.safety_identifier
    return anthropic.Metadata(user_id=user[:_USER_CHARS_MAX]) if user else None


def _put_tools(request: anthropic.Request, asked: ChatRequest) -> None:
    choice, tools = asked.tool_choice, asked.tools
    if not tools:
        return
    kind: Literal["auto", "any", "tool", "none"] = "auto"
    name = None
    if isinstance(choice, chat.NamedChoice):
        kind, name = "tool", choice.function.name
    elif isinstance(choice, chat.AllowedChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        tools = [tool for tool in tools if tool.function.name in allowed]
        kind = "any" if choice.allowed_tools.mode == "required" else "auto"
    elif choice == "required":
        kind = "any"
    elif choice == "none":
        kind = "none"
    request.tools = [_tool(tool) for tool in tools]
    single = True if asked.parallel_tool_calls is False and kind != "none" else None
    if choice is not None or single:
        request.tool_choice = anthropic.ToolChoice(kind, name=name, disable_parallel_tool_use=single)


def _tool(tool: chat.Tool) -> anthropic.Tool:
    function = tool.function
    return anthropic.Tool(
        name=function.name,
        description=function.description,
        input_schema=of_arguments(function.parameters),
        cache_control=tool.cache_control,
    )


def _put_format(request: anthropic.Request, asked: ChatRequest, system: list[anthropic.TextBlock]) -> None:
    wanted = asked.response_format
    if isinstance(wanted, chat.SchemaFormat):
        schema = enforceable(wanted.json_schema.schema, "response_format.json_schema.schema")
        request.output_config = anthropic.OutputConfig(format=anthropic.SchemaFormat(schema))
    elif isinstance(wanted, chat.ObjectFormat):
        system.append(anthropic.TextBlock(_JSON_ONLY))


def _put_thinking(request: anthropic.Request, asked: ChatRequest, *, thought: bool) -> None:
    """thought: the turn that the model is in began with thinking, or it is in none; otherwise it may not begin to think now."""
    forced = request.tool_choice is not None and request.tool_choice.type in ("any", "tool")
    if bytes(asked.thinking) not in _ABSENT:
        request.thinking = asked.thinking
        return
    effort = asked.reasoning_effort
    if effort is None or effort == "none":
        return
    if thinks_adaptively(request.model):
        config = request.output_config or anthropic.OutputConfig()
        config.effort = _effort(effort, request.model)
        request.output_config = config
        if not forced:
            request.thinking = anthropic.Thinking("adaptive")
        return
    budget = min(_BUDGETS[effort], request.max_tokens // 2)
    if budget >= _BUDGET_MIN and not forced and thought:
        request.thinking = anthropic.Thinking("enabled", budget_tokens=budget)


def _effort(effort: chat.Effort, model: str) -> anthropic.Effort:
    if effort == "none" or effort == "minimal":
        return "low"
    if effort == "xhigh" and not takes_effort_xhigh(model):
        return "high"
    return effort


def _put_sampling(request: anthropic.Request, asked: ChatRequest) -> None:
    """Temperature is clamped to Anthropic's range; of temperature and `top_p` only one is taken there, and with thinking hardly any."""
    if not takes_sampling(request.model):
        return
    if not _thinks(request.thinking):
        request.top_k = asked.top_k
        if asked.temperature is not None:
            request.temperature = min(asked.temperature, 1.0)
        else:
            request.top_p = asked.top_p
    elif asked.top_p is not None and asked.top_p >= _TOP_P_WITH_THINKING:
        request.top_p = asked.top_p


def _thinks(thinking: anthropic.Thinking | msgspec.Raw | None) -> bool:
    """Whether the request lets the model think; the client's own words may say that it may not."""
    if thinking is None or isinstance(thinking, anthropic.Thinking):
        return thinking is not None
    try:
        return _decode_thinking(thinking).type != "disabled"
    except msgspec.MsgspecError:
        return True  # Anthropic says what is wrong with it

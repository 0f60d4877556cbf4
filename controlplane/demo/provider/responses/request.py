"""What a client of the Responses API asks for, and the conversation that it makes together with what is remembered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import (
    AtLeast1,
    Between0And2,
    CalledFunction,
    ChatRequest,
    ChosenFunction,
    Function,
    ImageUrl,
    JsonSchema,
    Message,
    Part,
    ResponseFormat,
    Schema,
    Tool,
    ToolCall,
    ToolChoice,
    missing,
)

Json = Any  # any JSON value
Item = dict[str, Json]  # an item of input or output, as JSON
OUTPUT_TOKENS_MIN = 16
_WORDS: dict[str, Literal["none", "auto", "required"]] = {"none": "none", "auto": "auto", "required": "required"}


class Reasoning(msgspec.Struct, frozen=True):
    """How much a model thinks, and whether it tells."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: str | None = None


class TextFormat(msgspec.Struct, frozen=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: Schema | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True):
    """How the text of an answer is to be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses. Fields that do not change a simulated answer are checked and otherwise unused."""

    model: str
    input: str | list[Item] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Json] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, str] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=OUTPUT_TOKENS_MIN)] | None = None
    max_tool_calls: AtLeast1 | None = None
    tools: list[dict[str, Json]] | None = None
    tool_choice: str | dict[str, Json] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    temperature: Between0And2 | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Json] | None = None
    prompt: Json = None
    moderation: Json = None
    context_management: Json = None

    @property
    def conversation_id(self) -> str:
        """The conversation that it belongs to; "" for none."""
        named = self.conversation
        return (named.get("id", "") if isinstance(named, dict) else named) or ""

    @property
    def tier(self) -> str:
        """The service tier that serves it."""
        return self.service_tier if self.service_tier in ("flex", "priority") else "default"


def input_items(given: str | list[Item] | None) -> list[Item]:
    """The input as whole items. Raises Problem for one that is none."""
    if given is None:
        return []
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_whole(item, f"input[{index}]") for index, item in enumerate(given)]


def _whole(item: Item, path: str) -> Item:
    kind = item.get("type", "message" if "role" in item else None)
    if kind is None:
        raise missing(f"{path}.type")
    if kind != "message":
        needed = {"function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output")}
        for name in needed.get(kind, ()):
            if name not in item:
                raise missing(f"{path}.{name}")
        return item | {"type": kind}
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        message = f"Invalid value: '{role}'. Supported values are: 'assistant', 'system', 'developer', and 'user'."
        raise Problem(400, message, param=path, code="invalid_value")
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        extra: Item = {"annotations": [], "logprobs": []} if role == "assistant" else {}
        content = [{"type": kind, "text": content} | extra]
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        raise missing(f"{path}.content")
    return {"type": "message", "status": "completed", "content": content, "role": role} | (
        {"id": item["id"]} if "id" in item else {}
    )


def as_chat(request: ResponsesRequest, items: Iterable[Item]) -> ChatRequest:
    """What decides the answer, in the words that the simulated models understand. items: the conversation with its past."""
    messages = [Message("developer", request.instructions)] if request.instructions else []
    asked: dict[str, bool] = {}  # calls by their id: whether they were answered
    for item in items:
        if item["type"] == "message":
            messages.append(Message(item["role"], [_part(part) for part in item["content"]]))
        elif item["type"] == "function_call":
            call = ToolCall(item["call_id"], "function", CalledFunction(item["name"], item["arguments"]))
            asked.setdefault(item["call_id"], False)
            messages.append(Message("assistant", None, tool_calls=[call]))
        elif item["type"] == "function_call_output":
            _check_asked(item["call_id"], asked)
            asked[item["call_id"]] = True
            messages.append(Message("tool", _output_text(item["output"]), tool_call_id=item["call_id"]))
    for call_id, answered in asked.items():
        if not answered:
            raise Problem(400, f"No tool output found for function call {call_id}.", param="input")
    if not messages:
        raise missing("input")
    return ChatRequest(
        model=request.model,
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        tools=_tools(request) or None,
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request),
    )


def _check_asked(call_id: str, asked: dict[str, bool]) -> None:
    if call_id not in asked:
        raise Problem(400, f"No tool call found for function call output with call_id {call_id}.", param="input")


def _part(part: Item) -> Part:
    if part["type"] == "input_image":
        return Part("image_url", image_url=ImageUrl(str(part.get("image_url")), str(part.get("detail", "auto"))))
    return Part("text", str(part.get("text") or part.get("refusal") or ""))


def _output_text(output: Json) -> str:
    if isinstance(output, str):
        return output
    return " ".join(str(part.get("text", "")) for part in output if isinstance(part, dict))


def _tools(request: ResponsesRequest) -> list[Tool]:
    """The functions; tools of the provider's own are accepted and never used."""
    found = []
    for index, tool in enumerate(request.tools or ()):
        if "type" not in tool:
            raise missing(f"tools[{index}].type")
        if tool["type"] == "function":
            if "name" not in tool:
                raise missing(f"tools[{index}].name")
            function = Function(tool["name"], tool.get("description") or "", tool.get("parameters"), tool.get("strict"))
            found.append(Tool("function", function))
    return found


def _tool_choice(request: ResponsesRequest) -> Literal["none", "auto", "required"] | ToolChoice | None:
    choice = request.tool_choice
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            return None
        names = [tool.get("name") for tool in request.tools or ()]
        if choice.get("name") not in names:
            raise Problem(
                400, f"Tool choice '{choice.get('name')}' not found in 'tools' parameter.", param="tool_choice"
            )
        return ToolChoice("function", ChosenFunction(str(choice["name"])))
    word = _WORDS.get(choice or "")
    if choice is not None and word is None:
        raise Problem(400, f"Invalid value: '{choice}'.", param="tool_choice", code="invalid_value")
    return word


def _format(request: ResponsesRequest) -> ResponseFormat | None:
    form = request.text.format if request.text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_schema":
        if form.schema is None:
            raise missing("text.format.schema")
        return ResponseFormat("json_schema", JsonSchema(form.name, form.schema))
    return ResponseFormat("json_object")

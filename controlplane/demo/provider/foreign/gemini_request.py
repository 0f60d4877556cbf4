"""What a client of Gemini asks for. Fields are accepted in camel case and in snake case, as Google's protocol buffers are."""

from __future__ import annotations

import re
from typing import Any, Literal

from controlplane.demo.provider.foreign.shape import Json
from controlplane.demo.provider.models import Model
from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.request import (
    CalledFunction,
    ChatRequest,
    ChosenFunction,
    Function,
    ImageUrl,
    JsonSchema,
    Message,
    Part,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)

_MODES: dict[str, Literal["none", "auto", "required"]] = {"AUTO": "auto", "ANY": "required", "NONE": "none"}


def as_chat(document: Json, model: Model) -> ChatRequest:
    """What decides the answer, in the words that the simulated models understand. Raises Problem."""
    contents = _get(document, "contents")
    if isinstance(contents, dict):
        contents = [contents]
    if not contents:
        raise Problem(400, "* GenerateContentRequest.contents: contents is not specified")
    config = _get(document, "generationConfig") or {}
    messages = []
    system = _get(document, "systemInstruction")
    if system:
        messages.append(Message("system", _texts(system)))
    for content in contents:
        messages += _messages(content)
    tools = _tools(document)
    room = _get(config, "maxOutputTokens")
    return ChatRequest(
        model.name,
        messages,
        n=_get(config, "candidateCount"),
        stop=_get(config, "stopSequences"),
        tools=tools or None,
        tool_choice=_tool_choice(document, tools),
        response_format=_format(config),
        max_completion_tokens=min(room, model.output_tokens_max) if isinstance(room, int) and room > 0 else None,
    )


def texts_to_embed(document: Json, *, many: bool) -> tuple[list[str], int | None]:
    """The texts, and how long their vectors are to be. Raises Problem."""
    requests = _get(document, "requests") if many else [document]
    if not requests:
        raise Problem(400, "* BatchEmbedContentsRequest.requests: at least one request is required")
    texts = [_texts(_get(one, "content") or {}) for one in requests]
    return texts, _get(requests[0], "outputDimensionality")


def _get(document: Json, name: str) -> Any:  # any JSON
    """A field under either spelling."""
    if name in document:
        return document[name]
    return document.get(re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name))


def _texts(content: Json) -> str:
    return " ".join(str(part["text"]) for part in content.get("parts") or () if "text" in part)


def _messages(content: Json) -> list[Message]:
    """A content as messages: each function's response is one of its own."""
    made: list[Message] = []
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for part in content.get("parts") or ():
        if response := _get(part, "functionResponse"):
            made.append(Message("tool", str(response.get("response")), tool_call_id=str(response.get("name"))))
        elif call := _get(part, "functionCall"):
            calls.append(ToolCall("", "function", CalledFunction(str(call.get("name")), str(call.get("args")))))
        elif _get(part, "inlineData") or _get(part, "fileData"):
            parts.append(Part("image_url", image_url=ImageUrl("")))
        elif "text" in part and not part.get("thought"):
            parts.append(Part("text", str(part["text"])))
    if parts or calls:
        role = "assistant" if content.get("role") == "model" else "user"
        made.append(Message(role, parts, tool_calls=calls or None))
    return made


def _tools(document: Json) -> list[Tool]:
    made = []
    for tool in _get(document, "tools") or ():
        for function in _get(tool, "functionDeclarations") or ():
            schema = _get(function, "parametersJsonSchema") or function.get("parameters")
            described = function.get("description") or ""
            made.append(Tool("function", Function(function["name"], described, _lowered(schema) if schema else None)))
    return made


def _tool_choice(document: Json, tools: list[Tool]) -> Literal["none", "auto", "required"] | ToolChoice | None:
    if not tools:
        return None
    calling = _get(_get(document, "toolConfig") or {}, "functionCallingConfig") or {}
    allowed = _get(calling, "allowedFunctionNames") or []
    if calling.get("mode") == "ANY" and len(allowed) == 1:
        return ToolChoice("function", ChosenFunction(str(allowed[0])))
    return _MODES.get(str(calling.get("mode")))


def _format(config: Json) -> ResponseFormat | None:
    schema = _get(config, "responseJsonSchema") or _get(config, "responseSchema")
    if schema:
        return ResponseFormat("json_schema", JsonSchema("answer", _lowered(schema)))
    return ResponseFormat("json_object") if _get(config, "responseMimeType") == "application/json" else None


def _lowered(schema: Any) -> Any:  # any JSON
    """A schema with the types in lower case, as JSON Schema has them."""
    if isinstance(schema, list):
        return [_lowered(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _lowered(value)
        for name, value in schema.items()
    }

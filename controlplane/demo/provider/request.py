"""What a client asks for: the request bodies, and OpenAI's words for everything that is wrong with one."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.problems import INVALID, Problem

Schema = dict[str, Any]  # a JSON schema: any JSON
ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_ROLES_SHOWN = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"

Between0And2 = Annotated[float, msgspec.Meta(ge=0, le=2)]
BetweenMinus2And2 = Annotated[float, msgspec.Meta(ge=-2, le=2)]
AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]


class ImageUrl(msgspec.Struct, frozen=True):
    """A picture in a message."""

    url: str
    detail: str = "auto"


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: ImageUrl | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of a tool call that the assistant made earlier."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call that the assistant made earlier."""

    id: str
    type: str
    function: CalledFunction


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str = ""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The content as text; pictures are left out."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text or part.refusal for part in self.content or () if part.text or part.refusal)


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str = ""
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class ChosenFunction(msgspec.Struct, frozen=True):
    """The name in a tool choice."""

    name: str


class ToolChoice(msgspec.Struct, frozen=True):
    """The one function that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(msgspec.Struct, frozen=True):
    """The schema that the answer has to follow."""

    name: str
    schema: Schema | None = None
    description: str = ""
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions. Fields that do not change a simulated answer are checked and otherwise unused."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: AtLeast1 | None = None
    max_completion_tokens: AtLeast1 | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    tools: Annotated[list[Tool], msgspec.Meta(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    temperature: Between0And2 | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: BetweenMinus2And2 | None = None
    presence_penalty: BetweenMinus2And2 | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text"]] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    @property
    def tokens_max(self) -> int | None:
        """The ceiling on output tokens, under either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def tier(self) -> str:
        """The service tier that serves it."""
        return self.service_tier if self.service_tier in ("flex", "priority") else "default"


class EmbeddingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: AtLeast1 | None = None
    user: str | None = None


class ModelOnly(msgspec.Struct, frozen=True):
    """The one field that a fault may need to see."""

    model: str = ""


Body = TypeVar("Body", bound=msgspec.Struct)
_model_only = msgspec.json.Decoder(ModelOnly)


def model_of(body: bytes) -> str:
    """The model that a body names; "" when it names none or is not JSON."""
    try:
        return _model_only.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def read(body: bytes, kind: type[Body], *, model_needed: bool = True) -> Body:
    """The request in a body. model_needed: False where a model is chosen without one. Raises Problem in OpenAI's words."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise problems.not_json() from None
    if not isinstance(document, dict):
        raise problems.not_json()
    if model_needed and document.get("model") in (None, ""):
        raise problems.no_model()
    return converted(document, kind)


def converted(document: dict[str, Any], kind: type[Body], *, strict: bool = True) -> Body:
    """The request in a document. strict: False for a form, whose values are all texts. Raises Problem in OpenAI's words."""
    try:
        return msgspec.convert(document, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _as_problem(str(error), document) from None


def check_conversation(request: ChatRequest) -> None:
    """Checks what types cannot say. Raises Problem."""
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise Problem(
                400,
                f"Invalid value: '{message.role}'. Supported values are: {_ROLES_SHOWN}.",
                param=f"messages[{index}].role",
                code="invalid_value",
            )
        if message.content is None and not message.tool_calls and message.role != "assistant":
            raise missing(f"messages[{index}].content")
        if message.role == "tool":
            _check_tool_message(request.messages, index)
    if request.stream_options is not None and not request.stream:
        raise Problem(
            400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    _check_tools(request)
    _check_format(request)
    if request.top_logprobs and not request.logprobs:
        raise Problem(
            400, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
        )


def _check_tool_message(messages: list[Message], index: int) -> None:
    """A tool's answer has to follow the call that asked for it."""
    before = next((message for message in reversed(messages[:index]) if message.role != "tool"), None)
    asked = {call.id for call in (before.tool_calls or ())} if before is not None else set()
    if messages[index].tool_call_id not in asked:
        raise Problem(
            400,
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.",
            param=f"messages.[{index}].role",
        )


def _check_tools(request: ChatRequest) -> None:
    if request.tools is None:
        if request.tool_choice not in (None, "none", "auto"):
            raise Problem(400, "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
        return
    if isinstance(request.tool_choice, ToolChoice):
        name = request.tool_choice.function.name
        if all(tool.function.name != name for tool in request.tools):
            raise Problem(400, f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")


def _check_format(request: ChatRequest) -> None:
    wanted = request.response_format
    if wanted is None:
        return
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise missing("response_format.json_schema")
    if wanted.type == "json_object" and not any("json" in message.text.lower() for message in request.messages):
        raise Problem(
            400,
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param="messages",
        )


# --- msgspec's words to OpenAI's -----------------------------------------------------------------------------------------

_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_TYPE = re.compile(r"Expected `(?P<wanted>.*)`, got `(?P<got>.*)`")
_BOUND = re.compile(r"Expected `(?P<kind>int|float)` (?P<side><=|>=|<|>) (?P<bound>\S+)")
_LENGTH = re.compile(r"Expected `array` of length (?P<side><=|>=) (?P<bound>\d+)")
_ENUM = re.compile(r"Invalid enum value (?P<value>.*)")
_NOUNS = {
    "str": "a string", "int": "an integer", "float": "a decimal", "bool": "a boolean", "null": "null", "array": "an array",
    "object": "an object",
}  # fmt: skip
_BOUND_CODES = {">=": ("below minimum", "below_min"), "<=": ("above maximum", "above_max")}


def _as_problem(text: str, document: dict[str, Any]) -> Problem:
    """A validation error as OpenAI words it."""
    located = _PATH.search(text)
    path = located["path"].replace("[...]", "") if located else ""
    what = text[: located.start()] if located else text
    if found := _UNKNOWN.match(what):
        field = _joined(path, found["field"])
        return Problem(400, f"Unknown parameter: '{field}'.", param=field, code="unknown_parameter")
    if found := _MISSING.match(what):
        return missing(_joined(path, found["field"]))
    if found := _LENGTH.match(what):
        return _wrong_length(path, side=found["side"], bound=int(found["bound"]), value=_at(document, path))
    if found := _BOUND.match(what):
        return _out_of_bounds(
            path, kind=found["kind"], side=found["side"], bound=found["bound"], value=_at(document, path)
        )
    if found := _TYPE.match(what):
        wanted = " or ".join(_NOUNS.get(name, "a value") for name in found["wanted"].split(" | ") if name != "null")
        got = _NOUNS.get(found["got"], "a value")
        message = f"Invalid type for '{path}': expected {wanted}, but got {got} instead."
        return Problem(400, message, param=path or None, code="invalid_type")
    if found := _ENUM.match(what):
        return Problem(400, f"Invalid value: {found['value']}.", param=path or None, code="invalid_value")
    return Problem(400, f"Invalid '{path}': {what}.", type=INVALID, param=path or None, code="invalid_value")


def missing(path: str) -> Problem:
    """A field that has to be there is not."""
    return Problem(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def _wrong_length(path: str, *, side: str, bound: int, value: object) -> Problem:
    length = len(value) if isinstance(value, list) else 0
    if side == ">=":
        message = f"Invalid '{path}': empty array. Expected an array with minimum length {bound}, but got an empty array instead."
        return Problem(400, message, param=path, code="empty_array")
    message = f"Invalid '{path}': array too long. Expected an array with maximum length {bound}, but got an array with length {length} instead."
    return Problem(400, message, param=path, code="array_above_max_length")


def _out_of_bounds(path: str, *, kind: str, side: str, bound: str, value: object) -> Problem:
    noun = "integer" if kind == "int" else "decimal"
    words, code = _BOUND_CODES.get(side, _BOUND_CODES[">="])
    shown = bound.removesuffix(".0")
    message = f"Invalid '{path}': {noun} {words} value. Expected a value {side} {shown}, but got {value} instead."
    return Problem(400, message, param=path, code=f"{noun}_{code}_value")


def _joined(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _at(document: object, path: str) -> object:
    """The value at a path such as `messages[0].role`; None when the path cannot be followed."""
    for name in re.findall(r"[^.\[\]]+", path):
        if isinstance(document, list) and name.isdigit():
            document = document[int(name)]
        elif isinstance(document, dict):
            document = document.get(name)
        else:
            return None
    return document

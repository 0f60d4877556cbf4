"""What a client of the Messages API asks for, and Anthropic's words for everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from controlplane.demo.provider.anthropic.problems import invalid, no_threads

Json = Any  # any JSON value
BREAKPOINTS_MAX = 4
THINKING_TOKENS_MIN = 1024


class CacheControl(msgspec.Struct, frozen=True):
    """A breakpoint of the prompt cache."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class Block(msgspec.Struct, frozen=True):
    """A content block, of whatever type; unknown ones count by their bytes."""

    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Json] | None = None
    tool_use_id: str = ""
    content: Json = None  # of a tool result: text, or blocks
    source: dict[str, Json] | None = None
    cache_control: CacheControl | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [Block("text", self.content)] if isinstance(self.content, str) else self.content


class Tool(msgspec.Struct, frozen=True):
    """A tool that the model may call; one with a type other than `custom` is a tool of the provider's own."""

    name: str
    description: str = ""
    input_schema: dict[str, Json] | None = None
    type: str | None = None
    cache_control: CacheControl | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether and which tool has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model thinks aloud before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    """The schema that the answer has to follow."""

    type: Literal["json_schema"]
    schema: dict[str, Json]


class OutputConfig(msgspec.Struct, frozen=True):
    """How the answer is to be made."""

    effort: str | None = None
    format: OutputFormat | None = None


class MessagesRequest(msgspec.Struct, frozen=True):
    """The body of POST /v1/messages and, without a ceiling, of /v1/messages/count_tokens. Unknown fields are accepted."""

    model: str
    messages: list[Message]
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    metadata: dict[str, Json] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    output_format: OutputFormat | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None  # a breakpoint at the end of the prompt
    thread: Json = None

    @property
    def system_blocks(self) -> list[Block]:
        """The system prompt as blocks."""
        if self.system is None:
            return []
        return [Block("text", self.system)] if isinstance(self.system, str) else self.system

    @property
    def format(self) -> OutputFormat | None:
        """The schema of the answer, under either name."""
        return self.output_format or (self.output_config.format if self.output_config is not None else None)

    @property
    def thinks(self) -> bool:
        """Whether thinking is asked for."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def cache_controls(self) -> Iterator[CacheControl]:
        """The breakpoints of the prompt cache, in the order of the prompt."""
        for part in (*(self.tools or ()), *self.system_blocks):
            if part.cache_control is not None:
                yield part.cache_control
        for message in self.messages:
            for block in message.blocks:
                if block.cache_control is not None:
                    yield block.cache_control
        if self.cache_control is not None:
            yield self.cache_control


def read(body: bytes, *, ceiling: bool) -> MessagesRequest:
    """The request in a body. ceiling: `max_tokens` is required. Raises Problem in Anthropic's words."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("The request body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise invalid("Input should be a valid dictionary")
    required = ("model", "messages", "max_tokens") if ceiling else ("model", "messages")
    for name in required:
        if name not in document:
            raise invalid(f"{name}: Field required")
    try:
        request = msgspec.convert(document, MessagesRequest)
    except msgspec.ValidationError as error:
        raise invalid(_worded(str(error))) from None
    _check(request)
    return request


def _check(request: MessagesRequest) -> None:
    """Checks what types cannot say. Raises Problem."""
    if request.thread is not None:
        raise no_threads()
    if not request.messages:
        raise invalid("messages: at least one message is required")
    _check_conversation(request.messages)
    _check_tools(request)
    if request.thinking is not None:
        _check_thinking(request)
    if sum(1 for _ in request.cache_controls()) > BREAKPOINTS_MAX:
        count = sum(1 for _ in request.cache_controls())
        raise invalid(f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. Found {count}.")


def _check_conversation(messages: list[Message]) -> None:
    """A tool's result has to follow the call that asked for it, and a call must get its result."""
    asked: set[str] = set()  # by the assistant's last turn; consecutive messages of one role are one turn
    answered: set[str] = set()
    role = ""
    for index, message in enumerate(messages):
        _check_content(message, index, last=index == len(messages) - 1)
        if message.role != role and message.role == "assistant":
            _check_answered(asked, answered, index)
            asked, answered = set(), set()
        role = message.role
        for position, block in enumerate(message.blocks):
            if block.type == "tool_use":
                asked.add(block.id)
            elif block.type == "tool_result":
                if block.tool_use_id not in asked:
                    raise invalid(
                        f"messages.{index}.content.{position}: unexpected `tool_use_id` found in `tool_result` blocks: "
                        f"{block.tool_use_id}. Each `tool_result` block must have a corresponding `tool_use` block in the previous "
                        "message."
                    )
                answered.add(block.tool_use_id)
    _check_answered(asked, answered, len(messages))


def _check_content(message: Message, index: int, *, last: bool) -> None:
    if not message.content and not (last and message.role == "assistant"):
        raise invalid(
            f"messages.{index}: all messages must have non-empty content except for the optional final assistant message"
        )
    if not isinstance(message.content, str) and any(
        block.type == "text" and not block.text for block in message.content
    ):
        raise invalid("messages: text content blocks must be non-empty")


def _check_answered(asked: set[str], answered: set[str], index: int) -> None:
    if missing := sorted(asked - answered):
        raise invalid(
            f"messages.{index - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next message."
        )


def _check_tools(request: MessagesRequest) -> None:
    choice, tools = request.tool_choice, request.tools or []
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise invalid("tools: Tool names must be unique.")
    for index, tool in enumerate(tools):
        if tool.type in (None, "custom"):
            if tool.input_schema is None:
                raise invalid(f"tools.{index}.custom.input_schema: Field required")
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool.name):
                raise invalid(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
            if tool.input_schema.get("type") != "object":
                raise invalid(f"tools.{index}.custom.input_schema.type: Input should be 'object'")
    if choice is None or choice.type in ("auto", "none"):
        return
    if not tools:
        raise invalid("tool_choice may only be specified while providing tools.")
    if choice.type == "tool" and choice.name not in names:
        raise invalid(f"Tool '{choice.name}' not found in provided tools")
    if request.thinks:
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.")


def _check_thinking(request: MessagesRequest) -> None:
    thinking = request.thinking
    if thinking is None or thinking.type != "enabled":
        return
    budget = thinking.budget_tokens
    if budget is None:
        raise invalid("thinking.enabled.budget_tokens: Field required")
    if budget < THINKING_TOKENS_MIN:
        raise invalid(f"thinking.enabled.budget_tokens: Input should be greater than or equal to {THINKING_TOKENS_MIN}")
    if request.max_tokens is not None and request.max_tokens <= budget:
        raise invalid(
            "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation at "
            "https://docs.claude.com/en/docs/build-with-claude/extended-thinking#max-tokens-and-context-window-size"
        )
    if request.temperature not in (None, 1):
        raise invalid("`temperature` may only be set to 1 when thinking is enabled.")


# --- msgspec's words to Anthropic's --------------------------------------------------------------------------------------

_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_TYPE = re.compile(r"Expected `(?P<wanted>.*)`, got `(?P<got>.*)`")
_BOUND = re.compile(r"Expected `(?:int|float)` (?P<side><=|>=) (?P<bound>\S+)")
_NOUNS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "array": "list",
    "object": "dictionary",
}
_SIDES = {">=": "greater than or equal to", "<=": "less than or equal to"}


def _worded(text: str) -> str:
    """A validation error as Anthropic words it: the path in dots, then what is wrong."""
    located = _PATH.search(text)
    path = re.sub(r"\[(?:\d+|\.\.\.)\]", lambda found: "." + found[0].strip("[]."), located["path"]) if located else ""
    path = re.sub(r"\.+", ".", path).strip(".")
    what = text[: located.start()] if located else text
    if found := _MISSING.match(what):
        return f"{path}.{found['field']}: Field required" if path else f"{found['field']}: Field required"
    if found := _BOUND.match(what):
        return f"{path}: Input should be {_SIDES[found['side']]} {found['bound'].removesuffix('.0')}"
    if found := _TYPE.match(what):
        wanted = next((_NOUNS[name] for name in found["wanted"].split(" | ") if name in _NOUNS), "value")
        return f"{path}: Input should be a valid {wanted}"
    return f"{path}: {what}"

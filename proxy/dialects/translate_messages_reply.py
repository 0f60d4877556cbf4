"""A chat completion as the message that Anthropic's clients expect."""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects import translate_chat_words as chat
from proxy.dialects.dialect import Malformed
from proxy.dialects.translate_tool_names import ToolNames

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_CUT = frozenset(("length", "content_filter"))
_decode = msgspec.json.Decoder(chat.Reply).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class TextOut(msgspec.Struct, tag_field="type", tag="text"):
    """Text as it is written."""

    text: str


class ToolUseOut(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call as it is written."""

    id: str
    name: str
    input: msgspec.Raw


class ThinkingOut(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought, as it is written."""

    thinking: str = ""
    signature: str = ""


class RedactedOut(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """What the model thought, encrypted, as it is written."""

    data: str = ""


BlockOut = TextOut | ToolUseOut | ThinkingOut | RedactedOut
_decode_thought = msgspec.json.Decoder(ThinkingOut | RedactedOut).decode


class MessagesUsage(msgspec.Struct):
    """Usage as Anthropic's clients read it: `input_tokens` leaves out what was read from a prompt cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnswerMessage(msgspec.Struct, tag_field="type", tag="message"):
    """A message as it is written."""

    id: str
    model: str
    content: list[BlockOut]
    stop_reason: str | None
    usage: MessagesUsage
    role: str = "assistant"
    stop_sequence: None = None


def usage_of(tokens: Tokens | None) -> MessagesUsage:
    """Disjoint tokens in Anthropic's words; zeros where the upstream has not said."""
    known = tokens or NO_TOKENS
    written = known.cache_write + known.cache_write_1h
    return MessagesUsage(known.total_input - known.cache_read - written, written, known.cache_read, known.total_output)


def stop_reason_of(finish_reason: str, *, called: bool, refused: bool) -> str:
    """Why the model stopped. Some servers say `stop` where they call tools; the calls count."""
    if called and finish_reason in ("stop", ""):
        return "tool_use"
    if refused:
        return "refusal"
    return _STOP_REASONS.get(finish_reason, "end_turn")


def identity_of(upstream_id: str) -> str:
    """A message's identity made from a completion's."""
    return "msg_" + upstream_id.removeprefix("chatcmpl-")


def thoughts_of(blocks: list[msgspec.Raw] | None) -> list[ThinkingOut | RedactedOut]:
    """The blocks of thinking that a gateway passes on; one in a form that we do not know is left out."""
    found = []
    for raw in blocks or ():
        try:
            found.append(_decode_thought(raw))
        except (msgspec.MsgspecError, RecursionError):
            continue
    return found


def message_of(body: bytes, *, alias: str, tokens: Tokens | None, names: ToolNames, thinking: bool = False) -> bytes:
    """A complete reply as a message. names: of tools. thinking: with what the model thought, where the gateway says it. Raises Malformed."""
    try:
        reply = _decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(f"the upstream's reply is not valid: {error}") from error
    if not reply.choices:
        raise Malformed("the upstream's reply has no choices")
    choice = reply.choices[0]
    answer = choice.message
    content: list[BlockOut] = [*thoughts_of(answer.thinking_blocks if thinking else None)]
    content += [TextOut(text) for text in (answer.content, answer.refusal) if text]
    for call in answer.tool_calls or ():
        function = call.function or chat.CalledFunction()
        given = _input(function.arguments or "", cut=choice.finish_reason in _CUT)
        content.append(ToolUseOut(call.id or "", names.long(function.name or ""), given))
    reason = stop_reason_of(choice.finish_reason or "", called=bool(answer.tool_calls), refused=bool(answer.refusal))
    return _encode(AnswerMessage(identity_of(reply.id), reply.model or alias, content, reason, usage_of(tokens)))


def _input(arguments: str, *, cut: bool) -> msgspec.Raw:
    """A call's arguments, which Anthropic's clients expect as an object. Raises Malformed for a text that is none.

    cut: the answer ended where it had to and not where it was done: what came of the arguments is kept as text, for it was billed,
    another try would end the same, and the reason to stop tells the client not to run the tool.
    """
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    try:
        _decode_object(arguments)
    except (msgspec.MsgspecError, RecursionError) as error:
        if cut:
            return msgspec.Raw(_encode({"invalid_arguments": arguments}))
        raise Malformed(f"the upstream called a tool with arguments that are no JSON object: {error}") from error
    return msgspec.Raw(arguments.encode())

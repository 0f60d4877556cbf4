"""The messages of a chat as Anthropic's turns: instructions apart, tool results with the user, and roles that take turns."""

from __future__ import annotations

import base64
import re

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Malformed

Block = (
    anthropic.TextBlock
    | anthropic.ImageBlock
    | anthropic.DocumentBlock
    | anthropic.ToolUseBlock
    | anthropic.ToolResultBlock
    | msgspec.Raw
)

_DATA_URL = re.compile(r"data:([A-Za-z0-9.+/-]+)(?:;[^,;]+)*;base64,", re.ASCII)
_PDF = "application/pdf"
_TEXTS = frozenset(("application/json", "application/xml", "application/yaml", "application/x-yaml"))
_MEDIA_TYPES = {"image/jpg": "image/jpeg", "application/x-pdf": _PDF}  # that are often written so
_NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9_-]")
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def turns_of(
    messages: list[chat.Message],
) -> tuple[list[anthropic.TextBlock], list[anthropic.WrittenMessage], bool]:
    """Instructions, turns, and whether the model may think now.

    It may not where its own turn goes on (tool results come last) and began without the thinking that must stand before it.
    Raises Malformed for content that Anthropic does not take.
    """
    system: list[anthropic.TextBlock] = []
    turns: list[anthropic.WrittenMessage] = []
    may_think = True
    for place, message in enumerate(messages):
        param = f"messages.{place}.content"
        if isinstance(message, chat.SystemMessage | chat.DeveloperMessage):
            system.extend(_texts(message.content))
        elif isinstance(message, chat.AssistantMessage):
            blocks = _assistant(message, place)
            _add(turns, "assistant", blocks)
            if message.tool_calls:
                may_think = may_think and bool(message.thinking_blocks)
        elif isinstance(message, chat.ToolMessage):
            _add(turns, "user", [_result(message, param)])
        else:
            may_think = True
            _add(turns, "user", _parts(message.content, param))
    if not turns and system:
        turns.append(anthropic.WrittenMessage("user", list(system)))
        system = []
    if turns and turns[-1].role == "assistant":
        _trim(turns[-1])
    return system, turns, may_think


def _add(turns: list[anthropic.WrittenMessage], role: str, blocks: list[Block]) -> None:
    """Appends blocks to the last turn if it is of the same role: Anthropic wants all results of one turn in one message."""
    if not blocks:
        return
    if turns and turns[-1].role == role:
        turns[-1].content.extend(blocks)
    else:
        turns.append(anthropic.WrittenMessage("user" if role == "user" else "assistant", blocks))


def _trim(turn: anthropic.WrittenMessage) -> None:
    """An answer to be continued may not end with white space there."""
    last = turn.content[-1]
    if isinstance(last, anthropic.TextBlock):
        last.text = last.text.rstrip()


def _texts(content: str | list[chat.TextPart]) -> list[anthropic.TextBlock]:
    """Text blocks; blank ones are refused there, so they are left out."""
    if isinstance(content, str):
        return [anthropic.TextBlock(content)] if content.strip() else []
    return [anthropic.TextBlock(part.text, part.cache_control) for part in content if part.text.strip()]


def _parts(content: chat.Content, param: str) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return [anthropic.TextBlock(content)] if content.strip() else []
    blocks: list[Block] = []
    for place, part in enumerate(content):
        block = _part(part, f"{param}.{place}")
        if block is not None:
            blocks.append(block)
    return blocks


def _part(part: chat.Part, param: str) -> anthropic.TextBlock | anthropic.ImageBlock | anthropic.DocumentBlock | None:
    if isinstance(part, chat.TextPart):
        return anthropic.TextBlock(part.text, part.cache_control) if part.text.strip() else None
    if isinstance(part, chat.RefusalPart):
        return anthropic.TextBlock(part.refusal) if part.refusal.strip() else None
    if isinstance(part, chat.ImagePart):
        return anthropic.ImageBlock(_image(part.image_url.url, f"{param}.image_url.url"), part.cache_control)
    data = part.file.file_data
    if data is None:
        message = "a file must be sent with its bytes, in `file_data`: one stored at a provider is not known to another"
        raise Malformed(message, f"{param}.file.file_data")
    media_type, encoded = _data_url(data, f"{param}.file.file_data")
    if media_type.startswith("image/"):
        return anthropic.ImageBlock(anthropic.Base64Source(media_type, encoded), part.cache_control)
    source = _document(media_type, encoded, f"{param}.file.file_data")
    return anthropic.DocumentBlock(source, title=part.file.filename, cache_control=part.cache_control)


def _document(media_type: str, encoded: str, param: str) -> anthropic.Base64Source | anthropic.TextSource:
    """What a document is made of: Anthropic takes PDF as bytes, and everything else that it takes as text. Raises Malformed."""
    if media_type == _PDF:
        return anthropic.Base64Source(media_type, encoded)
    try:
        if media_type.startswith("text/") or media_type in _TEXTS:
            return anthropic.TextSource(base64.b64decode(encoded).decode())
    except ValueError as error:
        raise Malformed(f"`{param}` is no text in UTF-8 and base64, as `{media_type}` must be", param) from error
    raise Malformed(f"`{param}`: a model of Anthropic's reads PDF and text, and no `{media_type}`", param)


def _image(url: str, param: str) -> anthropic.Base64Source | anthropic.UrlSource:
    if url[:8].lower() == "https://":
        return anthropic.UrlSource(url)
    return anthropic.Base64Source(*_data_url(url, param))


def _data_url(url: str, param: str) -> tuple[str, str]:
    """Media type, as Anthropic writes it, and base64 text of a data URL."""
    found = _DATA_URL.match(url[:256])
    if found is None:
        raise Malformed(f"`{param}` must be an https address or a data URL in base64", param)
    media_type = found[1].lower()
    return _MEDIA_TYPES.get(media_type, media_type), url[found.end() :]


def _assistant(message: chat.AssistantMessage, place: int) -> list[Block]:
    if bytes(message.function_call) not in (b"", b"null"):
        param = f"messages.{place}.function_call"
        raise Malformed("`function_call` cannot be translated; use `tool_calls`", param)
    blocks: list[Block] = [_thinking(block) for block in message.thinking_blocks or ()]
    blocks += _parts(message.content, f"messages.{place}.content")
    if message.refusal and message.refusal.strip():
        blocks.append(anthropic.TextBlock(message.refusal))
    for call in message.tool_calls or ():
        blocks.append(anthropic.ToolUseBlock(_id(call.id), call.function.name, _input(call.function.arguments)))
    return blocks


def _thinking(block: msgspec.Raw) -> msgspec.Raw:
    """A block as Anthropic gave it, less the `index` that it has after a stream, which Anthropic would refuse."""
    if b'"index"' not in bytes(block):
        return block
    try:
        fields = _decode_object(block)
    except (msgspec.MsgspecError, RecursionError):
        return block  # Anthropic says what is wrong with it
    fields.pop("index", None)
    return msgspec.Raw(_encode(fields))


def _input(arguments: str) -> msgspec.Raw:
    """Arguments as the object that Anthropic demands; a text that is none is kept as text, so that the conversation can go on."""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    try:
        _decode_object(arguments)
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(_encode({"invalid_arguments": arguments}))
    return msgspec.Raw(arguments.encode())


def _result(message: chat.ToolMessage, param: str) -> anthropic.ToolResultBlock:
    content: str | list[anthropic.TextBlock | anthropic.ImageBlock | anthropic.DocumentBlock]
    if isinstance(message.content, str):
        content = message.content
    else:
        found = [_part(part, f"{param}.{place}") for place, part in enumerate(message.content)]
        content = [block for block in found if block is not None]
    return anthropic.ToolResultBlock(_id(message.tool_call_id), content or None)


def _id(text: str) -> str:
    """A call's identity in the letters that Anthropic takes; equal ones stay equal."""
    return _NOT_OF_AN_ID.sub("_", text)

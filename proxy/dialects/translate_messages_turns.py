"""Anthropic's turns as the messages of a chat: results of tools are messages of their own there, and carry text alone."""

from __future__ import annotations

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects import translate_messages_words as anthropic
from proxy.dialects.dialect import Malformed

_BILLING = "x-anthropic-billing-header:"
_ERROR = "Error: "
_encode = msgspec.json.Encoder().encode
_SHOWN_BELOW = "(The files of this result are in the message below.)"


def messages_of(
    system: str | list[anthropic.TextBlock] | None, turns: list[anthropic.Message], *, claude: bool = False
) -> list[chat.Message]:
    """Instructions first, then the turns in their order. Raises Malformed for content that OpenAI does not take.

    claude: behind the chat is a model of Anthropic's, so `cache_control` and thinking stay, in the words of gateways that know both.
    """
    messages: list[chat.Message] = []
    instructions = _parts_of(system) if claude and isinstance(system, list) else _instructions(system)
    if instructions:
        messages.append(chat.SystemMessage(instructions))
    for place, turn in enumerate(turns):
        param = f"messages.{place}.content"
        if isinstance(turn, anthropic.AssistantMessage):
            message = _assistant(turn, claude=claude)
            if message is not None:
                messages.append(message)
        elif isinstance(turn, anthropic.SystemMessage):
            text = _instructions(turn.content)
            if text:
                messages.append(chat.SystemMessage(text))
        elif isinstance(turn.content, str):
            messages.append(chat.UserMessage(turn.content))
        else:
            _user(messages, turn.content, param, claude=claude)
    return messages


def _parts_of(system: list[anthropic.TextBlock]) -> list[chat.TextPart]:
    """The blocks of the instructions, each with its mark of where a prompt cache ends."""
    return [
        chat.TextPart(block.text, block.cache_control)
        for block in system
        if block.text and not block.text.startswith(_BILLING)
    ]


def _instructions(system: str | list[anthropic.TextBlock] | None) -> str:
    """One text: many servers of this dialect take no other.

    The block in which a client tells Anthropic whom to bill is left out: it differs from call to call and would spoil the prompt cache.
    """
    if system is None or isinstance(system, str):
        return system or ""
    return "\n\n".join(block.text for block in system if block.text and not block.text.startswith(_BILLING))


def _user(messages: list[chat.Message], blocks: list[anthropic.UserBlock], param: str, *, claude: bool) -> None:
    """Results first, for they must follow the calls at once; then what the user says, with the images of the results."""
    parts: list[chat.Part] = []
    shown: list[chat.Part] = []
    for place, block in enumerate(blocks):
        if isinstance(block, anthropic.ToolResultBlock):
            text, files = _result(block, f"{param}.{place}.content")
            marked = claude and block.cache_control is not chat.NOTHING
            said: str | list[chat.Part] = [chat.TextPart(text, block.cache_control)] if marked else text
            messages.append(chat.ToolMessage(block.tool_use_id, said))
            shown += files
        else:
            part = _part(block, f"{param}.{place}")
            if claude and not isinstance(part, chat.RefusalPart):
                part.cache_control = block.cache_control
            parts.append(part)
    if shown or parts:
        messages.append(chat.UserMessage(_plain(shown + parts)))


def _plain(parts: list[chat.Part]) -> str | list[chat.Part]:
    """One text as a string, which every server takes."""
    if len(parts) == 1 and isinstance(parts[0], chat.TextPart) and parts[0].cache_control is chat.NOTHING:
        return parts[0].text
    return parts


def _part(block: anthropic.TextBlock | anthropic.ImageBlock | anthropic.DocumentBlock, param: str) -> chat.Part:
    if isinstance(block, anthropic.TextBlock):
        return chat.TextPart(block.text)
    source = block.source
    if isinstance(source, anthropic.TextSource):
        title = block.title if isinstance(block, anthropic.DocumentBlock) else None
        return chat.TextPart(f"{title}\n\n{source.data}" if title else source.data)
    if isinstance(block, anthropic.ImageBlock):
        url = source.url if isinstance(source, anthropic.UrlSource) else _data_url(source)
        return chat.ImagePart(chat.ImageAddress(url))
    if isinstance(source, anthropic.UrlSource):
        raise Malformed(
            f"`{param}.source`: a document must be sent with its bytes to a model of OpenAI's", f"{param}.source"
        )
    return chat.FilePart(
        chat.FileContent(filename=_filename(block.title, source.media_type), file_data=_data_url(source))
    )


def _filename(title: str | None, media_type: str) -> str:
    """A name with an ending, by which OpenAI's servers and others tell what a file is."""
    name = title or "document"
    return name if "." in name else f"{name}.{media_type.rpartition('/')[2]}"


def _data_url(source: anthropic.Base64Source) -> str:
    return f"data:{source.media_type};base64,{source.data}"


def _result(block: anthropic.ToolResultBlock, param: str) -> tuple[str, list[chat.Part]]:
    """A tool's result as text, and its images and documents apart."""
    files: list[chat.Part] = []
    if block.content is None or isinstance(block.content, str):
        text = block.content or ""
    else:
        texts: list[str] = []
        for place, item in enumerate(block.content):
            part = _part(item, f"{param}.{place}")
            if isinstance(part, chat.TextPart):
                texts.append(part.text)
            else:
                files.append(part)
        if files:
            texts.append(_SHOWN_BELOW)
        text = "\n".join(texts)
    if block.is_error and not text.lower().startswith("error"):
        text = _ERROR + text
    return text, files


def _assistant(turn: anthropic.AssistantMessage, *, claude: bool) -> chat.AssistantMessage | None:
    """Text and calls; thinking is left out, for OpenAI's models do not take it back. None if nothing is left."""
    if isinstance(turn.content, str):
        return chat.AssistantMessage(turn.content) if turn.content else None
    texts = [block.text for block in turn.content if isinstance(block, anthropic.TextBlock)]
    calls = [
        chat.ToolCall(block.id, chat.FunctionCall(block.name, _arguments(block.input)))
        for block in turn.content
        if isinstance(block, anthropic.ToolUseBlock)
    ]
    text = "".join(texts)
    if not text and not calls:
        return None
    if not claude:
        return chat.AssistantMessage(text or None, calls or None)
    marked = [block for block in turn.content if isinstance(block, anthropic.TextBlock) and block.text]
    content: str | list[chat.Part] = text
    if any(block.cache_control is not chat.NOTHING for block in marked):
        content = [chat.TextPart(block.text, block.cache_control) for block in marked]
    thought = [
        msgspec.Raw(_encode(block))
        for block in turn.content
        if isinstance(block, anthropic.ThinkingBlock | anthropic.RedactedBlock)
    ]
    return chat.AssistantMessage(content or None, calls or None, thought or None)


def _arguments(given: msgspec.Raw) -> str:
    return bytes(given).decode() or "{}"

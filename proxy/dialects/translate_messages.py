"""Lets a client that speaks Anthropic's Messages be served by a deployment that speaks OpenAI's chat completions."""

from __future__ import annotations

import msgspec

from proxy.dialects.dialect import Dialect, RequestView, Scanner
from proxy.dialects.translate_errors import anthropic_error
from proxy.dialects.translate_messages_reply import message_of
from proxy.dialects.translate_messages_request import chat_request
from proxy.dialects.translate_messages_stream import MessagesStream
from proxy.dialects.translate_tool_names import ToolNames

_CLAUDE = "claude"  # in the names of Anthropic's models, whoever sells them


class MessagesToChat:
    """The translation `messages` to `chat`; docs/reference/translations.md says what of it is exact."""

    def __init__(self, upstream: Dialect, *, gateway: bool = False) -> None:
        """upstream: OpenAI's chat dialect, which meters the call.

        gateway: it leads to models of many makers, Anthropic's among them, which keep their `cache_control` and their thinking.
        """
        self.upstream = upstream
        self._gateway = gateway
        self._names = ToolNames()

    def request(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request in OpenAI's words. Raises Malformed, naming the field."""
        claude = self._gateway and _CLAUDE in model.lower()
        return chat_request(
            body, view=view, model=model, output_ceiling=output_ceiling, names=self._names, claude=claude
        )

    def reply(self, body: bytes, *, alias: str) -> bytes:
        """A complete reply in Anthropic's words; alias stands in where the upstream names no model. Raises Malformed."""
        tokens, _ = self.upstream.read_reply(body)
        return message_of(body, alias=alias, tokens=tokens, names=self._names, thinking=self._gateway)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An error of OpenAI's in Anthropic's words."""
        return anthropic_error(status, body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> Scanner:
        """Reads OpenAI's stream, returns Anthropic's events. Usage is always asked for, so the inner scanner must show it."""
        asked = msgspec.structs.replace(view, include_usage=True)
        inner = self.upstream.scanner(view=asked, event_bytes_max=event_bytes_max)
        return MessagesStream(inner, alias=view.model, names=self._names, thinking=self._gateway)

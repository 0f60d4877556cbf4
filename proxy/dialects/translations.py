"""Who translates: by the client's operation and the upstream's dialect, where the upstream does not speak the operation itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.dialects.anthropic_messages import AnthropicMessages
from proxy.dialects.dialect import Translation
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.translate_chat import ChatToMessages
from proxy.dialects.translate_messages import MessagesToChat
from proxy.dialects.translate_responses import ResponsesToChat

TRANSLATIONS: Mapping[tuple[str, str], Callable[[], Translation]] = {
    ("chat", "anthropic"): lambda: ChatToMessages(AnthropicMessages()),
    ("messages", "openai"): lambda: MessagesToChat(OpenAiChat()),
    ("messages", "litellm"): lambda: MessagesToChat(OpenAiChat(), gateway=True),
    ("responses", "anthropic"): lambda: ResponsesToChat(OpenAiChat(), ChatToMessages(AnthropicMessages())),
    ("responses", "litellm"): lambda: ResponsesToChat(OpenAiChat()),
}

"""Names of tools that are longer than OpenAI takes: they are asked for by a short one, and answered by their own.

Anthropic takes twice as many letters, and Claude Code puts the names of a plugin and of a server before each tool's own. The short name is made from
the long one alone, so a conversation keeps its words, and a provider's prompt cache its prefix.
"""

from __future__ import annotations

import hashlib

CHARS_MAX = 64
KNOWN_MAX = (
    4096  # long names; the ones not asked for the longest give way, far behind the last answer that may name them
)
_LONG_CHARS_MAX = 1024  # a longer one is the upstream's to refuse
_MARK_CHARS = 10


class ToolNames:
    """The long names that were asked for, by their short ones."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def short(self, name: str) -> str:
        """The name as OpenAI takes it; nearly all stay as they are."""
        if not CHARS_MAX < len(name) <= _LONG_CHARS_MAX:
            return name
        mark = hashlib.sha256(name.encode()).hexdigest()[:_MARK_CHARS]
        short = f"{name[: CHARS_MAX - _MARK_CHARS - 1]}_{mark}"
        self._known.pop(short, None)
        self._known[short] = name
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        return short

    def long(self, name: str) -> str:
        """The name that was asked for."""
        return self._known.get(name, name) if self._known else name

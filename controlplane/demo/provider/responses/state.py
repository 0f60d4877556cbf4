"""What the provider remembers for its clients: responses and conversations, the oldest of which are forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

from controlplane.demo.provider.responses.request import Item

RESPONSES_MAX = 10_000
CONVERSATIONS_MAX = 10_000
ITEMS_MAX = 2_000  # of one conversation, or of one response with its past
_Kept = TypeVar("_Kept")


@dataclass(slots=True)
class StoredResponse:
    """A response that can be asked for again. whole: JSON with marks, as it is once it is ready."""

    number: bytes  # what the marks stand for
    created_s: int
    whole: bytes
    input: list[Item]
    context: list[Item]  # everything before its output, for the responses that follow it
    output: list[Item]
    events: tuple[bytes, ...] = ()
    background: bool = False
    ready_at: float = 0.0  # on the monotonic clock
    cancelled: bool = False


@dataclass(slots=True)
class Conversation:
    """Items that several responses share."""

    id: str
    created_s: int
    metadata: dict[str, str]
    items: list[Item] = field(default_factory=list)
    numbered: int = 0  # items that were given an id so far


@dataclass(slots=True)
class State:
    """The memory of one upstream."""

    responses: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    conversations: OrderedDict[str, Conversation] = field(default_factory=OrderedDict)
    forgotten: int = 0  # because there were too many

    def keep_response(self, response_id: str, stored: StoredResponse) -> None:
        """Remembers a response."""
        self.responses[response_id] = stored
        self._trim(self.responses, RESPONSES_MAX)

    def keep_conversation(self, conversation: Conversation) -> None:
        """Remembers a conversation."""
        self.conversations[conversation.id] = conversation
        self._trim(self.conversations, CONVERSATIONS_MAX)

    def _trim(self, kept: OrderedDict[str, _Kept], most: int) -> None:
        while len(kept) > most:
            kept.popitem(last=False)
            self.forgotten += 1

"""The conversations of the Responses API: made, read, changed and deleted, and their items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from controlplane.demo.provider.problems import Problem, not_json
from controlplane.demo.provider.request import missing
from controlplane.demo.provider.responses.request import Item, input_items
from controlplane.demo.provider.responses.state import ITEMS_MAX, Conversation, State

Json = dict[str, Any]  # JSON on its way to bytes
PAGE_MAX = 100
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


class ConversationNotes(msgspec.Struct, frozen=True):
    """The body of a conversation that is made or changed."""

    items: list[Item] | None = None
    metadata: dict[str, str] | None = None


class Conversations:
    """Answers the requests below /v1/conversations."""

    def __init__(self, state: State, now_s: Callable[[], int]) -> None:
        self._state = state
        self._now_s = now_s

    def answer(self, method: bytes, names: list[str], query: dict[str, str], body: bytes, number: str) -> Json:
        """The document that answers. names: the path below /v1/conversations. number: of this request."""
        if not names:
            if method != b"POST":
                raise Problem(405, "Not allowed. (HINT: Perhaps you meant to make a different kind of request?)")
            return self._create(_notes(body), number)
        conversation = self.find(names[0])
        match (method, names[1:]):
            case (b"GET", []):
                return _described(conversation)
            case (b"POST", []):
                conversation.metadata = _notes(body).metadata or {}
                return _described(conversation)
            case (b"DELETE", []):
                del self._state.conversations[conversation.id]
                return {"id": conversation.id, "object": "conversation.deleted", "deleted": True}
            case (b"GET", ["items"]):
                return page(conversation.items, query)
            case (b"POST", ["items"]):
                added = self.extend(conversation, input_items(_required(_notes(body).items)))
                return page(added, {"order": "asc", "limit": str(PAGE_MAX)})
            case (b"GET", ["items", item_id]):
                return _item(conversation, item_id)
            case (b"DELETE", ["items", item_id]):
                conversation.items.remove(_item(conversation, item_id))
                return _described(conversation)
            case _:
                raise Problem(404, "Invalid URL")

    def find(self, conversation_id: str) -> Conversation:
        """A conversation by its id. Raises Problem."""
        found = self._state.conversations.get(conversation_id)
        if found is None:
            raise Problem(404, f"Conversation with id '{conversation_id}' not found.")
        return found

    def extend(self, conversation: Conversation, items: list[Item]) -> list[Item]:
        """Adds items, each with an id of its own; the first ones are forgotten when there are too many."""
        added = []
        for item in items:
            conversation.numbered += 1
            prefix = _PREFIXES.get(item["type"], "item")
            made = f"{prefix}_{conversation.id.removeprefix('conv_')}{conversation.numbered:04x}"
            added.append({"id": made} | item)
        conversation.items = [*conversation.items, *added][-ITEMS_MAX:]
        return added

    def _create(self, notes: ConversationNotes, number: str) -> Json:
        made = Conversation(f"conv_{number}", self._now_s(), notes.metadata or {})
        self.extend(made, input_items(notes.items))
        self._state.keep_conversation(made)
        return _described(made)


def page(items: list[Item], query: dict[str, str]) -> Json:
    """A part of a list, the newest items first unless `order` says `asc`."""
    limit = query.get("limit", "20")
    if not limit.isdigit() or not 1 <= int(limit) <= PAGE_MAX:
        raise Problem(400, f"Invalid 'limit': expected an integer between 1 and {PAGE_MAX}.", param="limit")
    ordered = items if query.get("order") == "asc" else items[::-1]
    ids = [item["id"] for item in ordered]
    start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
    shown = ordered[start : start + int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + int(limit) < len(ordered),
    }


def _described(conversation: Conversation) -> Json:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_s,
        "metadata": conversation.metadata,
    }


def _item(conversation: Conversation, item_id: str) -> Item:
    for item in conversation.items:
        if item["id"] == item_id:
            return item
    raise Problem(404, f"Item with id '{item_id}' not found.")


def _notes(body: bytes) -> ConversationNotes:
    if not body:
        return ConversationNotes()
    try:
        return msgspec.json.decode(body, type=ConversationNotes)
    except msgspec.ValidationError as error:
        raise Problem(400, f"Invalid body: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise not_json() from None


def _required(items: list[Item] | None) -> list[Item]:
    if items is None:
        raise missing("items")
    return items

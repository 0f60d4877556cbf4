"""The provider's own tools in the Responses API: used where a request offers one and its last words ask for it.

`search the web`, `search the files`, `run code` and `draw` are the words; a forced `tool_choice` needs none. Each tool is used once.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from controlplane.demo.provider import prose
from controlplane.demo.provider.responses.request import Item, ResponsesRequest, input_items

_WORDS = {
    "web_search": "search the web",
    "file_search": "search the files",
    "code_interpreter": "run code",
    "image_generation": "draw",
}
_PREFIXES = {
    "web_search_call": "ws",
    "file_search_call": "fs",
    "code_interpreter_call": "ci",
    "image_generation_call": "ig",
}
STEPS = {
    "web_search_call": ("in_progress", "searching", "completed"),
    "file_search_call": ("in_progress", "searching", "completed"),
    "code_interpreter_call": ("in_progress", "interpreting", "completed"),
    "image_generation_call": ("in_progress", "generating", "completed"),
}
"""The events of a call, by its type."""


def hosted_calls(request: ResponsesRequest, mark: str) -> list[Item]:
    """The calls that the model makes of such tools, before it answers. mark: stands for the number of the response in ids."""
    text = _last_words(request)
    choice = request.tool_choice
    calls: list[Item] = []
    for tool in request.tools or ():
        kind = next((kind for kind in _WORDS if str(tool.get("type", "")).startswith(kind)), None)
        if kind is None or choice == "none" or len(calls) >= (request.max_tool_calls or len(request.tools or ())):
            continue
        forced = isinstance(choice, dict) and choice.get("type") == tool.get("type")
        if forced or _WORDS[kind] in text.lower():
            calls.append(_call(f"{kind}_call", f"{mark}{len(calls):02x}c", text, tool))
    return calls


def _call(kind: str, number: str, text: str, tool: dict[str, Any]) -> Item:
    call: Item = {"id": f"{_PREFIXES[kind]}_{number}", "type": kind, "status": "completed"}
    query = " ".join(prose.keywords(text)[:5])
    if kind == "web_search_call":
        return call | {"action": {"type": "search", "query": query}}
    if kind == "file_search_call":
        return call | {"queries": [query], "results": None}
    if kind == "code_interpreter_call":
        place = tool.get("container")
        container = place if isinstance(place, str) else f"cntr_{number}"
        return call | {"code": f"print({query!r})", "container_id": container, "outputs": None}
    drawn = {"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"}
    picture = hashlib.blake2b(query.encode(), digest_size=48).digest()
    return call | drawn | {"result": base64.b64encode(picture).decode(), "revised_prompt": query}


def _last_words(request: ResponsesRequest) -> str:
    """What the user said last."""
    for item in reversed(input_items(request.input)):
        if item["type"] == "message" and item["role"] == "user":
            return " ".join(str(part.get("text", "")) for part in item["content"])
    return ""

"""Anthropic's own tools: used where a request offers one and its last words ask for it, `search the web` or `run code`. Each is used once."""

from __future__ import annotations

import base64
import random
from typing import Any

import msgspec

from controlplane.demo.provider import prose
from controlplane.demo.provider.anthropic.request import Tool
from controlplane.demo.provider.composition import ID_LETTERS

HOSTED = ("web_search_", "web_fetch_", "code_execution_")
"""How the types of tools begin that run at the provider."""
_SEARCH, _CODE = "search the web", "run code"
Json = dict[str, Any]  # JSON on its way to bytes


class HostedUse(msgspec.Struct, frozen=True):
    """One use of such a tool: the call's id, name and input, and the block with its result."""

    id: str
    name: str
    input: Json
    result: Json


def is_hosted(tool: Tool) -> bool:
    """Whether the provider runs a tool itself."""
    return (tool.type or "").startswith(HOSTED)


def hosted_uses(tools: list[Tool] | None, text: str, draw: random.Random) -> list[HostedUse]:
    """What the model does with them before it answers. text: what the user said last."""
    said = text.lower()
    uses = []
    for tool in tools or ():
        kind = tool.type or ""
        if kind.startswith("web_search_") and _SEARCH in said:
            uses.append(_search(text, draw))
        elif kind.startswith("code_execution_") and _CODE in said:
            uses.append(_run(text, draw))
    return uses


def container_id(draw: random.Random) -> str:
    """The id of a container in which code ran."""
    return f"container_01{_letters(draw)}"


def _search(text: str, draw: random.Random) -> HostedUse:
    number, words = _letters(draw), prose.keywords(text)[:5]
    found = {
        "type": "web_search_result",
        "title": " ".join(words).title(),
        "url": f"https://www.example.com/{'-'.join(words)}",
        "encrypted_content": base64.b64encode(draw.randbytes(60)).decode(),
        "page_age": None,
    }
    result = {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_01{number}", "content": [found]}
    return HostedUse(f"srvtoolu_01{number}", "web_search", {"query": " ".join(words)}, result)


def _run(text: str, draw: random.Random) -> HostedUse:
    number, word = _letters(draw), prose.keywords(text)[0]
    said: Json = {
        "type": "bash_code_execution_result",
        "stdout": f"{word}\n",
        "stderr": "",
        "return_code": 0,
        "content": [],
    }
    result = {"type": "bash_code_execution_tool_result", "tool_use_id": f"srvtoolu_01{number}", "content": said}
    return HostedUse(f"srvtoolu_01{number}", "bash_code_execution", {"command": f"echo {word}"}, result)


def _letters(draw: random.Random) -> str:
    return "".join(draw.choices(ID_LETTERS, k=22))

"""Names of tools that are too long for OpenAI."""

from __future__ import annotations

import json
from typing import Any

from proxy.dialects.dialect import RequestView
from proxy.dialects.openai_chat import OpenAiChat
from proxy.dialects.translate_messages import MessagesToChat
from proxy.dialects.translate_tool_names import KNOWN_MAX, ToolNames
from tests.proxy.dialects.test_translate_messages import accumulated, call, completion, stream

LONG = "mcp__plugin_oh-my-claudecode_omc-tools__" + "x" * 50
SIBLING = LONG + "y"
VIEW = RequestView("m", stream=True, max_output_tokens=9)


def test_short_names_stay_and_long_ones_come_back() -> None:
    """Whatever else is asked for meanwhile; no two share a short name."""
    names = ToolNames()
    shorts = [names.short(name) for name in (LONG, SIBLING, "a" * 64, "a" * 2000)]
    assert [64, 64, 64, 2000] == [len(short) for short in shorts]
    assert shorts == [names.short(name) for name in (LONG, SIBLING, "a" * 64, "a" * 2000)]
    assert [LONG, SIBLING, "a" * 64, "b"] == [names.long(name) for name in (*shorts[:3], "b")]
    assert shorts[0] == ToolNames().short(LONG)


def test_what_is_known_is_bounded() -> None:
    """The names that were not asked for the longest give way."""
    names = ToolNames()
    shorts = [names.short(f"{n:0>100}") for n in range(KNOWN_MAX)]
    names.short(f"{0:0>100}")
    names.short("z" * 100)
    assert [True, False, True] == [names.long(short) != short for short in (shorts[0], shorts[1], shorts[2])]


def test_a_long_name_is_short_wherever_it_is_sent_and_long_wherever_it_is_read() -> None:
    """In the tools, the choice and earlier calls; in whole answers and in streams."""
    translation = MessagesToChat(OpenAiChat())
    asked: dict[str, Any] = {
        "model": "m",
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": LONG, "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1"}]},
        ],
        "tools": [{"name": LONG, "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": LONG},
    }
    body = translation.request(json.dumps(asked).encode(), view=VIEW, model="gpt-4.1", output_ceiling=None)
    sent = json.loads(body)
    short = ToolNames().short(LONG)
    assert LONG.encode() not in body
    assert [short] * 3 == [
        sent["tools"][0]["function"]["name"],
        sent["tool_choice"]["function"]["name"],
        sent["messages"][1]["tool_calls"][0]["function"]["name"],
    ]
    calls = [call("c", short, "{}")]
    whole = json.loads(translation.reply(json.dumps(completion(None, calls)).encode(), alias="m"))
    scanner = translation.scanner(view=VIEW, event_bytes_max=100_000)
    streamed = accumulated(scanner.feed(stream(None, calls)) + scanner.ending)
    assert [LONG, LONG] == [answer["content"][0]["name"] for answer in (whole, streamed)]

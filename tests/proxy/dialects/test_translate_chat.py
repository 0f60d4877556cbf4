"""Anthropic's replies and streams as a chat client reads them: the same answer, whole or streamed, wherever chunks were cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.anthropic_messages import AnthropicMessages
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.translate_chat import ChatToMessages

TRANSLATION = ChatToMessages(AnthropicMessages(), now_s=lambda: 1_700_000_000.9)
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 7,
    "output_tokens": 20,
    "output_tokens_details": {"thinking_tokens": 5},
}
IN_CHAT = {
    "prompt_tokens": 117,
    "completion_tokens": 20,
    "total_tokens": 137,
    "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 7, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
}
Block = dict[str, Any]


def message(blocks: list[Block], stop_reason: str = "end_turn") -> dict[str, Any]:
    """A whole reply of Anthropic's."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
    }


def replied(blocks: list[Block], stop_reason: str = "end_turn") -> dict[str, Any]:
    """What the chat client gets for it."""
    return json.loads(TRANSLATION.reply(json.dumps(message(blocks, stop_reason)).encode(), alias="m"))


def event(kind: str, **fields: Any) -> bytes:
    """One event of Anthropic's stream."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def block_events(index: int, block: Block, piece: int) -> bytes:
    """A block as events whose deltas have so many characters."""
    kind = block["type"]
    empty = {
        **block,
        **{"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}.get(
            kind, {}
        ),
    }
    out = [event("content_block_start", index=index, content_block=empty)]
    if kind in ("text", "thinking"):
        pieces = [{"type": f"{kind}_delta", kind: part} for part in cut(block[kind], piece)]
        if kind == "thinking":
            pieces.append({"type": "signature_delta", "signature": block["signature"]})
    elif kind == "tool_use" and block["input"]:
        pieces = [
            {"type": "input_json_delta", "partial_json": part} for part in ["", *cut(json.dumps(block["input"]), piece)]
        ]
    else:
        pieces = []
    out += [event("content_block_delta", index=index, delta=delta) for delta in pieces]
    return b"".join([*out, event("content_block_stop", index=index)])


def cut(text: str, piece: int) -> list[str]:
    """The text in pieces."""
    return [text[start : start + piece] for start in range(0, len(text), piece)]


def stream(blocks: list[Block], *, stop_reason: str = "end_turn", piece: int = 3) -> bytes:
    """The same reply as a stream."""
    begin = {**message([]), "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    return b"".join(
        [
            event("message_start", message=begin),
            event("ping"),
            *(block_events(index, block, piece) for index, block in enumerate(blocks)),
            event("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage=USAGE),
            event("message_stop"),
        ]
    )


def scanned(data: bytes, *, chunk: int, include_usage: bool = True) -> tuple[bytes, Any]:
    """All bytes that the client gets of a stream cut into chunks, and the scanner at its end."""
    view = RequestView("m", stream=True, include_usage=include_usage)
    scanner = TRANSLATION.scanner(view=view, event_bytes_max=100_000)
    shown = b"".join(scanner.feed(data[start : start + chunk]) for start in range(0, len(data), chunk))
    return shown + scanner.finish() + scanner.ending, scanner


def accumulated(data: bytes) -> dict[str, Any]:
    """A chat stream put together as SDKs do it."""
    events = [part[6:] for part in data.split(b"\n\n") if part.startswith(b"data: ")]
    assert b"[DONE]" == events[-1]
    answer: dict[str, Any] = {"role": "", "content": "", "calls": [], "reasoning": "", "kept": []}
    for chunk in map(json.loads, events[:-1]):
        answer["id"], answer["model"], answer["created"] = chunk["id"], chunk["model"], chunk["created"]
        answer["usage"] = chunk.get("usage")
        for choice in chunk["choices"]:
            delta = choice["delta"]
            answer["role"] += delta.get("role", "")
            answer["content"] += delta.get("content", "")
            answer["reasoning"] += delta.get("reasoning_content", "")
            for block in delta.get("thinking_blocks", ()):
                assert len(answer["kept"]) == block.pop("index"), "OpenAI's SDK asks where a part of a list belongs"
                answer["kept"].append(block)
            answer["finish_reason"] = choice["finish_reason"]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(answer["calls"]):
                    answer["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                answer["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return answer


def as_accumulated(reply: dict[str, Any]) -> dict[str, Any]:
    """A whole chat reply in the same form."""
    choice = reply["choices"][0]
    said = choice["message"]
    return {
        "role": said["role"],
        "content": said["content"] or "",
        "calls": [{"id": call["id"], **call["function"]} for call in said.get("tool_calls", ())],
        "reasoning": said.get("reasoning_content", ""),
        "kept": said.get("thinking_blocks", []),
        "id": reply["id"],
        "model": reply["model"],
        "created": reply["created"],
        "usage": reply["usage"],
        "finish_reason": choice["finish_reason"],
    }


words = st.text(max_size=12)
block_kinds = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, words),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "sig"}, words),
    st.just({"type": "redacted_thinking", "data": "zzz"}),
    st.builds(
        lambda name, given: {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": given},
        st.sampled_from(["add", "sub"]),
        st.dictionaries(words, st.one_of(st.integers(), words, st.lists(words, max_size=2)), max_size=2),
    ),
)


def test_a_reply_with_text_alone() -> None:
    """Every field that a chat client looks for."""
    assert {
        "id": "chatcmpl-01",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-haiku-4-5",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": IN_CHAT,
    } == replied([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}])


def test_a_reply_with_calls_has_no_content() -> None:
    """As OpenAI's own: `content` is null, and arguments are a text."""
    choice = replied([{"type": "tool_use", "id": "t", "name": "f", "input": {}}], "tool_use")["choices"][0]
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]} == choice["message"]
    assert "tool_calls" == choice["finish_reason"]


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("a_new_one", "stop"),
    ],
)
def test_stop_reasons(stop_reason: str, expected: str) -> None:
    """Each has its like; one that is new counts as an ordinary end."""
    blocks = [{"type": "text", "text": "x"}]
    assert expected == replied(blocks, stop_reason)["choices"][0]["finish_reason"]
    shown, _ = scanned(stream(blocks, stop_reason=stop_reason), chunk=50)
    assert expected.encode() in shown


@settings(max_examples=60, deadline=None)
@given(st.lists(block_kinds, max_size=5), st.integers(1, 9), st.integers(1, 400))
def test_a_stream_comes_to_the_same_answer_wherever_it_is_cut(blocks: list[Block], piece: int, chunk: int) -> None:
    """Text, thinking and calls in any order: the client accumulates what it would have got whole, with the same usage."""
    data = stream(blocks, piece=piece)
    shown, scanner = scanned(data, chunk=chunk)
    whole = as_accumulated(replied(blocks))
    found = accumulated(shown)
    for one, other in zip(whole["calls"], found["calls"], strict=True):
        one["arguments"], other["arguments"] = json.loads(one["arguments"]), json.loads(other["arguments"])
    assert whole == found
    assert scanned(data, chunk=len(data))[0] == shown
    assert Tokens(input=10, cache_read=100, cache_write=7, output=15, reasoning=5) == scanner.tokens
    assert scanner.done
    assert "stop" == scanner.finish_reason


def test_a_client_that_did_not_ask_for_usage_gets_none() -> None:
    """But the call is metered all the same."""
    shown, scanner = scanned(stream([{"type": "text", "text": "x"}]), chunk=1000, include_usage=False)
    assert b"usage" not in shown
    assert 137 == scanner.tokens.total


def test_pings_keep_the_connection_alive_as_comments() -> None:
    """A chat client ignores them, but its stall detection does not."""
    shown, _ = scanned(stream([{"type": "text", "text": "x"}]), chunk=1000)
    assert b": ping\n\n" in shown


def test_nothing_before_the_first_content_commits_the_stream() -> None:
    """The start of a message could still be tried elsewhere."""
    view = RequestView("m", stream=True)
    scanner = TRANSLATION.scanner(view=view, event_bytes_max=1000)
    scanner.feed(event("message_start", message=message([])))
    scanner.feed(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    assert not scanner.content_seen
    scanner.feed(event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"}))
    assert scanner.content_seen


def test_a_tool_of_anthropics_own_is_passed_over() -> None:
    """No client of OpenAI's knows such a block, nor asked for one."""
    blocks = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "x"}]
    assert "x" == accumulated(scanned(stream(blocks), chunk=1000)[0])["content"]
    assert "x" == replied(blocks)["choices"][0]["message"]["content"]


def test_an_error_inside_the_stream_is_one_in_the_clients_words() -> None:
    """What came before it stays; nothing follows."""
    data = event("message_start", message=message([])) + event(
        "error", error={"type": "overloaded_error", "message": "Overloaded"}
    )
    view = RequestView("m", stream=True)
    scanner = TRANSLATION.scanner(view=view, event_bytes_max=10_000)
    scanner.feed(data)
    assert scanner.error_event.endswith(b"\n\n")
    error = json.loads(scanner.error_event[6:])["error"]
    assert {"message": "Overloaded", "type": "server_error", "param": None, "code": "overloaded"} == error
    assert not scanner.done


@pytest.mark.parametrize(
    "data",
    [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"}),
        event("message_start", message=message([])) * 2,
        b"data: {\n\n",
    ],
)
def test_a_stream_out_of_order_is_malformed(data: bytes) -> None:
    """It ends as a try that failed, not as half an answer."""
    scanner = TRANSLATION.scanner(view=RequestView("m", stream=True), event_bytes_max=10_000)
    with pytest.raises(Malformed):
        scanner.feed(data)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"content":1}', b"{" * 10])
def test_a_reply_that_is_none_is_malformed(body: bytes) -> None:
    """It ends as a try that failed."""
    with pytest.raises(Malformed):
        TRANSLATION.reply(body, alias="m")

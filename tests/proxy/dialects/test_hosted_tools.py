"""What a provider's own tools did, as answers and streams say it: the same count in both, wherever a stream is cut, and never from elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.anthropic_stream import MessagesScanner
from proxy.dialects.hosted_tools import CALLS_MAX, always_searches, used_in
from proxy.dialects.responses_stream import ResponsesScanner

Said = dict[str, Any]
USAGE = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
SEARCH: Said = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
FILES: Said = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["a"], "results": None}
PICTURE: Said = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="}
TEXT: Said = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": '"file_search_call"'}]}


def code(container: str) -> Said:
    """Code that ran."""
    return {"type": "code_interpreter_call", "id": "ci_1", "container_id": container, "code": "1", "outputs": None}


def shell(environment: Said | None) -> Said:
    """Commands that ran."""
    return {
        "type": "shell_call",
        "id": "sh_1",
        "call_id": "c",
        "action": {"commands": ["ls"]},
        "environment": environment,
    }


def response(*output: Any, **more: Any) -> bytes:
    """A whole response."""
    return json.dumps(
        {"id": "resp_1", "object": "response", "status": "completed", "output": output, "usage": USAGE} | more
    ).encode()


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ({}, response(TEXT)),
        ({"search": 2}, response(SEARCH, SEARCH, SEARCH | {"action": {"type": "open_page"}}, TEXT)),
        ({"search": 1}, response(SEARCH, SEARCH, tool_usage={"web_search": {"num_requests": 1}})),
        ({"search": 1}, response(SEARCH | {"action": None}, tool_usage={"web_search": {"num_requests": -1}})),
        ({"search": 1}, response(SEARCH | {"action": ["a", "new", "form"]}, TEXT)),
        ({"file_search": 1}, response(FILES | {"container_id": 7})),  # in a form that nobody knows, and billed all the same
        ({"file_search": 3, "picture": 1}, response(FILES, FILES, PICTURE, FILES)),
        ({"container": 1}, response(code("c1"), code("c1"))),
        ({"container": 2}, response(code("c1"), code("c2"))),
        ({"container": 8}, response(code("c1"), code("c2"), tools=[{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}])),
        ({"container": 1}, response(code("c1"), tools=[{"type": "code_interpreter", "container": "c1"}, {"type": "function", "name": "f"}])),
        ({"container": 1}, response(code("c1"), shell({"type": "container_reference", "container_id": "c1"}))),
        ({}, response(shell({"type": "local"}), shell(None))),
        ({}, response("web_search_call", 7, None)),
        ({}, b'{"output":"web_search_call","type":"web_search_call"}'),
        ({}, b'{"output":[{"type":"web_search_call"}'),
        ({}, b"[" * 100_000 + b'"web_search_call"'),
        ({"search": CALLS_MAX}, response(*[{"type": "web_search_call"}] * (CALLS_MAX + 1))),
        ({"search": 4}, json.dumps({"usage": {"server_tool_use": {"web_search_requests": 4, "web_fetch_requests": 9}}}).encode()),
        ({"container": 1}, json.dumps({"usage": {"server_tool_use": {"code_execution_requests": 3}}}).encode()),
        ({"container": 1}, json.dumps({"container": {"id": "c", "expires_at": "x"}, "usage": {"server_tool_use": None}}).encode()),
        ({}, json.dumps({"content": [{"text": '"web_search_requests": 3'}], "web_search_requests": 3}).encode()),
        ({"search": 2}, json.dumps({"usage": {"prompt_tokens_details": {"web_search_requests": 2}}}).encode()),
    ],
)  # fmt: skip
def test_what_an_answer_says(expected: dict[str, int], answer: bytes) -> None:
    """Only the protocol's own places count; what makes no sense is not counted, what is new in form is."""
    assert expected == dict(used_in(answer))


@pytest.mark.parametrize(
    ("expected", "use"),
    [
        ({"search": -1}, {"web_search_requests": "3"}),
        ({"search": -1}, {"web_search_requests": -4}),
        ({"search": -1}, {"web_search_requests": 1.5}),
        ({"search": -1}, {"web_search_requests": CALLS_MAX + 1}),
        ({"search": -1}, {"web_search_requests": 10**40}),
        ({"search": -1}, {"web_search_requests": True}),
        ({"search": -1}, {"web_search_requests": {}}),
        ({"search": -1}, {"web_search_requests": []}),
        ({"search": -1}, "3"),
        ({"search": -1}, 3),
        ({"search": -1}, [{"web_search_requests": 3}]),
        ({"search": -1, "container": 1}, {"web_search_requests": "3", "code_execution_requests": 2}),
        ({"search": 3, "container": -1}, {"web_search_requests": 3, "code_execution_requests": "2"}),
        ({"container": -1}, {"web_search_requests": None, "code_execution_requests": -1}),
        ({}, {"web_fetch_requests": "3", "new_tool_requests": []}),  # of these none is billed
        ({}, {"web_search_requests": None}),
        ({}, {}),
        ({}, None),
    ],
)
def test_a_count_that_cannot_be_read_is_a_guess_and_not_free(expected: dict[str, int], use: Any) -> None:
    """At least one, marked by its sign, in an answer as in its stream; also where it stands beside the tokens of a chat."""
    usage = {"input_tokens": 9, "output_tokens": 3, "server_tool_use": use}
    assert expected == dict(used_in(json.dumps({"usage": usage}).encode()))
    scanner = MessagesScanner(100_000)
    scanner.feed(
        events({"type": "message_start", "message": {"usage": usage}}, {"type": "message_delta", "usage": usage})
    )
    assert expected == dict(scanner.used)
    if isinstance(use, dict):
        chat = json.dumps({"usage": {"prompt_tokens": 9, "prompt_tokens_details": use}}).encode()
        assert {kind: count for kind, count in expected.items() if kind == "search"} == dict(used_in(chat))


def test_a_guess_is_as_many_as_were_seen() -> None:
    """Results of searches in the stream; a count that can be read beside one that cannot; what a response lists needs no guess."""
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    scanner = MessagesScanner(100_000)
    scanner.feed(
        events(
            {"type": "message_start", "message": {"usage": {"input_tokens": 9}}},
            {"type": "content_block_start", "index": 0, "content_block": found},
            {"type": "content_block_start", "index": 1, "content_block": found},
            {"type": "message_delta", "usage": {"output_tokens": 3, "server_tool_use": {"web_search_requests": "2"}}},
            {"type": "message_delta", "usage": {"output_tokens": 4, "server_tool_use": None}},
        )
    )
    assert {"search": -2} == dict(scanner.used)
    details = {"server_tool_use": {"web_search_requests": 4}, "prompt_tokens_details": {"web_search_requests": "4"}}
    assert {"search": 4} == dict(used_in(json.dumps({"usage": details}).encode()))
    odd = {"web_search": {"num_requests": "2"}}
    assert {"search": 2} == dict(used_in(response(SEARCH, SEARCH, tool_usage=odd)))
    assert {"search": -1} == dict(used_in(response(TEXT, tool_usage=odd)))


@pytest.mark.parametrize(
    ("expected", "model"),
    [
        (True, "gpt-4o-search-preview"),
        (True, "gpt-4o-mini-search-preview-2025-03-11"),
        (True, "azure/gpt-5-search-api"),
        (False, "gpt-4o"),
        (False, "o3-deep-research"),
        (False, "my-search-previewer"),
    ],
)
def test_models_that_search_for_every_answer(expected: bool, model: str) -> None:
    """Their name tells."""
    assert expected is always_searches(model)


ITEMS = st.lists(st.sampled_from([SEARCH, FILES, PICTURE, TEXT, code("c1"), code("c2")]), max_size=6)


def events(*documents: Said) -> bytes:
    """A stream of them."""
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in documents)


@given(output=ITEMS, data=st.data())
def test_a_streamed_response_says_the_same(output: list[Said], data: st.DataObject) -> None:
    """Its last event counts, however it is cut; before it, what was seen of calls is known already."""
    whole = response(*output)
    done = [
        {"type": f"response.{item['type']}.completed", "item_id": item["id"]} for item in output if item is not TEXT
    ]
    kind = data.draw(st.sampled_from(["completed", "incomplete", "failed"]))
    before = events(
        {"type": "response.created", "response": {}}, {"type": "response.output_text.delta", "delta": "a"}, *done
    )
    stream = before + events({"type": f"response.{kind}", "response": json.loads(whole)})
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=5)))
    scanner = ResponsesScanner(event_bytes_max=100_000)
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        scanner.feed(stream[begin:end])
    assert dict(used_in(whole)) == dict(scanner.used)
    broken = ResponsesScanner(event_bytes_max=100_000)
    broken.feed(before)
    expected = dict(used_in(whole))
    assert expected | ({"container": 1} if "container" in expected else {}) == dict(broken.used)


def test_what_was_billed_before_is_not_counted_again() -> None:
    """A stream of a response that somebody reads a second time."""
    scanner = ResponsesScanner(event_bytes_max=100_000, free=True)
    scanner.feed(
        events(
            {"type": "response.web_search_call.completed"},
            {"type": "response.completed", "response": json.loads(response(SEARCH))},
        )
    )
    assert () == scanner.used


@given(searches=st.integers(0, 50), ran=st.booleans(), at_start=st.booleans(), data=st.data())
def test_a_streamed_message_says_the_same(searches: int, ran: bool, at_start: bool, data: st.DataObject) -> None:
    """Searches stand in the last usage, the container where the message begins or ends; counts are cumulative, not to be added."""
    container = {"id": "c", "expires_at": "x"} if ran else None
    use = {"server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 2}}
    usage = {"input_tokens": 9, "output_tokens": 3}
    whole = json.dumps({"type": "message", "container": container, "usage": usage | use}).encode()
    first = {"usage": usage | (use if at_start else {}), "container": container if at_start else None}
    stream = events(
        {"type": "message_start", "message": first},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "container": container},
            "usage": {"output_tokens": 3} | use,
        },
        {"type": "message_stop"},
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=5)))
    scanner = MessagesScanner(100_000)
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        scanner.feed(stream[begin:end])
    expected = {kind: count for kind, count in {"search": searches, "container": int(ran)}.items() if count}
    assert expected == dict(scanner.used) == dict(used_in(whole))

"""Anthropic's requests, usage and errors: what is read, and that nothing else is touched."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects import anthropic
from proxy.dialects.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from proxy.dialects.dialect import Malformed
from proxy.view import read_view
from tests.proxy.anthropic_fakes import MESSAGE_STOP, USAGE, message, sent_event, start, stop, text_block

COUNTS = st.integers(0, 10_000_000)
MESSAGES = AnthropicMessages()


@st.composite
def usages(draw: st.DrawFn) -> dict[str, object]:
    """A usage as Anthropic or something that speaks like it reports it."""
    five, hour, output = draw(COUNTS), draw(COUNTS), draw(COUNTS)
    usage: dict[str, object] = {"input_tokens": draw(COUNTS), "output_tokens": output}
    if draw(st.booleans()):
        usage["cache_read_input_tokens"] = draw(COUNTS | st.none())
    written = draw(st.sampled_from(["none", "sum", "parts", "both"]))
    if written in ("sum", "both"):
        usage["cache_creation_input_tokens"] = five + hour
    if written in ("parts", "both"):
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    if draw(st.booleans()):
        usage["output_tokens_details"] = {"thinking_tokens": draw(st.integers(0, output))}
    return usage


def total_of(usage: dict[str, object]) -> int:
    """All tokens that the provider says it bills."""
    parts = usage.get("cache_creation") or {}
    assert isinstance(parts, dict)
    written = usage.get("cache_creation_input_tokens", sum(parts.values()))
    given = (usage["input_tokens"], usage.get("cache_read_input_tokens") or 0, written)
    counts = [count for count in (*given, usage["output_tokens"]) if isinstance(count, int)]
    return sum(counts) if any(given) else 0  # an answer to nothing is no usage


def scanned(stream: bytes) -> tuple[Tokens | None, str]:
    """What a whole stream says."""
    scanner = MESSAGES.scanner(view=read_view("messages", request()), event_bytes_max=100_000)
    scanner.feed(stream)
    assert scanner.done
    return scanner.tokens, scanner.finish_reason


def request(**more: object) -> bytes:
    """A request's body."""
    return json.dumps({"model": "claude", "max_tokens": 20, "messages": []} | more).encode()


@given(usages())
def test_the_kinds_sum_to_the_providers_total_streamed_or_not(usage: dict[str, object]) -> None:
    """No token is lost or counted twice, wherever in a stream the usage comes; and both ways say the same."""
    whole, reason = MESSAGES.read_reply(message(usage=usage))
    assert total_of(usage) == (NO_TOKENS if whole is None else whole).total
    at_start = {"output_tokens": 1} if usage["output_tokens"] else {}
    split = start(usage | at_start) + text_block("a") + stop({"output_tokens": usage["output_tokens"]} | {
        name: value for name, value in usage.items() if name == "output_tokens_details"
    }) + MESSAGE_STOP  # fmt: skip
    assert (whole, reason) == scanned(split)
    at_end = start({"input_tokens": 0, "output_tokens": 0}) + text_block("a") + stop(usage) + MESSAGE_STOP
    assert (whole, reason) == scanned(at_end)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"output_tokens": 3},
        {"input_tokens": 0, "output_tokens": 3},
        {"input_tokens": -9, "output_tokens": 3},
        {"input_tokens": "9", "output_tokens": 3},
        {"input_tokens": 9.5, "output_tokens": 3},
        {"input_tokens": 10**30, "output_tokens": 3},
        {"input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": -1}},
        [],
    ],
)
def test_a_usage_that_makes_no_sense_is_none(usage: object) -> None:
    """Whole or streamed: the answer is served, and what it used is estimated."""
    body = json.dumps({"type": "message", "stop_reason": "end_turn", "usage": usage}).encode()
    assert (None, "end_turn") == MESSAGES.read_reply(body)
    first = sent_event("message_start", message={"usage": usage})
    assert (None, "end_turn") == scanned(first + text_block("a") + stop() + MESSAGE_STOP)


def test_cache_tokens_by_how_long_they_are_kept() -> None:
    """Read, written for five minutes, written for an hour; `input_tokens` holds none of them."""
    expected = Tokens(input=9, cache_read=4, cache_write=5, cache_write_1h=2, output=3)
    assert (expected, "end_turn") == MESSAGES.read_reply(message(usage=USAGE))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        # as Qwen and Kimi have it: at first all is input, at the end the caches are told apart
        (
            {"input_tokens": 8834},
            {"input_tokens": 18, "cache_read_input_tokens": 8831, "cache_creation_input_tokens": 0},
            Tokens(input=18, cache_read=8831, output=3),
        ),
        ({"input_tokens": 90}, {"input_tokens": 0, "cache_read_input_tokens": 90}, Tokens(cache_read=90, output=3)),
        # the end repeats, adds to, or says nothing of the input
        (USAGE, USAGE, Tokens(input=9, cache_read=4, cache_write=5, cache_write_1h=2, output=3)),
        (USAGE, {"input_tokens": 20}, Tokens(input=20, cache_read=4, cache_write=5, cache_write_1h=2, output=3)),
        (
            USAGE,
            {"input_tokens": 9, "cache_creation_input_tokens": 11},
            Tokens(input=9, cache_read=4, cache_write=9, cache_write_1h=2, output=3),
        ),
        (
            USAGE,
            {"input_tokens": 9, "cache_creation_input_tokens": 6},
            Tokens(input=9, cache_read=4, cache_write=6, output=3),
        ),
        (USAGE, {}, Tokens(input=9, cache_read=4, cache_write=5, cache_write_1h=2, output=3)),
        # or is filled up with zeros
        (
            USAGE,
            {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0},
            Tokens(input=9, cache_read=4, cache_write=5, cache_write_1h=2, output=3),
        ),
        ({"input_tokens": 0}, {"input_tokens": 9}, Tokens(input=9, output=3)),
    ],
)
def test_the_last_report_of_the_input_counts(
    first: dict[str, object], last: dict[str, object], expected: Tokens
) -> None:
    """No token that a prompt cache gave is billed twice."""
    events = start(first) + text_block("x") + stop(last | {"output_tokens": 3}) + MESSAGE_STOP
    assert expected == scanned(events)[0]


@pytest.mark.parametrize(
    ("says", "param", "body"),
    [
        ("`max_tokens` is missing", "max_tokens", {"model": "m", "messages": []}),
        ("`model` is missing", "model", {"max_tokens": 1, "messages": []}),
        ("`model` is empty", "model", {"model": "", "max_tokens": 1, "messages": []}),
        ("`messages` must be an array", "messages", {"model": "m", "max_tokens": 1, "messages": "hi"}),
        ("`max_tokens` must be between", "max_tokens", {"model": "m", "max_tokens": -1, "messages": []}),
        ("the body must be a JSON object", None, [1]),
        ("`max_tokens`: Expected `int`", "max_tokens", {"model": "m", "max_tokens": "9", "messages": []}),
    ],
)
def test_a_malformed_request_says_what_to_correct(says: str, param: str | None, body: object) -> None:
    """The field at fault is named."""
    with pytest.raises(Malformed, match=says) as refused:
        read_view("messages", json.dumps(body).encode())
    assert param == refused.value.param


def test_only_the_models_name_changes() -> None:
    """Every other value keeps its bytes and its place: `system`, unknown fields, numbers as they were written."""
    system = b'[ {"type":"text", "text":"a\\u0041", "cache_control":{"type":"ephemeral"}} ,{"text":"b","type":"text"}]'
    body = b'{"system":%b,"model":"x","new_field":{"b":1.0,"a":2},"max_tokens":20,"messages":[ 1 ]}' % system
    view = read_view("messages", body)
    rewritten = MESSAGES.rewritten(body, view=view, model="claude-1", output_ceiling=None)
    expected = b'{"system":%b,"model":"claude-1","new_field":{"b":1.0,"a":2},"max_tokens":20,"messages":[ 1 ]}' % system
    assert expected == rewritten


def test_the_view_of_a_request() -> None:
    """Ceiling, stream, end user, images."""
    image = {"type": "image", "source": {"type": "url", "url": "https://h/i.png"}}
    body = request(stream=True, metadata={"user_id": "u"}, messages=[{"role": "user", "content": [image]}])
    view = read_view("messages", body)
    assert ("claude", True, 20, "u", 1) == (
        view.model,
        view.stream,
        view.max_output_tokens,
        view.user,
        view.image_parts,
    )


@pytest.mark.parametrize("metadata", [None, [], "x", {"user_id": None}, {"user_id": ["x"]}, {"other": "x"}])
def test_odd_metadata_only_labels(metadata: object) -> None:
    """Whatever is no text is left out; whether the request is a good one is the upstream's to say."""
    assert "" == read_view("messages", request(metadata=metadata)).user


def test_counting_tokens_is_free() -> None:
    """No ceiling is asked for, nothing is reserved, and its answer is no usage."""
    dialect = AnthropicCountTokens()
    view = dialect.read_view(b'{"model":"m","messages":[]}')
    assert (True, 0) == (view.free, view.max_output_tokens)
    assert (NO_TOKENS, "") == dialect.read_reply(b'{"input_tokens":2095}')
    with pytest.raises(Malformed):
        dialect.read_reply(b'{"tokens":1}')


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (("overloaded_error", "busy"), b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'),
        (("", "no"), b'{"error":"no"}'),
        (("", ""), b"<html>"),
        (("", ""), b"{}"),
    ],
)
def test_errors_are_read(expected: tuple[str, str], body: bytes) -> None:
    """Type and message, or nothing."""
    assert expected == anthropic.read_error(body)


def test_a_reply_that_is_none_is_malformed() -> None:
    """A body that is not JSON of the expected kind is refused; one without usage says None."""
    with pytest.raises(Malformed):
        MESSAGES.read_reply(b"<html>")
    assert (None, "end_turn") == MESSAGES.read_reply(message(usage={}))
    assert msgspec.json.decode(message(usage={})) is not None

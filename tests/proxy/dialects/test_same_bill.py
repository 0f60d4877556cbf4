"""A call costs the same streamed or not: for each protocol, any usage, however its stream reports it and wherever that is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import TOKEN_KINDS, Price, cost_nanousd
from proxy.dialects.dialect import RequestView
from proxy.dialects.operations import dialect_of

Said = dict[str, Any]
PRICE = Price(
    input=2_000_003, output=8_000_009, cache_read=200_003, cache_write=2_500_007, cache_write_1h=4_000_037, reasoning=9_000_011,
    audio_input=40_000_003, audio_output=80_000_023, image_input=5_000_011, image_output=30_000_001,
)  # fmt: skip
COUNT = st.integers(0, 5_000)
PART = st.one_of(st.none(), st.integers(0, 3_000))


def event(document: Said) -> bytes:
    """One event, named by its type if it has one."""
    name = f"event: {document['type']}\n" if "type" in document else ""
    return f"{name}data: {json.dumps(document)}\n\n".encode()


@st.composite
def chats(draw: st.DrawFn, *, text: bool = False) -> tuple[bytes, bytes, int]:
    """A whole answer, the same as a stream, and the total that it reports: OpenAI's chats, or with `text` its completions."""
    given_, made = draw(COUNT), draw(COUNT.map(lambda count: count + 1))
    usage: Said = {"prompt_tokens": given_, "completion_tokens": made, "total_tokens": given_ + made}
    usage["prompt_tokens_details"] = {
        name: draw(PART) for name in ("cached_tokens", "cache_write_tokens", "audio_tokens")
    }
    usage["prompt_tokens_details"]["cached_tokens_details"] = {"audio_tokens": draw(PART)}
    usage["prompt_tokens_details"]["cache_creation_token_details"] = {"ephemeral_1h_input_tokens": draw(PART)}
    names = ("reasoning_tokens", "audio_tokens", "image_tokens")
    usage["completion_tokens_details"] = {name: draw(PART) for name in names}
    content: Said = {"text": "Hi"} if text else {"message": {"role": "assistant", "content": "Hi"}}
    piece: Said = {"text": "Hi"} if text else {"delta": {"content": "Hi"}}
    whole = {"choices": [{"index": 0, "finish_reason": "stop", **content}], "usage": usage}
    begun = {"choices": [{"index": 0, "finish_reason": None, **piece}], "usage": None}
    ended: Said = {"choices": [{"index": 0, "finish_reason": "stop", **({"text": ""} if text else {"delta": {}})}]}
    if draw(st.booleans()):  # some report it with the last choice, some behind it, some again and again
        stream = [begun, {**ended, "usage": usage}]
    else:
        stream = [begun, {**ended, "usage": draw(st.sampled_from([None, usage]))}, {"choices": [], "usage": usage}]
    return json.dumps(whole).encode(), b"".join(map(event, stream)) + b"data: [DONE]\n\n", given_ + made


def iteration(kind: str, given_: int, made: int, read: int, five: int, hour: int) -> Said:
    """One run of the model; only those of type `message` are in the sums."""
    kept = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    counts = {"input_tokens": given_, "output_tokens": made, "cache_read_input_tokens": read}
    return {"type": kind, **counts, "cache_creation_input_tokens": five + hour, "cache_creation": kept}


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """The same of Anthropic's messages, whose stream says part of its usage at the start, part or all of it at the end."""
    five, hour = draw(COUNT), draw(COUNT)
    final: Said = {
        "input_tokens": draw(COUNT),
        "output_tokens": draw(COUNT) + 1,
        "cache_read_input_tokens": draw(COUNT),
    }
    final["input_tokens"] += not (final["input_tokens"] + final["cache_read_input_tokens"] + five + hour)
    final["cache_creation_input_tokens"] = five + hour
    final["cache_creation"] = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    final["output_tokens_details"] = {"thinking_tokens": draw(st.integers(0, final["output_tokens"]))}
    runs = draw(
        st.lists(st.tuples(st.sampled_from(["message", "compaction", "advisor_message"]), *[COUNT] * 5), max_size=3)
    )
    if runs:
        final["iterations"] = [iteration(*run) for run in runs]
    first = {**final, "output_tokens": draw(st.integers(0, final["output_tokens"]))}
    first.pop("iterations", None)
    del first["output_tokens_details"]
    last = {name: final[name] for name in ("output_tokens", "output_tokens_details", "iterations") if name in final}
    last = draw(st.sampled_from([last, final]))
    whole = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", "usage": final}
    stream: list[Said] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None, "usage": first}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        *draw(st.sampled_from([[], [{"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}]])),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last},
        {"type": "message_stop"},
    ]
    total = sum(final[name] for name in final if name.endswith("_tokens"))
    total += sum(sum(counts) for kind, *counts in runs if kind != "message")
    return json.dumps(whole).encode(), b"".join(map(event, stream)), total


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """The same of OpenAI's responses, which say it all in their last event."""
    given_, made = draw(COUNT), draw(COUNT.map(lambda count: count + 1))
    names = ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens")
    usage: Said = {"input_tokens": given_, "output_tokens": made, "total_tokens": given_ + made}
    usage["input_tokens_details"] = {name: draw(PART) for name in names}
    usage["output_tokens_details"] = {name: draw(PART) for name in ("reasoning_tokens", "audio_tokens", "image_tokens")}
    done: Said = {"id": "resp_1", "object": "response", "status": "completed", "usage": usage, "output": []}
    done["status"] = draw(st.sampled_from(["completed", "incomplete"]))
    stream: list[Said] = [
        {"type": "response.created", "response": {**done, "status": "in_progress", "usage": None}},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": f"response.{done['status']}", "response": done},
    ]
    return json.dumps(done).encode(), b"".join(map(event, stream)), given_ + made


ANSWERS = {"chat": chats(), "completions": chats(text=True), "messages": messages(), "responses": responses()}


@pytest.mark.parametrize("operation", list(ANSWERS))
@given(data=st.data())
def test_streamed_or_not(operation: str, data: st.DataObject) -> None:
    """The tokens by kind are the same and sum to the provider's own total, and so the cost is the same; cuts change no byte."""
    whole, stream, total = data.draw(ANSWERS[operation])
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    dialect = dialect_of(operation)
    of_whole, reason = dialect.read_reply(whole)
    view = RequestView(model="m", stream=True, include_usage=data.draw(st.booleans()))
    scanner, at_once = (dialect.scanner(view=view, event_bytes_max=100_000) for _ in range(2))
    shown = [scanner.feed(stream[start:end]) for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert at_once.feed(stream) + at_once.finish() == b"".join(shown) + scanner.finish()
    assert at_once.ending == scanner.ending
    assert scanner.done
    assert of_whole is not None
    assert total == of_whole.total
    assert (of_whole, reason) == (scanner.tokens, scanner.finish_reason)
    assert scanner.tokens is not None
    assert cost_nanousd(of_whole, PRICE) == cost_nanousd(scanner.tokens, PRICE)


@given(data=st.data())
@pytest.mark.parametrize("operation", ["images_generations", "audio_transcriptions", "audio_speech", "moderations"])
def test_media_streamed_or_not(operation: str, data: st.DataObject) -> None:
    """Images and sound: the kinds of one answer, and of several that end one by one, sum to what the provider counts."""
    counted = data.draw(st.lists(st.tuples(COUNT, COUNT.map(lambda count: count + 1)), min_size=1, max_size=3))
    names = ("cached_tokens", "audio_tokens", "image_tokens", "text_tokens")
    usages: list[Said] = [
        {
            "input_tokens": given_,
            "output_tokens": made,
            "total_tokens": given_ + made,
            "input_tokens_details": {name: data.draw(PART) for name in names},
            "output_tokens_details": {name: data.draw(PART) for name in names},
        }
        for given_, made in counted
    ]
    stream = b"".join(
        event({"type": "image_generation.completed", "b64_json": "aGk=", "usage": usage}) for usage in usages
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=4)))
    dialect = dialect_of(operation)
    scanner = dialect.scanner(view=RequestView(model="m", stream=True), event_bytes_max=100_000)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        scanner.feed(stream[start:end])
    scanner.finish()
    wholes = [dialect.read_reply(json.dumps({"data": [], "usage": usage}).encode())[0] for usage in usages]
    assert scanner.tokens is not None
    assert all(whole is not None for whole in wholes)
    assert sum(given_ + made for given_, made in counted) == scanner.tokens.total
    for kind in TOKEN_KINDS:
        assert sum(getattr(whole, kind) for whole in wholes) == getattr(scanner.tokens, kind)


NONSENSE: list[Any] = [
    None, [], "many", 7, {}, -1, {"input_tokens": -9, "output_tokens": 3}, {"input_tokens": 9, "output_tokens": -3},
    {"prompt_tokens": -9, "completion_tokens": 3}, {"input_tokens": 9.5, "output_tokens": 1, "prompt_tokens": 9.5, "completion_tokens": 1},
    {"input_tokens": 10**30, "output_tokens": 1, "prompt_tokens": 10**30, "completion_tokens": 1},
    {"input_tokens": "9", "output_tokens": 1, "prompt_tokens": "9", "completion_tokens": 1},
]  # fmt: skip


@pytest.mark.parametrize("usage", NONSENSE, ids=str)
@pytest.mark.parametrize(
    "operation",
    [
        "chat",
        "completions",
        "responses",
        "messages",
        "embeddings",
        "images_generations",
        "audio_transcriptions",
        "audio_speech",
    ],
)
def test_a_usage_that_makes_no_sense_is_none(operation: str, usage: Any) -> None:
    """Missing, null, of another type, negative, of half a token or absurd: nothing is known, and nobody is billed by it."""
    document = {"choices": [], "content": [], "data": [], "output": [], "usage": usage}
    assert dialect_of(operation).read_reply(json.dumps(document).encode())[0] is None


@pytest.mark.parametrize("operation", ["chat", "completions", "responses", "messages"])
def test_parts_that_make_no_sense_change_no_sum(operation: str) -> None:
    """Parts below zero, or larger than their whole, are clamped: the two counts of the provider stand."""
    parts = {
        "cached_tokens": 10**12,
        "audio_tokens": -5,
        "cache_write_tokens": 7,
        "reasoning_tokens": 10**12,
        "image_tokens": -1,
    }
    chat = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": parts,
        "completion_tokens_details": parts,
    }
    own = {
        "input_tokens": 9,
        "output_tokens": 4,
        "input_tokens_details": parts,
        "output_tokens_details": {**parts, "thinking_tokens": 10**12},
    }
    usage = chat if operation in ("chat", "completions") else own
    tokens = dialect_of(operation).read_reply(json.dumps({"choices": [], "usage": usage}).encode())[0]
    assert tokens is not None
    assert (9, 4) == (tokens.total_input, tokens.total_output)
    assert min(getattr(tokens, kind) for kind in TOKEN_KINDS) >= 0

"""Event streams of responses: the same bytes and the same record wherever the network cuts them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import openai.types.responses
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects.dialect import Malformed, Scanner
from proxy.dialects.openai_media_stream import MediaScanner
from proxy.dialects.responses_stream import ResponsesScanner

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 15,
}
TOKENS = Tokens(input=5, cache_read=4, output=1, reasoning=5)


def event(kind: str, **more: object) -> bytes:
    """One event as OpenAI writes it."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 1} | more)}\n\n".encode()


def response(status: str, **more: object) -> dict[str, object]:
    """The document inside of a lifecycle event."""
    return {"id": "resp_1", "status": status, "error": None, "incomplete_details": None, "usage": None} | more


CREATED = event("response.created", response=response("in_progress"))
DELTA = event("response.output_text.delta", delta='an "error" about response.completed, [DONE] and usage')
COMPLETED = event("response.completed", response=response("completed", usage=USAGE))
INCOMPLETE = event(
    "response.incomplete",
    response=response("incomplete", usage=USAGE, incomplete_details={"reason": "max_output_tokens"}),
)
FAILED = event(
    "response.failed", response=response("failed", usage=USAGE, error={"code": "server_error", "message": "x"})
)
ERROR = event("error", code="rate_limit_exceeded", message="slow down", param=None)
COMMENT = b": keepalive\n\n"
ITEM = event("response.output_item.added", item={"type": "message"})

BODIES = st.lists(
    st.sampled_from([CREATED, ITEM, DELTA, COMMENT, event("response.refusal.delta", delta="no")]), max_size=8
)
ENDINGS = st.sampled_from(
    [COMPLETED, INCOMPLETE, FAILED, ERROR, b"", COMPLETED + b"data: [DONE]\n\n", COMPLETED.rstrip()]
)


def read(scanner: Scanner, chunks: list[bytes]) -> tuple[object, ...]:
    """Everything that comes out of a stream, and everything that is learned from it."""
    shown = b"".join(scanner.feed(chunk) for chunk in chunks) + scanner.finish()
    return (
        shown, scanner.ending, scanner.error_event, scanner.tokens, scanner.finish_reason, scanner.done, scanner.content_seen,
        scanner.events,
    )  # fmt: skip


@given(BODIES, ENDINGS, st.lists(st.integers(0, 4000), max_size=12), st.booleans())
def test_any_chunking_gives_the_same(parts: list[bytes], ending: bytes, cuts: list[int], crlf: bool) -> None:
    """Bytes out, usage, reason, end and error do not depend on where the stream was cut, nor on its line ends."""
    whole = b"".join(parts) + ending
    sent = whole.replace(b"\n", b"\r\n") if crlf else whole
    places = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    chunks = [sent[start:end] for start, end in pairwise(places)]
    expected = read(ResponsesScanner(event_bytes_max=10**6), [whole])
    assert expected == read(ResponsesScanner(event_bytes_max=10**6), chunks)
    shown, held, error = expected[:3]
    assert isinstance(shown, bytes)
    assert isinstance(held, bytes)
    assert isinstance(error, bytes)
    last = ending.removesuffix(b"data: [DONE]\n\n").rstrip()
    assert b"".join(parts) + (last + b"\n\n" if last else b"") == shown + held + error


@pytest.mark.parametrize(
    ("ending", "reason", "tokens", "failed"),
    [
        (COMPLETED, "completed", TOKENS, False),
        (INCOMPLETE, "max_output_tokens", TOKENS, False),
        (FAILED, "failed", TOKENS, True),
        (ERROR, "", None, True),
    ],
)
def test_each_way_to_end(ending: bytes, reason: str, tokens: Tokens | None, failed: bool) -> None:
    """The last event is held back, as the end or as the upstream's own error; what it says of usage counts in both."""
    scanner = ResponsesScanner(event_bytes_max=10**6)
    assert CREATED + DELTA == scanner.feed(CREATED + DELTA + ending)
    assert (reason, tokens, not failed) == (scanner.finish_reason, scanner.tokens, scanner.done)
    assert ending == (scanner.error_event if failed else scanner.ending)
    assert b"" == scanner.feed(DELTA)


def test_lifecycle_events_do_not_commit_the_call() -> None:
    """Until something comes that a client would show or act upon, the call can still be tried elsewhere."""
    scanner = ResponsesScanner(event_bytes_max=10**6)
    scanner.feed(CREATED + event("response.in_progress", response=response("in_progress")) + ITEM + COMMENT)
    assert not scanner.content_seen
    scanner.feed(event("response.function_call_arguments.delta", delta="{"))
    assert scanner.content_seen


def test_one_in_the_background_is_committed_at_once() -> None:
    """The upstream has it already: another try would make another one."""
    scanner = ResponsesScanner(event_bytes_max=10**6, committed=True)
    scanner.feed(event("response.queued", response=response("queued")))
    assert scanner.content_seen


def test_a_stream_that_is_taken_up_again_bills_nothing() -> None:
    """What it reports was billed when it was made."""
    scanner = ResponsesScanner(event_bytes_max=10**6, free=True)
    scanner.feed(DELTA + COMPLETED)
    assert (NO_TOKENS, True) == (scanner.tokens, scanner.done)


def test_every_event_of_the_vendors_own_list_goes_through() -> None:
    """Each kind that OpenAI's library knows goes on as it came, or is one of the ends."""
    folder = Path(openai.types.responses.__file__).parent
    kinds = {
        kind
        for path in folder.glob("response_*_event.py")
        for kind in re.findall(r'type: Literal\["((?:response\.|error)[^"]*)"\]', path.read_text())
    }
    assert len(kinds) > 40
    ends = {"response.completed", "response.incomplete", "response.failed", "error"}
    for kind in sorted(kinds - ends):
        scanner = ResponsesScanner(event_bytes_max=10**6)
        sent = event(kind, response=response("in_progress"))
        assert sent == scanner.feed(sent), kind
        assert (False, b"") == (scanner.done, scanner.error_event), kind
    assert ends <= kinds


@pytest.mark.parametrize("data", [b"data: {not json}\n\n", b"data: [1]\n\n", b"x" * 200])
def test_what_is_no_event_is_malformed(data: bytes) -> None:
    """An event that is not JSON, or has no end, is the upstream's fault."""
    with pytest.raises(Malformed):
        ResponsesScanner(event_bytes_max=100).feed(data)


PARTIAL = event("image_generation.partial_image", b64_json="AAAA")
DRAWN = event("image_generation.completed", b64_json="BB", usage={"input_tokens": 5, "output_tokens": 20})


@given(st.lists(st.sampled_from([PARTIAL, DRAWN, COMMENT]), max_size=6), st.lists(st.integers(0, 3000), max_size=8))
def test_media_streams_do_not_depend_on_their_cuts(parts: list[bytes], cuts: list[int]) -> None:
    """Every event goes on as it came; the usage of several pictures is added up; the last event is held to the end."""
    whole = b"".join(parts)
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    chunks = [whole[start:end] for start, end in pairwise(places)]
    expected = read(MediaScanner(event_bytes_max=10**6, output_kind="image_output"), [whole])
    assert expected == read(MediaScanner(event_bytes_max=10**6, output_kind="image_output"), chunks)
    drawn = parts.count(DRAWN)
    shown, held, _, tokens = expected[:4]
    assert isinstance(shown, bytes)
    assert isinstance(held, bytes)
    assert (Tokens(input=5 * drawn, image_output=20 * drawn) if drawn else None) == tokens
    assert sorted(parts) == sorted(item + b"\n\n" for item in (shown + held).split(b"\n\n")[:-1])

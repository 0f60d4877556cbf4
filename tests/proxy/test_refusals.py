"""Our own answers in the shape of the client's protocol."""

from __future__ import annotations

import json

import pytest

from proxy.dialects.operations import Protocol
from proxy.refusals import DENIED, TABLE, UNAVAILABLE, Refusal, error_event, refuse, shape

# Anthropic's closed set of types.
KINDS = {
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large", "rate_limit_error",
    "timeout_error", "api_error", "overloaded_error", "billing_error",
}  # fmt: skip


@pytest.mark.parametrize("refusal", TABLE, ids=[line.code for line in TABLE])
def test_every_refusal_has_both_shapes(refusal: Refusal) -> None:
    """OpenAI's by itself, Anthropic's with a type that its SDKs know; same message, and our code in either."""
    reply = refuse(refusal, "no")
    openais = json.loads(reply.body)["error"]
    shape(reply, Protocol.OPENAI, "call_1")
    assert openais == json.loads(reply.body)["error"]
    shape(reply, Protocol.ANTHROPIC, "call_1")
    theirs = json.loads(reply.body)
    assert ("error", "call_1", "no") == (theirs["type"], theirs["request_id"], theirs["error"]["message"])
    assert theirs["error"]["type"] in KINDS
    assert openais["code"].encode() == dict(reply.headers)[b"x-heph-error-code"]


def test_a_refusal_that_others_share_names_each_call_of_its_own() -> None:
    """Whoever joined a refused call hears its own id, once."""
    reply = refuse(UNAVAILABLE, "no", retry_after_s=1.0)
    shape(reply, Protocol.ANTHROPIC, "call_1")
    shape(reply, Protocol.ANTHROPIC, "call_2")
    assert "call_2" == json.loads(reply.body)["request_id"]
    assert [b"call_2"] == [value for name, value in reply.headers if name == b"request-id"]
    assert b"1" == dict(reply.headers)[b"retry-after"]


@pytest.mark.parametrize(
    ("protocol", "begins"),
    [
        (Protocol.OPENAI, b'data: {"error":'),
        (Protocol.RESPONSES, b'event: error\ndata: {"type":"error",'),
        (Protocol.ANTHROPIC, b'event: error\ndata: {"type":"error","error":'),
    ],
)
def test_inside_a_stream_it_is_an_event(protocol: Protocol, begins: bytes) -> None:
    """One whole event in the words of the client's protocol."""
    event = error_event(DENIED, "a\nb", protocol, "call_1")
    assert event.startswith(begins)
    assert event.endswith(b"\n\n")
    assert 1 == event.count(b"\n\n")

"""Tests of the service class: read where the protocols put it, and nowhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.service_class import may_ask_for_one, service_class_of


def event(document: dict[str, object]) -> bytes:
    """An event of a stream."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"service_tier":"flex","choices":[]}', "flex"),
        (b'{"service_tier":"default"}', ""),
        (b'{"usage":{"service_tier":"priority"}}', "priority"),
        (b'{"usage":{"service_tier":"standard"}}', ""),
        (b'{"service_tier":null,"usage":null}', ""),
        (b"{}", ""),
        (b'{"service_tier":7}', ""),
        (b'{"service_tier":"flex"', ""),
        (event({"service_tier": "flex"}) + b": ping\n\n", "flex"),
        (event({"service_tier": "auto"}) + event({"service_tier": "priority"}), "priority"),
        (event({"type": "message_start", "message": {"usage": {"service_tier": "batch"}}}), "batch"),
        (b"event: response.completed\n" + event({"response": {"service_tier": "flex"}}), "flex"),
        (b'{"service_tier":"fast","choices":[]}', "priority"),
        (b'{"usage":{"service_tier":"standard","speed":"fast"}}', "fast"),
        (b'{"usage":{"service_tier":"standard","speed":"standard","inference_geo":"us"}}', "us"),
        (b'{"usage":{"service_tier":"batch","speed":"fast","inference_geo":"us"}}', "batch+fast+us"),
        (b'{"usage":{"service_tier":"standard","speed":null,"inference_geo":"global"}}', ""),
        (
            event({"message": {"usage": {"service_tier": "standard", "speed": "fast", "inference_geo": "us"}}}),
            "fast+us",
        ),
        (b'{"metadata":{"service_tier":"batch"}}', ""),
        (b'{"message":{"content":{"service_tier":"batch"}}}', ""),
        (b'{"choices":[{"message":{"content":"{\\"service_tier\\":\\"batch\\"}"}}]}', ""),
    ],
)
def test_where_it_is_read(data: bytes, expected: str) -> None:
    """The protocols' own places count; what a client or a model wrote elsewhere in the reply does not."""
    assert expected == service_class_of(data)


@pytest.mark.parametrize(
    ("operation", "body", "expected"),
    [
        ("chat", b'{"service_tier":"flex"}', True),
        ("chat", b'{"speed":"fast"}', False),
        ("messages", b'{"speed":"fast"}', True),
        ("messages", b'{"inference_geo":"us"}', True),
        ("messages", b"{}", False),
    ],
)
def test_what_a_request_may_ask_for(operation: str, body: bytes, *, expected: bool) -> None:
    """Where it may be served in a dearer class, more is held against budgets."""
    assert expected == may_ask_for_one(operation, body)


@given(st.binary(max_size=100))
def test_any_bytes_have_a_class_or_none(data: bytes) -> None:
    """No bytes raise anything."""
    assert "" == service_class_of(b'{"service_tier"' + data) or b":" in data

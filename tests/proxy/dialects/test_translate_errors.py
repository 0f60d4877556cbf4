"""Errors of one protocol in the words of the other."""

from __future__ import annotations

import json

import pytest

from proxy.dialects.translate_errors import anthropic_error, anthropic_event, openai_error, openai_event


def theirs(kind: str, message: str = "no") -> bytes:
    """An error body of Anthropic's."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}).encode()


def ours(code: str | None, message: str = "no") -> bytes:
    """An error body of OpenAI's."""
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", (400, "invalid_request_error", None)),
        (401, "authentication_error", (401, "authentication_error", "invalid_api_key")),
        (402, "billing_error", (402, "insufficient_quota", "insufficient_quota")),
        (403, "permission_error", (403, "permission_error", None)),
        (404, "not_found_error", (404, "invalid_request_error", "model_not_found")),
        (413, "request_too_large", (413, "invalid_request_error", "request_too_large")),
        (429, "rate_limit_error", (429, "rate_limit_error", "rate_limit_exceeded")),
        (500, "api_error", (500, "server_error", None)),
        (504, "timeout_error", (504, "server_error", "timeout")),
        (529, "overloaded_error", (503, "server_error", "overloaded")),
        (418, "a_new_one", (418, "invalid_request_error", None)),
        (599, "a_new_one", (599, "server_error", None)),
    ],
)
def test_anthropics_errors_for_clients_of_openai(status: int, kind: str, expected: tuple[int, str, str | None]) -> None:
    """Status, type and code are what OpenAI's SDKs act upon."""
    found, body = openai_error(status, theirs(kind))
    error = json.loads(body)["error"]
    assert expected == (found, error["type"], error["code"])
    assert ("no", None) == (error["message"], error["param"])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, (400, "invalid_request_error")),
        (401, (401, "authentication_error")),
        (403, (403, "permission_error")),
        (404, (404, "not_found_error")),
        (413, (413, "request_too_large")),
        (422, (422, "invalid_request_error")),
        (429, (429, "rate_limit_error")),
        (500, (500, "api_error")),
        (503, (529, "overloaded_error")),
        (504, (504, "timeout_error")),
        (418, (418, "invalid_request_error")),
    ],
)
def test_openais_errors_for_clients_of_anthropic(status: int, expected: tuple[int, str]) -> None:
    """Status and type are what Anthropic's SDKs act upon."""
    found, body = anthropic_error(status, ours("x"))
    fields = json.loads(body)
    assert expected == (found, fields["error"]["type"])
    assert ("error", "no") == (fields["type"], fields["error"]["message"])


def test_a_prompt_that_is_too_long_says_so_in_both() -> None:
    """Agents make their conversation shorter when they read it."""
    _, body = openai_error(400, theirs("invalid_request_error", "prompt is too long: 5 tokens > 4 maximum"))
    assert "context_length_exceeded" == json.loads(body)["error"]["code"]
    _, body = anthropic_error(400, ours("context_length_exceeded", "5 tokens are more than 4"))
    assert "prompt is too long: 5 tokens are more than 4" == json.loads(body)["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":null}', b"[" * 100_000])
def test_a_body_that_says_nothing(body: bytes) -> None:
    """A gateway's page on the way still becomes an error with its status."""
    assert "the upstream answered with status 502" == json.loads(openai_error(502, body)[1])["error"]["message"]
    assert "the upstream answered with status 502" == json.loads(anthropic_error(502, body)[1])["error"]["message"]


def test_an_error_that_is_only_a_text_keeps_it() -> None:
    """Some servers write `{"error": "..."}`."""
    assert "out" == json.loads(openai_error(500, b'{"error":"out"}')[1])["error"]["message"]


def test_errors_inside_streams() -> None:
    """Each as an event of the client's protocol."""
    assert openai_event(theirs("rate_limit_error")).startswith(
        b'data: {"error":{"message":"no","type":"rate_limit_error"'
    )
    assert anthropic_event(ours("server_error")).startswith(b'event: error\ndata: {"error":{"type":"api_error"')

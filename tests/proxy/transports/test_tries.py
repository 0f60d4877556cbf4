"""What an upstream's refusal means for other models, and what the client hears in the end."""

from __future__ import annotations

import json

import pytest

from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.routing import FallbackKind
from controlplane.contract.snapshot import Deployment, Upstream
from proxy.call import Reply
from proxy.runtime import Candidate
from proxy.transports.attempt import AttemptFailed
from proxy.transports.tries import Tries, fallback_kind, given_up

UPSTREAM = Upstream(id="u", dialect="openai", base_url="http://localhost/v1")
CANDIDATE = Candidate(Deployment(id="u/m", upstream="u", model="m"), UPSTREAM, None)


def refusal(**error: object) -> Reply:
    """An upstream's final no."""
    return Reply(400, [], body=json.dumps({"error": error}).encode(), outcome=Outcome.UPSTREAM_REFUSED)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FallbackKind.CONTEXT_WINDOW, {"code": "context_length_exceeded", "message": "x"}),
        (
            FallbackKind.CONTEXT_WINDOW,
            {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8 maximum"},
        ),
        (
            FallbackKind.CONTEXT_WINDOW,
            {
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 9 + 1 > 8",
            },
        ),
        (FallbackKind.CONTEXT_WINDOW, {"type": "request_too_large", "message": "x"}),
        (FallbackKind.CONTEXT_WINDOW, {"message": "Input is too long for requested model."}),
        (
            FallbackKind.CONTEXT_WINDOW,
            {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)"},
        ),
        (FallbackKind.CONTENT_POLICY, {"code": "content_policy_violation", "message": "x"}),
        (FallbackKind.CONTENT_POLICY, {"code": "content_filter", "message": "x"}),
        (
            FallbackKind.CONTENT_POLICY,
            {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
        ),
        (None, {"code": "invalid_api_key", "message": "x"}),
        (None, {"type": "invalid_request_error", "code": 42, "message": "`temperature` must be at most 2"}),
        (None, {"message": None}),
    ],
)
def test_codes_and_words_of_refusals(kind: FallbackKind | None, error: dict[str, object]) -> None:
    """By code where a provider has one, by its words where it has none; anything else is the request's own fault."""
    assert kind == fallback_kind(refusal(**error))


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"error":"no"}', b'{"error":{"code":[1]}}', b"[" * 100_000])
def test_bodies_that_say_nothing(body: bytes) -> None:
    """Whatever an upstream sends, it is read or left."""
    assert fallback_kind(Reply(400, [], body=body, outcome=Outcome.UPSTREAM_REFUSED)) is None


def test_only_a_whole_answer_can_be_a_policys_refusal() -> None:
    """A stream has been seen by the client, and an error is no answer."""
    reply = Reply(200, [], body=b"{}")
    reply.finish_reason = "content_filter"
    assert FallbackKind.CONTENT_POLICY == fallback_kind(reply)
    reply.finish_reason = "stop"
    assert fallback_kind(reply) is None


def told(*errors: AttemptError, late: bool = False) -> tuple[int, str]:
    """Status and code that the client gets after these failures."""
    tries = Tries()
    for error in errors:
        tries.failed(CANDIDATE, AttemptFailed(error, "no"))
    reply = given_up("gpt", "call_1", tries, late=late)
    return reply.status, reply.error_code


@pytest.mark.parametrize(
    ("expected", "errors", "late"),
    [
        ((503, "unavailable"), (), False),
        ((502, "exhausted"), (AttemptError.STATUS_5XX,), False),
        ((504, "timed_out"), (AttemptError.STATUS_5XX,), True),
        ((504, "timed_out"), (AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.IDLE_TIMEOUT), False),
        ((502, "exhausted"), (AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.CONNECT), False),
        ((504, "timed_out"), (AttemptError.CONNECT, AttemptError.DEADLINE), False),
        ((503, "misconfigured"), (AttemptError.AUTH,), False),
    ],
)
def test_what_the_client_hears(expected: tuple[int, str], errors: tuple[AttemptError, ...], late: bool) -> None:
    """The kind of trouble decides, not the last try alone."""
    assert expected == told(*errors, late=late)


def test_open_breakers_say_why_and_until_when() -> None:
    """The first reason, and the soonest probe of all."""
    tries = Tries()
    tries.was_open("calls failed in a row, the last: connect", 20.0)
    tries.was_open("", 7.0)
    reply = given_up("gpt", "call_1", tries, late=False)
    assert (b"retry-after", b"7") in reply.headers
    assert b"failed in a row" in reply.body

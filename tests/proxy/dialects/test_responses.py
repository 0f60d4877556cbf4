"""What is read of a response's request, answer and error."""

from __future__ import annotations

import json

import msgspec
import pytest

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.responses import InputTokens, Responses
from proxy.dialects.responses_state import ID_CHARS_MAX, IDS_MAX, made_by

RESPONSES = Responses()


def body(**fields: object) -> bytes:
    """A request."""
    return json.dumps({"model": "m", "input": "hi"} | fields).encode()


def test_the_view_holds_what_decides() -> None:
    """Model, stream, ceiling, images, labels, and what the upstream keeps."""
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}] * 2}
    view = RESPONSES.read_view(
        body(input=[image], stream=True, max_output_tokens=7, safety_identifier="ann", metadata={"a": "b"}, store=False)
    )
    assert ("m", True, 7, 2) == (view.model, view.stream, view.max_output_tokens, view.image_parts)
    assert ("ann", {"a": "b"}) == (view.user, view.metadata)
    assert (False, False, ()) == (view.kept, view.background, view.continues)
    assert RESPONSES.read_view(body()).kept
    assert RESPONSES.read_view(body(store=False, background=True)).kept


def test_every_id_that_is_named_is_found() -> None:
    """By the field that names it; a message that carries its content names none."""
    view = RESPONSES.read_view(
        body(
            previous_response_id="resp_1",
            conversation={"id": "conv_1"},
            input=[
                {"type": "item_reference", "id": "msg_1"},
                {"id": "msg_2"},
                {"role": "assistant", "id": "msg_whole", "content": "x"},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "reasoning", "id": "rs_whole", "summary": [], "encrypted_content": "x"},
                {"type": "something_new", "id": "new_1"},
                {"type": "shell_call", "id": "sh_whole", "environment": {"container_id": "cntr_1"}},
                "not an object",
            ],
            tools=[
                {"type": "code_interpreter", "container": "cntr_2"},
                {"type": "code_interpreter", "container": {"type": "auto"}},
            ],
        )
    )
    assert (
        ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("input", "msg_1"), ("input", "msg_2"), ("input", "rs_1"),
        ("input", "new_1"), ("input", "cntr_1"), ("tools", "cntr_2"),
    ) == view.continues  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"previous_response_id": "x" * (ID_CHARS_MAX + 1)}, "previous_response_id"),
        ({"conversation": 7}, "conversation"),
        ({"conversation": {"id": None}}, "conversation"),
        ({"input": [{"id": f"msg_{n}"} for n in range(IDS_MAX + 1)]}, "input"),
    ],
)
def test_what_makes_no_sense_is_malformed(fields: dict[str, object], param: str) -> None:
    """The field at fault is named."""
    with pytest.raises(Malformed) as caught:
        RESPONSES.read_view(body(**fields))
    assert param == caught.value.param


def test_a_request_without_a_model_is_invalid() -> None:
    """As every other request."""
    with pytest.raises(msgspec.ValidationError):
        RESPONSES.read_view(b'{"input":"hi"}')


def test_only_what_must_change_is_written_anew() -> None:
    """The model and the ceiling are set; every other value keeps its own bytes unless it may name ids."""
    sent = b'{"model":"m","input":"1.50","temperature":1.50,"big":12345678901234567890123}'
    out = RESPONSES.rewritten(sent, view=RESPONSES.read_view(sent), model="other", output_ceiling=9)
    assert (
        b'{"model":"other","input":"1.50","temperature":1.50,"big":12345678901234567890123,"max_output_tokens":9}'
        == out
    )


def test_usage_and_reason_of_an_answer() -> None:
    """Cached and reasoning tokens are inside the counts; why an answer is incomplete is its reason."""
    usage = {
        "input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3},
    }  # fmt: skip
    whole = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "usage": usage}
    expected = (Tokens(input=6, cache_read=4, output=2, reasoning=3), "content_filter")
    assert expected == RESPONSES.read_reply(json.dumps(whole).encode())
    assert (None, "queued") == RESPONSES.read_reply(b'{"status":"queued","usage":null}')
    assert (Tokens(), "") == InputTokens().read_reply(b'{"object":"response.input_tokens","input_tokens":11}')
    with pytest.raises(Malformed):
        RESPONSES.read_reply(b"[]")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"error": {"message": "no", "code": "bad"}}, ("bad", "no")),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "slow"}, ("rate_limit_exceeded", "slow")),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "x"}}},
            ("server_error", "x"),
        ),
        ({"type": "response.failed", "response": {"error": None}}, ("", "")),
        ([], ("", "")),
    ],
)
def test_errors_wherever_they_are(error: object, expected: tuple[str, str]) -> None:
    """In a body, in an error event, in the event of a response that failed."""
    assert expected == RESPONSES.read_error(json.dumps(error).encode())


def test_what_an_answer_leaves_behind() -> None:
    """Its own id, those of its items, its containers and its conversation; what is not kept leaves only what is looked up all the same."""
    answer = {
        "id": "resp_1", "status": "completed", "conversation": {"id": "conv_1"},
        "output": [
            {"type": "message", "id": "msg_1"}, {"type": "reasoning", "id": "rs_1"},
            {"type": "code_interpreter_call", "id": "ci_1", "container_id": "cntr_1"},
        ],
    }  # fmt: skip
    raw = json.dumps(answer).encode()
    made = made_by(raw, kept=True)
    assert ("resp_1", "conv_1", "msg_1", "rs_1", "ci_1", "cntr_1") == made.ids
    assert ("resp_1", "completed") == (made.id, made.status)
    assert ("conv_1", "rs_1", "ci_1", "cntr_1") == made_by(raw, kept=False).ids
    assert made == made_by(json.dumps({"type": "response.completed", "response": answer}).encode(), kept=True)
    assert ("msg_9",) == made_by(b'{"object":"list","data":[{"id":"msg_9","type":"message"}]}', kept=True).ids
    assert () == made_by(b"nonsense", kept=True).ids

"""Files and batches: how results are cut into lines, and what a line says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.dialects.dialect import Malformed
from proxy.dialects.filed import Filed, FiledDialect, Lines, decode_filed, read_result, with_results_here


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b" ")), max_size=8),
    st.integers(1, 9),
    st.booleans(),
)
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], size: int, ended: bool) -> None:
    """Whatever pieces a file comes in, its lines are the same; those that are too long are left out and counted, blank ones are none."""
    data = b"\n".join(lines) + b"\n" * ended
    reader = Lines(8)
    found = [one for at in range(0, len(data), size) for one in reader.feed(data[at : at + size])] + reader.finish()
    assert [line.strip() for line in lines if len(line) <= 8 and line.strip()] == found
    assert sum(len(line) > 8 for line in lines) == reader.left_out


USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
IO_USAGE = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
TOKENS = Tokens(input=9, output=3)


@pytest.mark.parametrize(
    ("line", "of_anthropic", "wanted"),
    [
        ({"response": {"status_code": 200, "body": {"model": "m", "usage": USAGE}}}, False, ("m", TOKENS)),
        ({"response": {"status_code": 200, "body": {"model": "m", "usage": IO_USAGE}}}, False, ("m", TOKENS)),
        ({"response": {"status_code": 200, "body": {"model": "m"}}}, False, ("m", None)),
        ({"response": {"status_code": 400, "body": {"error": {}}}}, False, None),
        ({"response": None, "error": {"code": "batch_expired"}}, False, None),
        ({"result": {"type": "succeeded", "message": {"model": "m", "usage": IO_USAGE}}}, True, ("m", TOKENS)),
        ({"result": {"type": "errored", "error": {}}}, True, None),
        ({"result": {"type": "canceled"}}, True, None),
    ],
)
def test_a_line_of_results_says_who_answered_and_what_was_used(
    line: dict[str, object], of_anthropic: bool, wanted: tuple[str, Tokens | None] | None
) -> None:
    """Only answers count; whatever failed was not billed."""
    found = read_result(json.dumps({"custom_id": "a"} | line).encode(), of_anthropic=of_anthropic)
    assert wanted == (None if found is None else (found.model, found.tokens))


def test_a_line_that_is_none_is_malformed() -> None:
    """Of which the reader says so, and does not take it for one without usage."""
    with pytest.raises(Malformed):
        read_result(b'{"response":', of_anthropic=False)


@pytest.mark.parametrize(
    ("said", "ended", "files"),
    [
        ({"status": "validating"}, False, ()),
        ({"status": "cancelling", "output_file_id": None}, False, ()),
        ({"status": "completed", "output_file_id": "f1", "error_file_id": "f2"}, True, ("f1", "f2")),
        ({"status": "expired", "error_file_id": "f2"}, True, ("f2",)),
        ({"processing_status": "in_progress"}, False, ()),
        ({"processing_status": "ended"}, True, ()),
    ],
)
def test_a_batch_says_whether_it_has_ended_and_what_it_left(
    said: dict[str, object], ended: bool, files: tuple[str, ...]
) -> None:
    """In the words of either vendor."""
    filed: Filed = decode_filed(json.dumps({"id": "b"} | said).encode())
    assert (ended, files) == (filed.ended, filed.files)


def test_results_are_fetched_here() -> None:
    """The address of results becomes a path; a batch without one stays as it is."""
    body = json.dumps({"id": "b", "results_url": "https://up/v1/messages/batches/b/results"}).encode()
    assert {"id": "b", "results_url": "/v1/messages/batches/b/results"} == json.loads(with_results_here(body))
    assert {"id": "b", "results_url": None} == json.loads(with_results_here(b'{"id":"b","results_url":null}'))
    assert b'{"id": "b"}' == with_results_here(b'{"id": "b"}')


def test_a_call_on_files_costs_nothing_however_it_ends() -> None:
    """Nothing of it is estimated, neither its body nor its answer."""
    view = FiledDialect().read_view(b"x" * 100)
    assert (True, 0, 100) == (view.free, view.max_output_tokens, view.file_bytes)
    assert Tokens() == FiledDialect().scanner(view=view, event_bytes_max=1).tokens

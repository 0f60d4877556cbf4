"""What is read of a completion's request."""

from __future__ import annotations

import json

import pytest

from proxy.dialects.dialect import Malformed
from proxy.dialects.openai_completions import PROMPTS_MAX, OpenAiCompletions

COMPLETIONS = OpenAiCompletions()


def body(**fields: object) -> bytes:
    """A request."""
    return json.dumps({"model": "m", "prompt": "hi"} | fields).encode()


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 2, "best_of": 5}, 5),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": []}, 1),
        ({"prompt": None}, 1),
    ],
)
def test_every_text_that_is_generated_is_counted(fields: dict[str, object], answers: int) -> None:
    """For each prompt `n` or `best_of`, whichever is more; a list of numbers is one prompt."""
    assert answers == COMPLETIONS.read_view(body(**fields)).n


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"best_of": 129}, "best_of"),
        ({"prompt": ["a"] * (PROMPTS_MAX + 1)}, "prompt"),
    ],
)
def test_what_makes_no_sense_is_malformed(fields: dict[str, object], param: str) -> None:
    """The field at fault is named."""
    with pytest.raises(Malformed) as caught:
        COMPLETIONS.read_view(body(**fields))
    assert param == caught.value.param


def test_a_ceiling_never_makes_an_answer_longer() -> None:
    """Without one upstreams stop at sixteen tokens, and still do when the tenant's is above that."""
    sent = body()
    view = COMPLETIONS.read_view(sent)
    for ceiling, expected in ((500, 16), (5, 5)):
        out = COMPLETIONS.rewritten(sent, view=view, model="other", output_ceiling=ceiling)
        assert (expected, "other") == (json.loads(out)["max_tokens"], json.loads(out)["model"])


def test_a_stream_reports_its_usage() -> None:
    """It is switched on where the client did not ask for it."""
    sent = body(stream=True)
    out = COMPLETIONS.rewritten(sent, view=COMPLETIONS.read_view(sent), model="m", output_ceiling=None)
    assert {"include_usage": True} == json.loads(out)["stream_options"]

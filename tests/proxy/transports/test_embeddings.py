"""Tests of embeddings by input: any request and any answer can be taken apart and put together again without a change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.transports.embeddings import ITEMS_MAX, read_answer, read_ask, write_answer, write_ask

TOKENS = st.lists(st.integers(0, 200_000), min_size=1, max_size=5)
INPUTS = st.one_of(
    st.text(),
    TOKENS,
    st.lists(st.text(), min_size=1, max_size=6),
    st.lists(TOKENS, min_size=1, max_size=6),
)
MORE = st.dictionaries(
    st.sampled_from(["model", "dimensions", "encoding_format", "invented_later"]),
    st.one_of(st.integers(-5, 5), st.text(max_size=5), st.none(), st.lists(st.integers(0, 3), max_size=2)),
)
VECTORS = st.one_of(st.text(alphabet="ABCabc+/=", max_size=12), st.lists(st.floats(-1, 1), max_size=4))


@given(INPUTS, MORE, st.booleans())
def test_a_request_is_taken_apart_and_put_together(wanted: object, more: dict[str, object], ascii_only: bool) -> None:
    """Whatever the input and however it is written, the request for all its items asks for the same; only the list around one is new."""
    body = json.dumps(more | {"input": wanted}, ensure_ascii=ascii_only).encode()
    ask = read_ask(body)
    assert ask is not None
    items = [wanted] if isinstance(wanted, str) or (isinstance(wanted, list) and isinstance(wanted[0], int)) else wanted
    assert items == [json.loads(item) for item in ask.items]
    assert more | {"input": items} == json.loads(write_ask(ask, ask.items))
    assert ask.exact is all(isinstance(item, list) for item in items)
    if ask.exact:
        assert [len(item) for item in items] == list(ask.weights)


@given(st.text(), MORE)
def test_a_text_alone_and_in_a_list_are_the_same_item(text: str, more: dict[str, object]) -> None:
    """Its name does not depend on how the request was written."""
    alone = read_ask(json.dumps(more | {"input": text}).encode())
    listed = read_ask(json.dumps({"input": [text]} | more, ensure_ascii=False, indent=2).encode())
    assert alone is not None
    assert listed is not None
    assert (alone.rest, alone.items) == (listed.rest, listed.items)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"input":[]}', b'{"input":{}}', b'{"input":null}', b'{"input":[1,"a"]}', b'{"input":["a",[1]]}',
        b'{"input":[[]]}', b'{"input":[1.5]}', b'{"input":[true]}', b'{"input":"\\ud800"}', b'{"input":"a"', b'{"input":["a",null]}',
    ],
)  # fmt: skip
def test_what_is_no_list_of_inputs_is_left_alone(body: bytes) -> None:
    """The upstream says what is wrong with it."""
    assert read_ask(body) is None


@given(st.lists(VECTORS, min_size=1, max_size=6), st.randoms(), st.integers(0, 1000), st.booleans())
def test_an_answer_is_taken_apart_and_put_together(
    vectors: list[object], random: object, tokens: int, with_index: bool
) -> None:
    """Every object comes back byte for byte in the order of the inputs, whatever order the upstream chose."""
    data = [{"object": "embedding", "embedding": vector, "index": at} for at, vector in enumerate(vectors)]
    if with_index:
        random.shuffle(data)  # type: ignore[attr-defined]
    else:
        for item in data:
            del item["index"]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = json.dumps({"object": "list", "data": data, "model": "m-1", "usage": usage, "more": {"a": 1}}).encode()
    found = read_answer(body, count=len(vectors))
    assert found is not None
    assert (tokens, b'"m-1"') == (found.tokens, found.model)
    written = json.loads(write_answer(found.items, model=found.model, tokens=tokens, fields=found.fields))
    assert [(at, vector) for at, vector in enumerate(vectors)] == [
        (item["index"], item["embedding"]) for item in written["data"]
    ]
    assert ("list", "m-1", usage, {"a": 1}) == tuple(written[name] for name in ("object", "model", "usage", "more"))


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"embedding": [1], "index": 0}],
        [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}],
        [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 2}],
        [{"embedding": [1], "index": -1}, {"embedding": [1], "index": 0}],
        [{"embedding": [1], "index": 0}, {"index": 1}],
        [{"embedding": [1], "index": "0"}, {"embedding": [1], "index": 1}],
        [{"embedding": [1]}, {"embedding": [1]}, {"embedding": [1]}],
        "no",
    ],
)
def test_an_answer_that_does_not_fit_the_inputs_is_not_read(data: object) -> None:
    """One object for each of two inputs, or none is trusted."""
    assert read_answer(json.dumps({"data": data}).encode(), count=2) is None


@pytest.mark.parametrize("item", ["a", [1]])
def test_a_body_of_millions_of_inputs_is_not_taken_apart(item: object) -> None:
    """What no provider takes costs one key, not one for each input."""
    ask = read_ask(json.dumps({"input": [item] * ITEMS_MAX}).encode())
    assert ask is not None
    assert ITEMS_MAX == len(ask.items)
    assert read_ask(json.dumps({"input": [item] * (ITEMS_MAX + 1)}).encode()) is None

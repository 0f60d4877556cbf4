"""Tests of cache keys: everything that can change an answer changes the key, and nothing else does."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.transports.cache_key import IGNORED_FIELDS, KEY_BYTES, cache_key, item_keys, scope_of, variant_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=10)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name not in IGNORED_FIELDS)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=6)
WORDS = st.text(st.characters(codec="utf-8"), max_size=8)


def _key(document: object, *, tenant: str = "acme", operation: str = "chat", alias: str = "small") -> bytes | None:
    return cache_key(scope=scope_of(tenant, operation, alias), body=json.dumps(document).encode())


def _same(one: object, other: object) -> bool:
    """Equal as JSON documents: `1`, `1.0` and `true` are three values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return one == other


def _shuffled(value: object, chance: random.Random) -> object:
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return {name: _shuffled(inner, chance) for name, inner in items}
    return [_shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


@given(DOCUMENTS, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_how_a_body_is_written_does_not_change_its_key(
    document: dict[str, object], chance: random.Random, escaped: bool, indent: int | str | None
) -> None:
    """Order of names, white space and escapes at any depth are the same request."""
    rewritten = json.dumps(_shuffled(document, chance), ensure_ascii=escaped, indent=indent)
    key = _key(document)
    assert key is not None
    assert KEY_BYTES == len(key)
    assert key == cache_key(scope=scope_of("acme", "chat", "small"), body=rewritten.encode())


@given(DOCUMENTS, DOCUMENTS)
def test_different_requests_have_different_keys(one: dict[str, object], other: dict[str, object]) -> None:
    """Two bodies have one key only if they are the same document."""
    assert _same(one, other) == (_key(one) == _key(other))


@given(DOCUMENTS, NAMES, VALUES)
def test_a_field_that_nobody_has_heard_of_changes_the_key(
    document: dict[str, object], name: str, value: object
) -> None:
    """There is no list of fields that count: a new one, or a new value of one, is another request."""
    assume(name not in document)
    assert _key(document) != _key({**document, name: value})


@given(DOCUMENTS, st.dictionaries(st.sampled_from(IGNORED_FIELDS), VALUES))
def test_who_asks_does_not_change_the_key(document: dict[str, object], labels: dict[str, object]) -> None:
    """The fields of the deny-list, with any value, leave the key as it is."""
    assert _key(document) == _key({**labels, **document})


@pytest.mark.parametrize("field", IGNORED_FIELDS)
def test_the_deny_list_is_of_the_top_level_only(field: str) -> None:
    """A tool's parameter that happens to be called `user` counts."""
    assert _key({"tools": [{field: "a"}]}) != _key({"tools": [{field: "b"}]})


@given(DOCUMENTS, st.tuples(WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS, WORDS))
def test_no_two_tenants_share_a_key(
    document: dict[str, object], one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    """The same body under another tenant, operation or alias has another key, wherever their letters are cut."""
    keys = {
        _key(document, tenant=tenant, operation=operation, alias=alias) for tenant, operation, alias in (one, other)
    }
    assert len({one, other}) == len(keys)


def test_letters_cannot_wander_between_the_parts_of_the_scope() -> None:
    """Tenant `ab` with alias `c` is not tenant `a` with alias `bc`, nor can a name imitate the separators."""
    scopes = [
        ("ab", "chat", "c"),
        ("a", "chat", "bc"),
        ("a", "bchat", "c"),
        ("ab4:chat", "", "c"),
        ("", "ab4:chat", "c"),
    ]
    assert len(scopes) == len({_key({}, tenant=tenant, operation=op, alias=alias) for tenant, op, alias in scopes})


def test_streams_and_whole_answers_have_different_keys() -> None:
    """A stored stream never answers a call that wants a whole body, or the reverse."""
    body = {"model": "small", "messages": []}
    assert 3 == len({_key(body), _key({**body, "stream": True}), _key({**body, "stream": False})})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{",
        b"{}x",
        b"\xff",
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_cannot_be_written_again_has_no_key(body: bytes) -> None:
    """No key, no exception: such a call goes upstream by itself."""
    assert cache_key(scope=scope_of("t", "chat", "m"), body=body) is None


def test_a_body_of_brackets_has_no_key() -> None:
    """Nesting beyond the interpreter's depth is refused, not fatal."""
    body = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert cache_key(scope=scope_of("t", "chat", "m"), body=body) is None


@given(
    st.sampled_from(["messages", "responses", "completions", "moderations", "count_tokens", "chat"]),
    NAMES,
    st.integers(-(2**62), 2**62),
)
def test_any_unknown_field_changes_the_key_in_every_protocol(operation: str, name: str, value: int) -> None:
    """A field that nobody here has heard of is part of the key, whoever's language it is; so is the language itself."""
    plain = {"model": "m", "messages": [], "input": "hi"}
    if name in plain or name in IGNORED_FIELDS:
        return
    keys = {
        cache_key(scope=scope_of("acme", operation, "m"), body=json.dumps(body).encode())
        for body in (plain, plain | {name: value}, plain | {name: value + 1}, plain | {name: None})
    }
    keys.add(cache_key(scope=scope_of("acme", "another", "m"), body=json.dumps(plain).encode()))
    assert 5 == len(keys)


HEADERS = st.dictionaries(
    st.sampled_from([b"anthropic-version", b"anthropic-beta", b"anthropic-invented", b"x-other"]), st.binary(max_size=6)
)


@given(HEADERS, HEADERS)
def test_forwarded_headers_are_part_of_the_key(one: dict[bytes, bytes], other: dict[bytes, bytes]) -> None:
    """Two requests have the same variant exactly if all headers that go upstream are the same."""

    def forwarded(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {name: value for name, value in headers.items() if name.startswith(b"anthropic-")}

    same = variant_of(one, prefix=b"anthropic-") == variant_of(other, prefix=b"anthropic-")
    assert (forwarded(one) == forwarded(other)) is same


SCOPES = st.tuples(
    st.text(max_size=4),
    st.text(max_size=4),
    st.binary(max_size=6).map(lambda rest: b"{" + rest + b"}"),
    HEADERS.map(lambda headers: variant_of(headers, prefix=b"anthropic-")),
)


@given(SCOPES, SCOPES, st.lists(st.binary(max_size=4), max_size=5), st.lists(st.binary(max_size=4), max_size=5))
def test_no_two_inputs_of_embeddings_share_a_key(
    one: tuple[str, str, bytes, str], other: tuple[str, str, bytes, str], mine: list[bytes], theirs: list[bytes]
) -> None:
    """The tenant, the route, the rest of the request, its headers and the input together are the key, and none runs into the next."""
    found: dict[bytes, tuple[object, ...]] = {}
    for (tenant, alias, rest, variant), items in ((one, mine), (other, theirs)):
        keys = item_keys(tenant=tenant, alias=alias, rest=rest, items=items, variant=variant)
        for key, item in zip(keys, items, strict=True):
            meaning = (tenant, alias, rest, variant, item)
            assert meaning == found.setdefault(key, meaning)

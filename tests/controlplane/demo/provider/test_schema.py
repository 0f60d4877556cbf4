"""Values made for a schema are valid for it."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.demo.provider.problems import Problem
from controlplane.demo.provider.schema import FORMATS, Instance

TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
    "additionalProperties": False,
}
_NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value", "next"],
}
LIST = {"$defs": {"node": _NODE}, "$ref": "#/$defs/node"}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": "object", "properties": {"a": {"const": None}, "b": {"enum": [1, "x", None]}}, "required": ["a", "z"]},
    {"type": ["string", "null"], "minLength": 12, "maxLength": 14},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 4, "maxItems": 5},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "maxItems": 2},
    {"type": "integer", "multipleOf": 7, "minimum": -20, "exclusiveMaximum": 0},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.25},
    {"type": "integer", "maximum": -3},
    {"properties": {"a": {"items": {"type": "integer"}}}, "required": ["a"]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": True}, "required": ["b"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    TREE,
    LIST,
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:60])
@pytest.mark.parametrize("seed", range(20))
def test_value_is_valid(schema: dict[str, Any], seed: int) -> None:
    """A value passes an independent validator, recursion included."""
    value = Instance(schema, draw=random.Random(seed), words=["alpha", "beta"]).make()
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    """A string of a known format has that format."""
    value = Instance({"type": "string", "format": name}, draw=random.Random(0), words=[]).make()
    jsonschema.Draft202012Validator.FORMAT_CHECKER.check(value, name)


_LEAVES = st.sampled_from(
    [{"type": "string"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", 3]}, {"type": "number"}]
) | st.builds(
    lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
    st.integers(-1000, 1000),
    st.integers(0, 50),
)
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.builds(
            lambda properties: {
                "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
            },
            st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        )
        | st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 3))
        | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)  # fmt: skip


@given(schema=_SCHEMAS, seed=st.integers(0, 2**32))
def test_any_strict_schema(schema: dict[str, Any], seed: int) -> None:
    """Any schema of the kind that structured outputs allow gets a valid value, the same one again for the same seed."""
    values = [Instance(schema, draw=random.Random(seed), words=["alpha"]).make() for _ in range(2)]
    jsonschema.Draft202012Validator(schema).validate(values[0])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/$defs/nothing"}, "points nowhere"),
        ({"$ref": "#/title", "title": "a"}, "does not point at an object"),
        ({"$ref": "#"}, "do not end"),
        ({"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}, "$ref": "#/$defs/a"}, "without end"),
        ({"type": "object", "properties": {"a": False}}, "allows nothing"),
        ({"enum": []}, "not a JSON schema"),
        ({"anyOf": []}, "not a JSON schema"),
        ({"allOf": 3}, "not a JSON schema"),
        ({"type": "object", "properties": [1]}, "not a JSON schema"),
        ({"type": "object", "required": 3}, "not a JSON schema"),
        ({"type": "integer", "multipleOf": "x"}, "not a JSON schema"),
        ({"type": "number", "minimum": 1e308, "maximum": 1e309}, "not a JSON schema"),
        ({"type": "array", "minItems": 10**9}, "too many items"),
        ({"type": "string", "minLength": 10**9}, "too long a string"),
        ({"type": "array", "minItems": 3000, "items": {"type": "array", "minItems": 3000}}, "too large"),
    ],
)  # fmt: skip
def test_schema_that_cannot_be_met(schema: dict[str, Any], words: str) -> None:
    """A schema that no value can follow is the client's mistake, not an endless loop."""
    with pytest.raises(Problem) as problem:
        Instance(schema, draw=random.Random(0), words=["a"]).make()
    assert words in problem.value.message

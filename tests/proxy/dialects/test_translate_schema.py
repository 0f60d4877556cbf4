"""Schemas in the subset that structured outputs take."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.dialects.dialect import Malformed
from proxy.dialects.translate_schema import enforceable, is_strict, of_arguments


def enforced(schema: Any) -> Any:
    """The schema as it is sent."""
    return json.loads(bytes(enforceable(msgspec.Raw(json.dumps(schema).encode()), "p")))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"type": "string"}),
        ({"type": "string", "format": "date", "enum": ["a"]}, {"type": "string", "format": "date", "enum": ["a"]}),
        (
            {"type": "string", "format": "odd", "maxLength": 3, "description": "d"},
            {"type": "string", "description": 'd\n\n{format: "odd", maxLength: 3}'},
        ),
        ({"type": "object"}, {"type": "object", "properties": {}, "additionalProperties": False}),
        (
            {"type": "array", "items": {"type": "object", "additionalProperties": True}, "minItems": 1},
            {
                "type": "array",
                "items": {"type": "object", "properties": {}, "additionalProperties": False},
                "minItems": 1,
            },
        ),
        (
            {"oneOf": [{"type": "integer", "minimum": 0}]},
            {"anyOf": [{"type": "integer", "description": "{minimum: 0}"}]},
        ),
        (
            {"$schema": "x", "$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}},
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {}, "additionalProperties": False}}},
        ),
    ],
)
def test_what_cannot_be_enforced_is_told(schema: Any, expected: Any) -> None:
    """Objects are closed, and other constraints become words."""
    assert expected == enforced(schema)


def test_a_schema_that_is_none_is_refused() -> None:
    """And so is one that nests without end."""
    for schema in ([], "x", None):
        with pytest.raises(Malformed):
            enforced(schema)
    deep: Any = {"type": "string"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(Malformed):
        enforced(deep)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {}, "required": [], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": False}, False),
        ({"type": "object", "properties": {}, "required": []}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"type": "array", "items": {"type": "string"}}, True),
        ({"anyOf": [{"type": "object"}]}, False),
        ([], False),
        ({"type": "array", "items": {"type": "object"}, "anyOf": 5}, False),
        ({"type": "string", "anyOf": {"type": "string"}}, True),
        ({"type": "string", "default": "x"}, False),
        ({"type": "array", "items": {"allOf": [{"type": "string"}]}}, False),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}}, True),
        ({"type": "array", "items": {"$ref": "#/$defs/A", "description": "one"}}, False),
    ],
)
def test_what_openai_would_enforce(schema: Any, expected: bool) -> None:
    """Closed objects whose properties are all required, at every depth."""
    assert expected is is_strict(msgspec.Raw(json.dumps(schema).encode()))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (b"", {"type": "object", "properties": {}}),
        (b"{}", {"type": "object", "properties": {}}),
        (b'{"type":"object"}', {"type": "object", "properties": {}}),
        (b'{"properties":{"a":{"x": 1.50}}}', {"properties": {"a": {"x": 1.5}}, "type": "object"}),
        (b'{"type":"array"}', {"type": "array"}),
        (b'["odd"]', ["odd"]),
    ],
)
def test_arguments_of_a_tool_are_an_object_with_properties(schema: bytes, expected: Any) -> None:
    """Either vendor refuses what the other leaves out; what is no schema at all is theirs to refuse."""
    assert expected == json.loads(bytes(of_arguments(msgspec.Raw(schema))))


def test_a_whole_schema_of_arguments_keeps_its_bytes() -> None:
    """Nothing that a prompt cache is keyed by changes for nothing."""
    schema = msgspec.Raw(b'{ "type":"object", "properties": {"a": {}} }')
    assert schema == of_arguments(schema)

"""A JSON schema in the subset that Anthropic's structured outputs take: what it cannot enforce becomes words in a description.

Objects are closed, as there every object must be; constraints that would be refused (`minimum`, `maxLength`, ...) are told to the model instead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.dialects.dialect import Malformed

_DEPTH_MAX = 64
_KEPT = frozenset(("type", "title", "description", "enum", "const", "required", "default", "$ref"))
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
)  # what the vendor's own client passes on
_LISTS = {"anyOf": "anyOf", "oneOf": "anyOf", "allOf": "allOf"}
_MAPS = ("properties", "$defs", "definitions")
# What OpenAI refuses in a schema that it is to enforce.
_UNENFORCED = frozenset(
    (
        "allOf", "contains", "default", "dependentRequired", "dependentSchemas", "else", "if", "maxContains", "maxProperties", "minContains",
        "minProperties", "not", "oneOf", "patternProperties", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    )
)  # fmt: skip
_BESIDE_REF = frozenset(("$ref", "$defs", "definitions"))
_ABSENT = frozenset((b"", b"null", b"false", b"{}", b"[]"))
_NO_ARGUMENTS = msgspec.Raw(b'{"type":"object","properties":{}}')
_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

Schema = dict[str, Any]  # a document of the client's own: any JSON value may stand in it


def enforceable(schema: msgspec.Raw, param: str) -> msgspec.Raw:
    """The schema as structured outputs take it. Raises Malformed, naming param, if it is no schema of an object or nests too deep."""
    value = _decode(schema) if bytes(schema) else None
    if not isinstance(value, dict):
        raise Malformed(f"`{param}` must be a JSON schema", param)
    return msgspec.Raw(_encode(_node(value, param, 0)))


def of_arguments(schema: msgspec.Raw) -> msgspec.Raw:
    """A tool's schema with what each vendor demands at its top: OpenAI refuses objects without `properties`, Anthropic those without `type`."""
    if bytes(schema) in _ABSENT:
        return _NO_ARGUMENTS
    try:
        fields = _decode_fields(schema)
    except (msgspec.MsgspecError, RecursionError):
        return schema  # the upstream says what is wrong with it
    if "type" in fields and "properties" in fields:
        return schema
    fields.setdefault("type", msgspec.Raw(b'"object"'))
    if bytes(fields["type"]) == b'"object"':
        fields.setdefault("properties", msgspec.Raw(b"{}"))
    return msgspec.Raw(_encode(fields))


def is_strict(schema: msgspec.Raw) -> bool:
    """Whether OpenAI would enforce this schema: every object closed, every property required, and no words that it refuses there."""
    value = _decode(schema) if bytes(schema) else None
    return isinstance(value, dict) and _is_strict(value, 0)


def _node(schema: Schema, param: str, depth: int) -> Schema:
    if depth > _DEPTH_MAX:
        raise Malformed(f"`{param}` is nested more than {_DEPTH_MAX} levels deep", param)
    kept: Schema = {}
    told: list[str] = []
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            kept[_LISTS[key]] = [_child(item, param, depth) for item in value]
        elif key in _MAPS and isinstance(value, dict):
            kept[key] = {name: _child(item, param, depth) for name, item in value.items()}
        elif key == "items":
            kept[key] = _child(value, param, depth)
        elif key in _KEPT or (key == "minItems" and value in (0, 1)) or (key == "format" and value in _FORMATS):
            kept[key] = value
        elif key != "additionalProperties" and not key.startswith("$"):
            told.append(f"{key}: {_encode(value).decode()}")
    if kept.get("type") == "object" or "properties" in kept:
        kept["additionalProperties"] = False
        kept.setdefault("properties", {})
    if told and "$ref" not in kept:
        words = "{" + ", ".join(told) + "}"
        kept["description"] = f"{kept['description']}\n\n{words}" if kept.get("description") else words
    return kept


def _child(value: object, param: str, depth: int) -> object:
    return _node(value, param, depth + 1) if isinstance(value, dict) else value


def _is_strict(schema: Schema, depth: int) -> bool:
    if depth > _DEPTH_MAX:
        return False
    if not _UNENFORCED.isdisjoint(schema) or ("$ref" in schema and not schema.keys() <= _BESIDE_REF):
        return False
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        required = schema.get("required")
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return False
        if not isinstance(required, list) or set(properties) != {item for item in required if isinstance(item, str)}:
            return False
    below: list[object] = [schema.get("items")]
    for key in _LISTS:
        found = schema.get(key)
        below.extend(found if isinstance(found, list) else ())
    for key in _MAPS:
        found = schema.get(key)
        below.extend(found.values() if isinstance(found, dict) else ())
    return all(_is_strict(item, depth + 1) for item in below if isinstance(item, dict))

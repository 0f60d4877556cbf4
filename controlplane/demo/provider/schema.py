"""A value that is valid for a JSON schema, drawn from a random generator: tool arguments and structured answers."""

from __future__ import annotations

import math
import random
from typing import Any

from controlplane.demo.provider.problems import Problem

DEPTH_MAX = 24  # of references and nesting; optional parts are left out from a third of it on
PARTS_MAX = 5_000  # of one value; optional parts are left out from a tenth of it on
CHARS_MAX = 20_000  # of one string
FORMATS = {
    "date": "2026-03-14",
    "time": "09:26:53Z",
    "date-time": "2026-03-14T09:26:53Z",
    "duration": "PT15M",
    "email": "ada@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "uri": "https://example.com/a",
    "uuid": "3f2b8c1e-7d4a-4e6b-9a5c-0d1e2f3a4b5c",
}
Json = Any  # any JSON value


class Instance:
    """Makes values for one schema. words: what strings are made of."""

    def __init__(self, schema: dict[str, Json], *, draw: random.Random, words: list[str]) -> None:
        self._root = schema
        self._draw = draw
        self._words = words or ["value"]
        self._parts = 0

    def make(self) -> Json:
        """A value for the whole schema. Raises Problem when the schema refers to what it does not contain or to itself without end."""
        try:
            return self._value(self._root, 0)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise _unusable(f"it is not a JSON schema ({error})") from error

    def _value(self, schema: Json, depth: int) -> Json:
        """A value for a part of the schema."""
        self._parts += 1
        if depth > DEPTH_MAX or self._parts > PARTS_MAX:
            raise _unusable("it is too large, or refers to itself without end")
        if schema is True or schema is None:
            return self._draw.choice(self._words)
        if not isinstance(schema, dict):
            raise _unusable("a part of it is neither an object nor a boolean, or allows nothing")
        schema = self._flattened(schema, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._draw.choice(schema["enum"])
        kind = self._kind(schema, depth)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return self._draw.random() < 0.5
        return None if kind == "null" else self._string(schema)

    def _deep(self, depth: int) -> bool:
        """Whether it is time to come to an end."""
        return depth * 3 >= DEPTH_MAX or self._parts * 10 > PARTS_MAX

    def _flattened(self, schema: dict[str, Json], depth: int) -> dict[str, Json]:
        """The schema with its reference followed, one of its alternatives chosen and its conjunction merged in."""
        for _ in range(DEPTH_MAX):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = self._target(str(schema["$ref"])) | rest
            elif "allOf" in schema:
                schema = _merged(schema, "allOf", list(schema["allOf"]))
            elif "anyOf" in schema or "oneOf" in schema:
                name = "anyOf" if "anyOf" in schema else "oneOf"
                schema = _merged(schema, name, [self._alternative(schema[name], depth)])
            else:
                return schema
        raise _unusable("its references do not end")

    def _alternative(self, alternatives: list[Json], depth: int) -> Json:
        """One alternative: any near the top, the simplest one deep down, so that recursion ends."""
        if not self._deep(depth):
            return self._draw.choice(alternatives)
        ends = [
            part
            for part in alternatives
            if isinstance(part, dict) and part.get("type") not in (None, "object", "array")
        ]
        return (ends or alternatives)[0]

    def _target(self, reference: str) -> dict[str, Json]:
        """What `#/$defs/Name` points at."""
        target: Json = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise _unusable(f"the reference '{reference}' points nowhere")
            target = target[name]
        if not isinstance(target, dict):
            raise _unusable(f"the reference '{reference}' does not point at an object")
        return target

    def _kind(self, schema: dict[str, Json], depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return "null" if self._deep(depth) and "null" in kind else str(self._draw.choice(kind))
        if kind is None:
            if "properties" in schema:
                return "object"
            return "array" if "items" in schema else "string"
        return str(kind)

    def _object(self, schema: dict[str, Json], depth: int) -> dict[str, Json]:
        required = schema.get("required") or []
        properties = schema.get("properties") or {}
        made = {}
        for name, part in properties.items():
            if name in required or not self._deep(depth):
                made[name] = self._value(part, depth + 1)
        for name in required:
            if name not in made:
                made[name] = self._draw.choice(self._words)
        return made

    def _array(self, schema: dict[str, Json], depth: int) -> list[Json]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        if least > PARTS_MAX:
            raise _unusable("it asks for too many items")
        count = (
            least
            if self._deep(depth)
            else self._draw.randint(max(least, min(1, most)), max(least, min(most, least + 2)))
        )
        prefix = schema.get("prefixItems") or []
        items: list[Json] = []
        for _ in range(count * 20):
            if len(items) == count:
                break
            part = prefix[len(items)] if len(items) < len(prefix) else schema.get("items", True)
            item = self._value(part, depth + 1)
            if not (schema.get("uniqueItems") and item in items):
                items.append(item)
        return items

    def _number(self, schema: dict[str, Json], *, whole: bool) -> int | float:
        step = schema.get("multipleOf") or (1 if whole else 0.5)
        low, high = _bounds(schema, step)
        first, last = math.ceil(low / step), math.floor(high / step)
        value = self._draw.randint(first, max(first, last)) * step
        return int(value) if whole else float(value)

    def _string(self, schema: dict[str, Json]) -> str:
        if schema.get("format") in FORMATS:
            return FORMATS[schema["format"]]
        least = int(schema.get("minLength", 0))
        most = int(schema.get("maxLength", max(least, 60)))
        if least > CHARS_MAX:
            raise _unusable("it asks for too long a string")
        text = self._draw.choice(self._words)
        while len(text) < least:
            text += " " + self._draw.choice(self._words)
        self._parts += len(text) // 64
        return text[:most]


def _bounds(schema: dict[str, Json], step: float) -> tuple[float, float]:
    """The smallest and the largest value allowed; exclusive bounds are moved by one step."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    if low is None:
        low = 1 if high is None or high >= 1 else high - 100 * step
    return low, low + 99 * step if high is None else high


def _merged(schema: dict[str, Json], name: str, parts: list[Json]) -> dict[str, Json]:
    """The schema without `name`, and with its parts laid into it; properties and required names are united."""
    merged = {key: value for key, value in schema.items() if key != name}
    for part in parts:
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "properties":
                merged[key] = (merged.get(key) or {}) | value
            elif key == "required":
                merged[key] = [*(merged.get(key) or []), *value]
            else:
                merged[key] = value
    return merged


def _unusable(why: str) -> Problem:
    return Problem(400, f"Invalid schema: {why}.", code="invalid_json_schema")

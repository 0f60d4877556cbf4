"""How strictly an answer is compared with the types of a vendor's SDK."""

from __future__ import annotations

import json
from typing import Any

import pydantic


def extra_fields(model: pydantic.BaseModel) -> list[str]:
    """Fields of a parsed answer, at any depth, that its type does not have."""
    found = list(model.model_extra or ())
    for value in dict(model).values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, pydantic.BaseModel):
                found += extra_fields(part)
    return found


def strictly(kind: Any, document: object) -> Any:
    """A document as the SDK's type, which must have every field of it. kind: a type as pydantic takes them."""
    parsed = pydantic.TypeAdapter(kind).validate_python(document)
    assert [] == extra_fields(parsed)
    return parsed


def named_events(body: bytes) -> list[tuple[str, Any]]:
    """The events of a stream that names them: name and document."""
    made = []
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        made.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return made

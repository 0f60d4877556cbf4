"""YAML that people write, bound to typed structs with the file and line of every mistake; all mistakes are told at once.

The struct's annotations are the schema: msgspec `Meta` bounds hold, unknown keys are errors with the nearest valid key, names that end
in `_s` take durations ("5m"), names with `bytes` take sizes ("64MiB"), and three marks in `Meta.extra` are known: DECIMAL (a decimal
number, kept as an integer of 10**-n: money is never a float), REFERENCE (a reference to a secret, never repeated in a message) and DAY (a day
as it is written, with or without quotes).
"""

from __future__ import annotations

import difflib
import operator
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from controlplane.catalog import nodes, scalars
from controlplane.errors import ConfigError, Problem
from controlplane.secrets import is_reference

DECIMAL = "decimal_places"
REFERENCE = "reference"
DAY = "day"

VALUES_MAX = 200_000  # aliases expanded: a file that unfolds without end is refused
PROBLEMS_MAX = 100

Place = tuple[str | int, ...]
"""Keys and indices from the root down to a value."""

Schema = TypeVar("Schema", bound=msgspec.Struct)

_KIND_NAMES = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "nothing", "timestamp": "a date",
    "map": "a mapping", "seq": "a list",
}  # fmt: skip


class Bound(msgspec.Struct, Generic[Schema], frozen=True):
    """What a file says, where it says it, and what is wrong with it. lines: from 1, by place."""

    value: Schema
    file: str
    lines: Mapping[Place, int]
    problems: tuple[Problem, ...] = ()

    def line(self, *place: str | int) -> int:
        """The line of a value, or of the nearest thing around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def problem(self, message: str, *place: str | int, hint: str = "") -> Problem:
        """A mistake at a value."""
        return Problem(file=self.file, line=self.line(*place), message=message, hint=hint)


def bind(text: str, schema: type[Schema], *, file: str) -> Bound[Schema]:
    """A file's text as a struct. Mistakes are in `problems`; what is sound is bound nevertheless, so that more can be checked.

    schema: a struct whose fields all have defaults.
    Raises ConfigError when nothing can be bound: no YAML, a bound of size, depth or number exceeded, or not a mapping.
    """
    root = nodes.compose(text, file)
    if root is None or nodes.kind(root) == "null":
        return Bound(value=schema(), file=file, lines={})
    binder = _Binder(file)
    value = binder.value(root, schema, ())
    if not isinstance(value, schema):
        raise ConfigError(binder.problems)
    return Bound(value=value, file=file, lines=binder.lines, problems=tuple(binder.problems))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or all of them when none is near."""
    words = sorted(known)
    if near := difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6):
        return f"did you mean `{near[0]}`?"
    return ("known: " + ", ".join(f"`{word}`" for word in words[:30])) if words else ""


class _Bad:
    """Stands for a value that could not be bound; its problem is already noted."""


_BAD = _Bad()


class _Schema:
    """A struct's fields by the name they have in a file, and its annotations by attribute; costly to find out, so kept for a walk."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self.fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        self.hints = get_type_hints(struct, include_extras=True)


class _Binder:
    """One walk over one file; collects lines and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Place, int] = {}
        self.problems: list[Problem] = []
        self._values = 0
        self._schemas: dict[type[msgspec.Struct], _Schema] = {}

    def wrong(self, node: yaml.Node, message: str, hint: str = "") -> _Bad:
        """Notes a mistake."""
        self.problems.append(Problem(file=self.file, line=nodes.line(node), message=message, hint=hint))
        if len(self.problems) >= PROBLEMS_MAX:
            raise ConfigError(self.problems)
        return _BAD

    def expected(self, what: str, node: yaml.Node, place: Place, hint: str = "") -> _Bad:
        """Notes a value of the wrong kind."""
        found = _KIND_NAMES.get(nodes.kind(node), f"a `{nodes.kind(node)}`")
        if (
            isinstance(node, yaml.ScalarNode)
            and nodes.kind(node) in {"int", "float"}
            and what in {"a whole number", "a number"}
        ):
            found = f"`{_shown(node.value)}`"
        return self.wrong(node, f"{_name(place)} must be {what}, not {found}", hint)

    def value(
        self, node: yaml.Node, annotation: Any, place: Place
    ) -> object:  # Any: annotations have no type of their own
        """One value by its annotation."""
        self._values += 1
        if self._values > VALUES_MAX or len(place) > nodes.DEPTH_MAX:
            message = f"the file unfolds to more than {VALUES_MAX} values"
            raise ConfigError.at(self.file, message, line=nodes.line(node), hint="look at the aliases (`*name`)")
        self.lines[place] = nodes.line(node)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self.annotated(node, annotation, place)
        if origin in (Union, types.UnionType):
            inner = next(argument for argument in arguments if argument is not type(None))
            return None if nodes.kind(node) == "null" else self.value(node, inner, place)
        if origin is tuple:
            return self.sequence(node, arguments[0], place)
        if origin is dict:
            return self.mapping(node, arguments[1], place)
        if issubclass(annotation, msgspec.Struct):
            return self.struct(node, annotation, place)
        if issubclass(annotation, StrEnum):
            return self.choice(node, annotation, place)
        return self.scalar(node, annotation, place)

    def annotated(self, node: yaml.Node, annotation: Any, place: Place) -> object:  # Any: as above
        """A value with bounds, or with one of the three marks."""
        inner = get_args(annotation)[0]
        mistakes = len(self.problems)
        marks = {name: mark for meta in _metas(annotation) for name, mark in (meta.extra or {}).items()}
        if nodes.kind(node) == "null" and type(None) in get_args(inner):
            return None
        if DECIMAL in marks:
            value = self.decimal(node, marks[DECIMAL], place)
        elif REFERENCE in marks:
            return self.reference(node, place)
        elif DAY in marks and isinstance(node, yaml.ScalarNode) and nodes.kind(node) == "timestamp":
            value = node.value
        else:
            value = self.value(node, inner, place)
        if value is _BAD or value is None or len(self.problems) > mistakes:
            return value  # one mistake is told once
        metas = _metas(annotation)
        if (rule := next((rule for meta in metas for rule in _broken(value, meta)), None)) is None:
            return value
        return self.wrong(node, f"{_name(place)} must be {next((meta.title for meta in metas if meta.title), rule)}")

    def struct(self, node: yaml.Node, schema: type[msgspec.Struct], place: Place) -> object:
        """A mapping with known keys."""
        if not isinstance(node, yaml.MappingNode):
            return self.expected("a mapping", node, place, hint="write `key: value` lines below it")
        known = self._schemas.get(schema)
        if known is None:
            known = self._schemas[schema] = _Schema(schema)
        fields, hints = known.fields, known.hints
        bound: dict[str, object] = {}
        seen: set[str] = set()
        for key, child in nodes.pairs(node):
            name = self.key(key, seen, place)
            if name is None:
                continue
            if name not in fields:
                self.wrong(key, f"unknown key `{_shown(name)}`" + _inside(place), nearest(name, fields))
                continue
            value = self.value(child, hints[fields[name].name], (*place, name))
            if value is not _BAD:
                bound[fields[name].name] = value
        for name, field in fields.items():
            if field.required and name not in seen:
                self.wrong(node, f"`{name}` is missing" + _inside(place))
        if any(field.required and field.name not in bound for field in fields.values()):
            return _BAD
        return schema(**bound)

    def key(self, node: yaml.Node, seen: set[str], place: Place) -> str | None:
        """The text of a key that was not seen before."""
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, "a key must be text" + _inside(place))
            return None
        if node.value in seen:
            self.wrong(node, f"`{_shown(node.value)}` is written twice" + _inside(place), "keep one of them")
            return None
        seen.add(node.value)
        return str(node.value)

    def sequence(self, node: yaml.Node, annotation: Any, place: Place) -> object:  # Any: as above
        """A list; entries that are bad are left out."""
        if not isinstance(node, yaml.SequenceNode):
            return self.expected("a list", node, place, hint="begin each entry with `- `, or write `[a, b]`")
        bound: list[object] = []
        for child in node.value:
            value = self.value(child, annotation, (*place, len(bound)))
            if value is not _BAD:
                bound.append(value)
        return tuple(bound)

    def mapping(self, node: yaml.Node, annotation: Any, place: Place) -> object:  # Any: as above
        """A mapping with keys of one's own."""
        if not isinstance(node, yaml.MappingNode):
            return self.expected("a mapping", node, place, hint="write `name: value` lines below it")
        bound: dict[str, object] = {}
        seen: set[str] = set()
        for key, child in nodes.pairs(node):
            name = self.key(key, seen, place)
            value = _BAD if name is None else self.value(child, annotation, (*place, name))
            if name is not None and value is not _BAD:
                bound[name] = value
        return bound

    def choice(self, node: yaml.Node, annotation: type[StrEnum], place: Place) -> object:
        """One of a closed set of words."""
        words = [member.value for member in annotation]
        if not isinstance(node, yaml.ScalarNode) or node.value not in words:
            written = f", not `{_shown(node.value)}`" if isinstance(node, yaml.ScalarNode) else ""
            return self.wrong(
                node, f"{_name(place)} must be one of {', '.join(f'`{word}`' for word in words)}{written}"
            )
        return annotation(node.value)

    def scalar(self, node: yaml.Node, annotation: type[object], place: Place) -> object:
        """A text, a number, or true and false."""
        if not isinstance(node, yaml.ScalarNode):
            return self.expected(_KIND_NAMES[annotation.__name__], node, place)
        unit = str(place[-1]) if place else ""
        if annotation is str:
            return (
                node.value if nodes.kind(node) == "str" else self.expected("text", node, place, hint="put it in quotes")
            )
        if annotation is bool:
            return (
                node.value.lower() in {"true", "yes", "on"}
                if nodes.kind(node) == "bool"
                else self.expected("true or false", node, place)
            )
        if annotation is int:
            whole = scalars.integer(node.value)
            whole = scalars.size_bytes(node.value) if whole is None and "bytes" in unit else whole
            whole = _whole(scalars.duration_s(node.value)) if whole is None and unit.endswith("_s") else whole
            hint = (
                "for example 64MiB" if "bytes" in unit else "seconds, or for example 5m" if unit.endswith("_s") else ""
            )
            return self.expected("a whole number", node, place, hint) if whole is None else whole
        number = scalars.number(node.value)
        number = scalars.duration_s(node.value) if number is None and unit.endswith("_s") else number
        hint = "seconds, or for example 5m" if unit.endswith("_s") else ""
        return self.expected("a number", node, place, hint) if number is None else number

    def decimal(self, node: yaml.Node, places: int, place: Place) -> object:
        """A decimal number as an integer of 10**-places."""
        self.lines[place] = nodes.line(node)
        if not isinstance(node, yaml.ScalarNode):
            return self.expected("an amount", node, place, hint="for example 12.50")
        units = scalars.decimal_units(node.value, places)
        if units is not None:
            return units
        if scalars.number(node.value) is not None:
            return self.wrong(node, f"{_name(place)} has more than {places} decimal places", "nothing is rounded here")
        return self.wrong(
            node,
            f"{_name(place)} must be an amount, not `{_shown(node.value)}`",
            "for example 12.50, without a currency sign",
        )

    def reference(self, node: yaml.Node, place: Place) -> object:
        """A reference to a secret; its text is not repeated, since it may be the secret itself."""
        self.lines[place] = nodes.line(node)
        if not isinstance(node, yaml.ScalarNode) or not is_reference(node.value):
            return self.wrong(
                node,
                f"{_name(place)} must be a reference, `env:NAME` or `file:/path`",
                "a secret itself never stands in this file",
            )
        return node.value


def _whole(number: float | None) -> int | None:
    return int(number) if number is not None and number.is_integer() else None


def _metas(annotation: Any) -> list[Meta]:  # Any: as above
    return [meta for meta in get_args(annotation)[1:] if isinstance(meta, Meta)]


def _broken(value: Any, meta: Meta) -> Iterator[str]:  # Any: the value is of the type that the meta belongs to
    """The bounds of an annotation that a value does not keep, in words."""
    bounds = (
        ("at least", meta.ge, operator.ge),
        ("more than", meta.gt, operator.gt),
        ("at most", meta.le, operator.le),
        ("less than", meta.lt, operator.lt),
    )
    for words, bound, holds in bounds:
        if bound is not None and not holds(value, bound):
            yield f"{words} {bound}"
    if meta.min_length is not None and len(value) < meta.min_length:
        yield "longer" if value else "filled in"
    if meta.max_length is not None and len(value) > meta.max_length:
        yield f"at most {meta.max_length} long"
    if meta.pattern is not None and not re.search(meta.pattern, value):
        yield f"like {meta.pattern}"


def _name(place: Place) -> str:
    """How a value is called in a message: `tenants[0].budgets`."""
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else (f".{_shown(part)}" if name else _shown(part))
    return f"`{name}`" if name else "the file"


def _inside(place: Place) -> str:
    return f" in {_name(place)}" if place else ""


def _shown(text: str) -> str:
    """A text from the file, fit for one line of a message."""
    plain = text.encode("unicode_escape").decode()
    return plain if len(plain) <= 60 else plain[:57] + "..."

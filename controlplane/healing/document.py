"""A YAML file as plain data that remembers on which line each part was written, so that a mistake can be named with its place."""

from __future__ import annotations

import re
from typing import Any  # what a person wrote can be anything until it was checked

import msgspec
import yaml

from controlplane.errors import ConfigError

BYTES_MAX = 256 * 1024
DEPTH_MAX = 30

Path = tuple[str | int, ...]

_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]|\[\.\.\.\]")


class Document(msgspec.Struct, frozen=True):
    """Plain data (mappings, lists, scalars) and the line of each of its parts, from 1."""

    file: str
    data: Any  # mappings, lists and scalars of YAML
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of a part, or of the nearest part around it that was written."""
        while path not in self.lines:
            if not path:
                return 1
            path = path[:-1]
        return self.lines[path]


def read_document(text: str, file: str) -> Document:
    """Parse YAML; raises ConfigError with the line for what is no YAML, too large, or has a key twice."""
    if len(text.encode()) > BYTES_MAX:
        raise ConfigError.at(file, f"the file is larger than {BYTES_MAX} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "this is not YAML"
        raise ConfigError.at(file, str(problem), line=mark.line + 1 if mark else 0) from error
    if root is None:
        raise ConfigError.at(file, "the file is empty")
    lines: dict[Path, int] = {}
    return Document(file=file, data=_plain(root, (), lines, file), lines=lines)


def path_of(error: msgspec.ValidationError) -> tuple[str, Path]:
    """The message and the path in msgspec's complaint `... - at `$.spec.steps[0].id``."""
    message, _, where = str(error).rpartition(" - at `$")
    if not message:
        return str(error), ()
    steps = _STEP.findall(where.rstrip("`"))
    return message, tuple(name or int(index) for name, index in steps if name or index)


def _plain(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> Any:  # see Document.data
    lines[path] = node.start_mark.line + 1
    if len(path) > DEPTH_MAX:
        raise ConfigError.at(file, f"nested more than {DEPTH_MAX} deep", line=lines[path])
    if isinstance(node, yaml.ScalarNode):
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError.at(file, f"cannot read {node.value!r}: {error}", line=lines[path]) from error
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), lines, file) for index, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value  # as written: YAML would read `on` as true
        line = key.start_mark.line + 1
        if not isinstance(name, str):
            raise ConfigError.at(file, "a key must be a word", line=line)
        if name in mapping:
            raise ConfigError.at(file, f"key `{name}` is there twice", line=line)
        mapping[name] = _plain(value, (*path, name), lines, file)
        lines[*path, name] = line
    return mapping

"""YAML text as a tree of nodes that know their line, within bounds of size, depth and aliases."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from controlplane.errors import ConfigError

BYTES_MAX = 1024 * 1024
DEPTH_MAX = 32
ALIASES_MAX = 1_000

_TAG = "tag:yaml.org,2002:"
_MERGES_MAX = 100


def compose(text: str, file: str) -> yaml.Node | None:
    """The root node of a file's only document; None for an empty file.

    Raises ConfigError, with the line, for what is no YAML, for a second document and for what exceeds a bound.
    """
    if len(text.encode("utf-8", "surrogatepass")) > BYTES_MAX:
        raise ConfigError.at(
            file, f"the file is larger than {BYTES_MAX} bytes", hint="remove what does not belong in it"
        )
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "indent with spaces, not with tabs" if "\\t" in str(error.problem) else ""
        told = f"{error.context}, {error.problem}" if str(error.problem).startswith("but ") else error.problem
        raise ConfigError.at(file, f"not valid YAML: {told}", line=mark.line + 1 if mark else 0, hint=hint) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError.at(file, f"not valid YAML: {' '.join(str(error).split())[:200]}") from error


def kind(node: yaml.Node) -> str:
    """What a node holds: "str", "int", "float", "bool", "null", "timestamp", "map", "seq", or a foreign tag in full."""
    return str(node.tag).removeprefix(_TAG)


def line(node: yaml.Node) -> int:
    """The line a node begins on, from 1."""
    return int(node.start_mark.line) + 1


def pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """The key and value nodes of a mapping as written, own keys first, then those that `<<` merges in and that it does not have itself.

    A key that is written twice comes twice: whoever binds it says so.
    """
    own = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    merged: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in node.value:
        if kind(key) == "merge":
            merged.extend(_merged(value, own))
        else:
            yield key, value
    yield from merged


def _merged(value: yaml.Node, taken: set[str]) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """What one `<<` brings: a mapping, or a list of mappings of which the first wins. Merges do not nest further."""
    sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
    for source in sources[:_MERGES_MAX]:
        if not isinstance(source, yaml.MappingNode):
            continue
        for key, inner in source.value:
            if isinstance(key, yaml.ScalarNode) and kind(key) != "merge" and key.value not in taken:
                taken.add(key.value)
                yield key, inner


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes up to a depth and a number of aliases, so that hostile files are errors and not overflows."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nesting = 0
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node and what is in it."""
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > ALIASES_MAX:
                raise self._too_much(f"more than {ALIASES_MAX} aliases")
        self._nesting += 1
        if self._nesting > DEPTH_MAX:
            raise self._too_much(f"nested deeper than {DEPTH_MAX} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._nesting -= 1

    def _too_much(self, what: str) -> yaml.MarkedYAMLError:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        return yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)

"""What is different between two configurations or two states, in words that go into the journal: names, never values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from controlplane.catalog.file import ConfigFile
from controlplane.catalog.state import CatalogState
from controlplane.settings import Settings

_NAMES_MAX = 10


def config_changes(old: ConfigFile, new: ConfigFile) -> tuple[str, ...]:
    """The sections that differ, with the names of what was added, removed and changed; the server section is left out."""
    return tuple(_config_changes(old, new))


def restart_needed(running: Settings, written: Settings) -> tuple[str, ...]:
    """Settings that differ from those this process was started with, as paths; they wait for a restart."""
    return tuple(_differing(running, written, "server"))


def state_changes(old: CatalogState, new: CatalogState) -> tuple[str, ...]:
    """Keys, leases and invalidations that came, went or changed."""
    words: list[str] = []
    for name, before, after in (
        ("keys", old.keys, new.keys),
        ("leases", old.leases, new.leases),
        ("invalidations", old.invalidations, new.invalidations),
    ):
        words += _named(name, before, after)
    return tuple(words)


def _config_changes(old: ConfigFile, new: ConfigFile) -> Iterator[str]:
    for section in ("upstreams", "models", "tenants", "issuers", "alerts"):
        before = {entry.name: entry for entry in getattr(old, section)}
        after = {entry.name: entry for entry in getattr(new, section)}
        yield from _named(section, before, after)
    yield from _named("prices", old.prices, new.prices)
    for section in ("breaker", "cache", "payloads", "label_aliases"):
        if getattr(old, section) != getattr(new, section):
            yield f"{section}: changed"


def _named(section: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for word, names in (
        ("added", after.keys() - before.keys()),
        ("removed", before.keys() - after.keys()),
        ("changed", {name for name in after.keys() & before.keys() if after[name] != before[name]}),
    ):
        if names:
            more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
            yield f"{section}: {word} {', '.join(sorted(names)[:_NAMES_MAX])}{more}"


def _differing(old: msgspec.Struct, new: msgspec.Struct, path: str) -> Iterator[str]:
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, msgspec.Struct):
            yield from _differing(before, after, f"{path}.{name}")
        elif before != after:
            yield f"{path}.{name}"

"""What a LiteLLM configuration takes from elsewhere: files under `include`, and the environment that it sets itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias  # a foreign file holds anything

from controlplane.errors import ConfigError

FILES_MAX = 100
Read: TypeAlias = Callable[[str, str], tuple[str, dict[str, Any]]]
"""A file as it is named in another, and that other; where it is, and what is in it."""


def with_includes(document: dict[str, Any], file: str, read: Read) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The document with what its `include` names, and where those files are.

    As there: lists grow, everything else is replaced; a file that was read already is not read again. Raises what `read` raises, and
    ConfigError for more than FILES_MAX files.
    """
    merged = {key: value for key, value in document.items() if key != "include"}
    waiting = [(name, file) for name in _names(document)]
    found: list[str] = []
    while waiting:
        name, named_in = waiting.pop(0)
        place, content = read(name, named_in)
        if place in (file, *found):
            continue
        found.append(place)
        if len(found) > FILES_MAX:
            raise ConfigError.at(file, f"it includes more than {FILES_MAX} files")
        waiting[:0] = [(inner, place) for inner in _names(content)]
        for key, value in content.items():
            known = merged.get(key)
            if key != "include":
                merged[key] = [*known, *value] if isinstance(known, list) and isinstance(value, list) else value
    return merged, tuple(found)


def _names(document: Mapping[str, object]) -> list[str]:
    names = document.get("include")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def with_its_environment(document: Mapping[str, object], environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment as LiteLLM would see it: with what the file sets itself."""
    own = document.get("environment_variables")
    if not isinstance(own, dict):
        return environ
    return {**environ, **{str(name): str(value) for name, value in own.items() if isinstance(value, str | int)}}


def name_the_redis(document: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Writes down what LiteLLM takes for granted of a cache that names no Redis: that it is one, and the variables that say where."""
    settings = document.get("litellm_settings")
    if not isinstance(settings, dict) or settings.get("cache") is not True:
        return
    params = settings.setdefault("cache_params", {"type": "redis"})
    if params in (None, {}):
        params = settings["cache_params"] = {"type": "redis"}
    if not isinstance(params, dict) or params.get("type") != "redis":
        return
    if any(params.get(name) for name in ("host", "url", "sentinel_nodes", "redis_startup_nodes")):
        return
    known = [name for name in ("url", "host", "port", "password") if f"REDIS_{name.upper()}" in environ]
    for name in known[:1] if known[:1] == ["url"] else {"host", *known}:
        params.setdefault(name, f"os.environ/REDIS_{name.upper()}")

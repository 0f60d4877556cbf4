"""Addresses that a LiteLLM configuration takes from the environment: ours are written down, so what the environment says now is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from controlplane.catalog.from_litellm_models import ENVIRON

_OF_MODELS = ("api_base", "base_url")
_OF_REDIS = ("host", "port", "url")
_OF_ROUTER = tuple(f"redis_{name}" for name in _OF_REDIS)
_MODELS_MAX = 10_000


def settle_addresses(document: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Writes addresses that the environment knows into the document; where each stands, with its variable and its value.

    An address with a password in it stays a reference, for secrets are never copied.
    """
    found: dict[str, tuple[str, str]] = {}
    for place, section, names in _sections(document):
        for name in names:
            value = section.get(name)
            if not isinstance(value, str) or not value.startswith(ENVIRON):
                continue
            variable = value.removeprefix(ENVIRON)
            address = environ.get(variable, "")
            if address and "@" not in address:
                section[name] = address
                found[f"{place}.{name}"] = (variable, address)
    return found


def _sections(
    document: Mapping[str, object],
) -> Iterator[tuple[str, MutableMapping[object, object], tuple[str, ...]]]:
    for key, inner in (("model_list", "litellm_params"), ("credential_list", "credential_values")):
        entries = document.get(key)
        for index, entry in enumerate(entries[:_MODELS_MAX] if isinstance(entries, list) else ()):
            section = entry.get(inner) if isinstance(entry, dict) else None
            if isinstance(section, dict):
                yield f"{key}[{index}].{inner}", section, _OF_MODELS
    settings, router = document.get("litellm_settings"), document.get("router_settings")
    cache = settings.get("cache_params") if isinstance(settings, dict) else None
    if isinstance(cache, dict):
        yield "litellm_settings.cache_params", cache, _OF_REDIS
    if isinstance(router, dict):
        yield "router_settings", router, _OF_ROUTER

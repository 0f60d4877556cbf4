"""What an upstream's entry must say besides its fields: an address unless litellm knows it, and options that litellm may be told."""

from __future__ import annotations

import re
from collections.abc import Iterator

from controlplane.catalog.bind import Bound
from controlplane.catalog.file import ConfigFile, Dialect
from controlplane.errors import Problem
from controlplane.secrets import is_reference

_OPTION = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_SECRET = re.compile(r"(?:^|_)(?:key|secret|token|password|credentials?|cert|assertion)(?:_|$)")
_NO_SECRET = frozenset(("aws_access_key_id", "max_tokens"))  # an identity, and a number
# Said elsewhere in this file, or decided by the proxy for each call.
_OURS = {
    "api_base": "`base_url` of the upstream",
    "base_url": "`base_url` of the upstream",
    "api_key": "`credential` of the upstream",
    "model": "`model` of the deployment",
    "timeout": "the time-outs of the upstream",
    "num_retries": "`attempts_max` of the model",
    "max_retries": "`attempts_max` of the model",
    "fallbacks": "`deployments` of the model",
}
_REFUSED = frozenset(
    (
        "callbacks", "cache", "caching", "client", "logger_fn", "messages", "metadata", "mock_response", "no_log", "stream", "stream_options",
        "success_callback", "failure_callback",
    )
)  # fmt: skip


def upstream_problems(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """The mistakes in all upstreams."""
    for u, entry in enumerate(bound.value.upstreams):
        place = ("upstreams", u)
        foreign = entry.dialect is Dialect.LITELLM
        if entry.base_url is None and not foreign and not _is_told(bound, *place, "base_url"):
            yield bound.problem(f"`base_url` is missing in `upstreams[{u}]`", *place)
        if entry.options and not foreign:
            hint = "take them out, or write `dialect: litellm`"
            yield bound.problem("`options` are for `dialect: litellm` alone", *place, "options", hint=hint)
            continue
        for name, value in entry.options.items():
            where = (*place, "options", name)
            if _OPTION.match(name) is None:
                yield bound.problem("the name of an option is in small letters, digits and `_`", *where)
            elif name in _OURS:
                yield bound.problem(f"`{name}` is no option", *where, hint=f"write it as {_OURS[name]}")
            elif name in _REFUSED:
                yield bound.problem(f"`{name}` is no option: the proxy decides it for each call", *where)
            elif _is_secret(name) and not is_reference(value):
                hint = "a secret itself never stands in this file"
                yield bound.problem(f"`{name}` must be a reference, `env:NAME` or `file:/path`", *where, hint=hint)


def _is_told(bound: Bound[ConfigFile], *place: str | int) -> bool:
    """Whether a value was written but could not be read: then it is not missing."""
    return any(problem.line == bound.line(*place) for problem in bound.problems)


def _is_secret(name: str) -> bool:
    return name not in _NO_SECRET and _SECRET.search(name) is not None

"""From the configuration file to a `ConfigFile`, or to every mistake in it with file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

import msgspec

from controlplane.catalog.bind import PROBLEMS_MAX, Bound, bind, nearest
from controlplane.catalog.file import ConfigFile, DeploymentEntry, Dialect
from controlplane.catalog.nodes import BYTES_MAX
from controlplane.catalog.own_prices import price_problems
from controlplane.catalog.quotas import quota_problems
from controlplane.catalog.routing import breaker_problems, routing_problems
from controlplane.catalog.upstreams import upstream_problems
from controlplane.contract.redis_address import parse_redis_address
from controlplane.contract.snapshot import BreakerPolicy
from controlplane.errors import ConfigError, Problem
from controlplane.settings import DECIDED_BY_SERVER, Settings


class Loaded(msgspec.Struct, frozen=True):
    """A file that was accepted. settings: its server section with paths filled in; digest: of its bytes."""

    path: str
    digest: str
    config: ConfigFile
    settings: Settings
    bound: Bound[ConfigFile]


def load(path: Path) -> Loaded:
    """Reads, binds and checks a configuration file; a relative data folder is relative to the working directory.

    Raises ConfigError with all mistakes, or when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        text = data.decode()
    except FileNotFoundError as error:
        raise ConfigError.at(str(path), "there is no such file", hint="name another one with --config") from error
    except OSError as error:
        raise ConfigError.at(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError.at(str(path), "is not UTF-8 text", line=line) from error
    return parse(text, file=str(path))


def parse(text: str, *, file: str) -> Loaded:
    """The same for a text that was read already. Raises ConfigError with all mistakes."""
    bound = bind(text, ConfigFile, file=file)
    found = (*bound.problems, *islice(_consistency(bound), PROBLEMS_MAX))
    problems = sorted(dict.fromkeys(found), key=lambda problem: problem.line)
    if problems:
        raise ConfigError(problems)
    return Loaded(
        path=file,
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        config=bound.value,
        settings=bound.value.server.resolved(),
        bound=bound,
    )


def _consistency(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """What each value alone cannot show: names that occur twice or nowhere, and settings that contradict each other."""
    config = bound.value
    yield from _twice(bound, "upstreams", [entry.name for entry in config.upstreams])
    yield from _twice(bound, "models", [entry.name for entry in config.models])
    yield from _twice(bound, "tenants", [entry.name for entry in config.tenants])
    yield from _twice(bound, "issuers", [entry.name for entry in config.issuers])
    yield from _twice(bound, "alerts", [entry.name for entry in config.alerts])
    yield from upstream_problems(bound)
    yield from _passthrough(bound)
    yield from _deployments(bound)
    yield from _tenants(bound)
    yield from quota_problems(bound, models_sound=_sound(bound, "models"))
    yield from _server(bound)
    yield from _trusted(bound)
    yield from _issuers(bound)
    yield from _breaker(bound)
    yield from breaker_problems(bound)
    yield from routing_problems(bound, sound=_sound(bound, "models"))
    yield from price_problems(bound)


def _twice(bound: Bound[ConfigFile], section: str, names: list[str]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            first = bound.line(section, seen[name], "name")
            yield bound.problem(
                f"`{name}` is there twice in `{section}`", section, index, "name", hint=f"the first is on line {first}"
            )
        seen.setdefault(name, index)


def _deployments(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Deployments that name no upstream, stand twice in a route, or mean two things under one id."""
    upstreams = {entry.name for entry in bound.value.upstreams}
    sound = _sound(bound, "upstreams")
    known: dict[str, tuple[DeploymentEntry, int]] = {}
    for m, model in enumerate(bound.value.models):
        in_route: set[str] = set()
        for d, entry in enumerate(model.deployments):
            place = ("models", m, "deployments", d)
            if sound and entry.upstream not in upstreams:
                hint = nearest(entry.upstream, upstreams) or "add it under `upstreams`"
                yield bound.problem(f"there is no upstream `{entry.upstream}`", *place, "upstream", hint=hint)
            name = entry.deployment_id
            if name in in_route:
                yield bound.problem(
                    f"deployment `{name}` is there twice for `{model.name}`",
                    *place,
                    hint="add the weights, or give one an `id`",
                )
            in_route.add(name)
            first, line = known.setdefault(name, (entry, bound.line(*place)))
            if _identity(first) != _identity(entry):
                hint = f"it is defined differently on line {line}; give one of them an `id`"
                yield bound.problem(f"deployment `{name}` means two different things", *place, hint=hint)


def _passthrough(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Grants of upstreams that are not there, or that have no paths."""
    upstreams = {entry.name: entry for entry in bound.value.upstreams}
    if not _sound(bound, "upstreams"):
        return
    for t, tenant in enumerate(bound.value.tenants):
        for g, grant in enumerate(tenant.passthrough):
            place = ("tenants", t, "passthrough", g, "upstream")
            entry = upstreams.get(grant.upstream)
            if entry is None:
                hint = nearest(grant.upstream, upstreams) or "add it under `upstreams`"
                yield bound.problem(f"there is no upstream `{grant.upstream}`", *place, hint=hint)
            elif entry.dialect is Dialect.LITELLM:
                yield bound.problem(f"upstream `{grant.upstream}` is litellm's, which has no paths of its own", *place)


def _identity(entry: DeploymentEntry) -> tuple[object, ...]:
    """What must be the same wherever a deployment is listed; weight and order belong to the route."""
    return entry.upstream, entry.model, entry.max_output_tokens, entry.price, entry.concurrency


def _tenants(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Tenants that name no model, and budgets that say nothing, two things, or the same thing twice."""
    models = {entry.name for entry in bound.value.models}
    sound = _sound(bound, "models")
    for t, tenant in enumerate(bound.value.tenants):
        for m, name in enumerate(tenant.models or ()):
            if sound and name not in models:
                hint = nearest(name, models) or "add it under `models`"
                yield bound.problem(
                    f"tenant `{tenant.name}` may use `{name}`, but there is no such model",
                    "tenants",
                    t,
                    "models",
                    m,
                    hint=hint,
                )
        seen: set[str] = set()
        for b, budget in enumerate(tenant.budgets):
            place = ("tenants", t, "budgets", b)
            if (budget.usd is None) == (budget.tokens is None) and not _already_told(bound, *place):
                yield bound.problem(
                    f"a budget of tenant `{tenant.name}` needs either `usd` or `tokens`",
                    *place,
                    hint="write two budgets for both",
                )
            elif budget.budget_id in seen:
                yield bound.problem(
                    f"tenant `{tenant.name}` has two budgets `{budget.budget_id}`",
                    *place,
                    hint="keep one, or give one an `id`",
                )
            seen.add(budget.budget_id)


def _server(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Places of the proxy that the server section itself decides, ports that collide, and stores nobody can open."""
    server = bound.value.server
    for name, instead in DECIDED_BY_SERVER.items():
        if ("server", "proxy", name) in bound.lines:
            yield bound.problem(
                f"`server.proxy.{name}` is decided by `server.{instead}`", "server", "proxy", name, hint="set it there"
            )
    if server.port == server.proxy_port != 0:
        yield bound.problem(
            f"`port` and `proxy_port` are both {server.port}", "server", "port", hint="the two planes need a port each"
        )
    for name, url, schemes in (
        ("telemetry", server.telemetry, ("chdb", "clickhouse", "clickhouses")),
        ("journal", server.journal, ("sqlite", "postgresql", "postgresql+psycopg")),
    ):
        if url.partition("://")[0] not in schemes:
            hint = "write it as " + " or ".join(f"`{scheme}://...`" for scheme in schemes[:2])
            yield bound.problem(f"`server.{name}` has an unknown scheme", "server", name, hint=hint)
    if ":" in server.telemetry.partition("://")[2].partition("/")[0].rpartition("@")[0]:
        hint = "write it as `telemetry_password: env:NAME`"
        yield bound.problem("`server.telemetry` holds a password", "server", "telemetry", hint=hint)
    try:
        if server.redis is not None:
            parse_redis_address(server.redis)
    except ValueError as error:
        yield bound.problem(f"`server.redis` {error}", "server", "redis")


def _trusted(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    for index, network in enumerate(bound.value.server.proxy.trusted_proxies):
        try:
            ip_network(network)
        except ValueError:
            place = ("server", "proxy", "trusted_proxies", index)
            yield bound.problem(
                f"`{network[:64]}` is no network", *place, hint="write it as 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32"
            )


def _issuers(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Issuers of tokens for which nobody pays, or whose keys are in two places or nowhere."""
    tenants = {tenant.name for tenant in bound.value.tenants}
    said: set[str] = set()
    for index, entry in enumerate(bound.value.issuers):
        place = ("issuers", index)
        if entry.issuer in said:
            hint = "name all audiences in one entry"
            yield bound.problem(f"two entries are about the issuer `{entry.issuer[:200]}`", *place, "issuer", hint=hint)
        said.add(entry.issuer)
        if (entry.tenant is None) == (entry.tenant_claim is None):
            yield bound.problem("exactly one of `tenant` and `tenant_claim` must be set", *place)
        if entry.tenant is not None and entry.tenant not in tenants and _sound(bound, "tenants"):
            hint = nearest(entry.tenant, tenants) or "add it under `tenants`"
            yield bound.problem(f"there is no tenant `{entry.tenant}`", *place, "tenant", hint=hint)
        if entry.jwks_url is not None and entry.jwks_file is not None:
            yield bound.problem("at most one of `jwks_url` and `jwks_file` can be set", *place, "jwks_file")
        if entry.jwks_url is None and entry.jwks_file is None and not entry.issuer.startswith(("https://", "http://")):
            hint = "set `jwks_url` or `jwks_file`"
            yield bound.problem(f"the keys of `{entry.issuer[:200]}` cannot be found", *place, "issuer", hint=hint)


def _breaker(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Breaker numbers that could never open or never close it; the contract's struct itself carries no bounds."""
    policy: BreakerPolicy = bound.value.breaker
    for name, good, rule in (
        ("window_s", 0 < policy.window_s <= 3600, "more than 0 and at most 3600"),
        ("requests_min", policy.requests_min >= 1, "at least 1"),
        ("error_ratio", 0 < policy.error_ratio <= 1, "more than 0 and at most 1"),
        ("slow_s", policy.slow_s > 0, "more than 0"),
        ("slow_ratio", 0 < policy.slow_ratio <= 1, "more than 0 and at most 1"),
        ("open_s", 0 < policy.open_s <= 3600, "more than 0 and at most 3600"),
        ("probes", policy.probes >= 1, "at least 1"),
    ):
        if not good:
            yield bound.problem(f"`breaker.{name}` must be {rule}", "breaker", name)
    for place, seconds in _ttls(bound.value):
        if not 0 <= seconds <= 31_536_000:
            yield bound.problem("`ttl_s` must be from 0 to a year", *place)
    for place, days in _retentions(bound.value):
        if not 1 <= days <= 3_650:
            yield bound.problem("`retention_days` must be from 1 to 3650", *place)


def _ttls(config: ConfigFile) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield ("cache", "ttl_s"), config.cache.ttl_s
    for t, tenant in enumerate(config.tenants):
        if tenant.cache is not None:
            yield ("tenants", t, "cache", "ttl_s"), tenant.cache.ttl_s


def _retentions(config: ConfigFile) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield ("payloads", "retention_days"), config.payloads.retention_days
    for t, tenant in enumerate(config.tenants):
        if tenant.payloads is not None:
            yield ("tenants", t, "payloads", "retention_days"), tenant.payloads.retention_days


def _already_told(bound: Bound[ConfigFile], *place: str | int) -> bool:
    """Whether an amount of this budget was written but could not be read: then it is not missing."""
    lines = {bound.lines[(*place, unit)] for unit in ("usd", "tokens") if (*place, unit) in bound.lines}
    return any(problem.line in lines for problem in bound.problems)


def _sound(bound: Bound[ConfigFile], section: str) -> bool:
    """Whether a section was bound without a mistake; else what refers to it may mean an entry that was left out."""
    lines = [line for place, line in bound.lines.items() if place and place[0] == section]
    return not lines or not any(min(lines) <= problem.line <= max(lines) for problem in bound.problems)

"""What a valid configuration may still lack: an onboarding lint, with what to do about each finding.

`load` refuses what is wrong; this names what will disappoint: a route with nowhere to fail over to, a model without a price, a tenant
without a budget. Pure but for looking up secrets, which the caller may leave out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from controlplane.catalog.bind import Bound
from controlplane.catalog.compile import Prices, own_entry
from controlplane.catalog.file import ConfigFile, Dialect, ModelEntry
from controlplane.contract.redis_address import parse_redis_address
from controlplane.contract.routing import FallbackKind
from controlplane.contract.snapshot import QuotaScope, Unpriced, Window
from controlplane.errors import SecretUnavailable
from controlplane.secrets import is_reference, resolve

_RENEWAL_SHARE = (
    0.4  # of a lease: from the moment at which it is renewed at the latest to that at which it is not used any more
)
_LEASE_S_MIN = 2.0
_LENGTH_S = {Window.MINUTE: 60.0, Window.HOUR: 3_600.0, Window.DAY: 86_400.0, Window.MONTH: 31 * 86_400.0}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"  # calls will fail
    WARNING = "warning"  # something that was promised will not hold
    ADVICE = "advice"  # it works; it could work better


class Finding(msgspec.Struct, frozen=True):
    """One thing to know about a configuration. rule: a stable name; todo: what to do about it."""

    severity: Severity
    rule: str
    file: str
    line: int
    message: str
    todo: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}: {self.message}; {self.todo} [{self.rule}]"


def check(bound: Bound[ConfigFile], prices: Prices, *, environ: Mapping[str, str] | None = None) -> list[Finding]:
    """All findings, in the order of the file.

    environ: where the `env:` references of this configuration are looked up; None: references are not looked up at all, since they
    are meant for another machine or another user.
    """
    findings = [
        *_routes(bound),
        *_fallbacks(bound),
        *_unpriced(bound, prices),
        *_upstreams(bound),
        *_grants(bound),
        *_unstated(bound),
        *_tenants(bound),
        *_server(bound),
        *_sharing(bound),
    ]
    if environ is not None:
        findings += _secrets(bound, environ)
    return sorted(findings, key=lambda finding: finding.line)


def _finding(
    bound: Bound[ConfigFile], severity: Severity, rule: str, message: str, todo: str, *place: str | int
) -> Finding:
    return Finding(severity, rule, bound.file, bound.line(*place), message, todo)


def _routes(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Nothing to serve, and routes that an outage of one upstream takes down."""
    config = bound.value
    if not config.models:
        yield _finding(
            bound,
            Severity.WARNING,
            "no-models",
            "there are no models, so every call is refused",
            "add one under `models`",
            "models",
        )
    for m, model in enumerate(config.models):
        place = ("models", m)
        if len(model.deployments) == 1 and not model.fallbacks.general:
            todo = "add a second deployment at another upstream"
            yield _finding(
                bound, Severity.WARNING, "no-failover", f"`{model.name}` has nowhere to fail over to", todo, *place
            )
        elif len(model.deployments) > 1 and len({entry.upstream for entry in model.deployments}) == 1:
            message = f"all deployments of `{model.name}` are at one upstream, whose outage takes the model down"
            yield _finding(
                bound, Severity.ADVICE, "one-upstream", message, "add a deployment at another upstream", *place
            )
        if len(model.deployments) > 1 and model.attempts_max == 1:
            message = f"`{model.name}` has several deployments but only one attempt, so no call ever fails over"
            yield _finding(bound, Severity.WARNING, "one-attempt", message, "set `attempts_max` to 2 or more", *place)
        yield from _deadline(bound, model, m)


def _fallbacks(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Fallbacks that a tenant's calls never reach, since it may not use them."""
    config = bound.value
    for t, tenant in enumerate(config.tenants):
        allowed = set(tenant.models or ())
        for model in config.models if tenant.models is not None else ():
            named = {alias for kind in FallbackKind for alias in model.fallbacks.of(kind)}
            if model.name in allowed and named and not named & allowed:
                message = f"tenant `{tenant.name}` may use `{model.name}` but none of its fallbacks"
                todo = "add one to its `models`, since a fallback grants nothing"
                yield _finding(bound, Severity.ADVICE, "fallback-not-allowed", message, todo, "tenants", t, "models")


def _deadline(bound: Bound[ConfigFile], model: ModelEntry, m: int) -> Iterator[Finding]:
    """A first attempt that may use up the whole deadline leaves no time for a second one."""
    upstreams = {entry.name: entry for entry in bound.value.upstreams}
    if len(model.deployments) < 2:
        return
    first = min(model.deployments, key=lambda entry: entry.order)
    wait_s = upstreams[first.upstream].first_byte_timeout_s
    if wait_s >= model.timeout_s:
        message = f"`{model.name}` gives up after {model.timeout_s:g} s, but its upstream may be silent for {wait_s:g} s first"
        todo = f"set `first_byte_timeout_s` of `{first.upstream}` well below `timeout_s`"
        yield _finding(bound, Severity.WARNING, "no-time-to-fail-over", message, todo, "models", m)


def _unpriced(bound: Bound[ConfigFile], prices: Prices) -> Iterator[Finding]:
    """Models without a price, whose calls money budgets do not see."""
    config = bound.value
    refused = any(tenant.unpriced is Unpriced.REFUSE for tenant in config.tenants)
    seen: set[str] = set()
    for m, model in enumerate(config.models):
        for d, entry in enumerate(model.deployments):
            if entry.deployment_id in seen:
                continue
            seen.add(entry.deployment_id)
            place = ("models", m, "deployments", d)
            if own_entry(entry, config.prices) is not None or prices.price(entry.model) is not None:
                continue
            effect = (
                "tenants with `unpriced: refuse` cannot call it" if refused else "its calls count in no money budget"
            )
            todo = f"add `{entry.model}: {{input: ..., output: ...}}` under `prices`, in US dollars per million tokens"
            message = f"there is no price for `{entry.deployment_id}`, so {effect}"
            yield _finding(bound, Severity.WARNING, "unpriced", message, todo, *place)


def _upstreams(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Upstreams nobody uses, keys that travel in the clear, and addresses that lack their `/v1`."""
    config = bound.value
    used = {entry.upstream for model in config.models for entry in model.deployments}
    used |= {grant.upstream for tenant in config.tenants for grant in tenant.passthrough}
    for u, upstream in enumerate(config.upstreams):
        place = ("upstreams", u)
        if upstream.name not in used:
            yield _finding(
                bound,
                Severity.ADVICE,
                "unused-upstream",
                f"no model uses `{upstream.name}`",
                "use it, or remove it",
                *place,
            )
        if upstream.base_url is None:
            continue
        parts = urlsplit(upstream.base_url)
        local = (parts.hostname or "") in _LOOPBACK
        if (parts.hostname or "").endswith(".invalid"):
            message = f"`base_url` of `{upstream.name}` only keeps a place: nothing ever answers at `{parts.hostname}`"
            yield _finding(
                bound, Severity.ERROR, "placeholder", message, "write the upstream's address", *place, "base_url"
            )
            continue
        if parts.scheme == "http" and upstream.credential is not None and not local:
            message = f"the credential of `{upstream.name}` travels unencrypted"
            yield _finding(
                bound, Severity.WARNING, "clear-text", message, "use https in `base_url`", *place, "base_url"
            )
        if upstream.credential is None and not local:
            message = f"`{upstream.name}` has no credential"
            yield _finding(
                bound, Severity.ADVICE, "no-credential", message, "add `credential: env:NAME` if it wants one", *place
            )
        if upstream.dialect is Dialect.OPENAI and not parts.path.strip("/"):
            message = f"`base_url` of `{upstream.name}` has no path, and `/chat/completions` is put right behind it"
            yield _finding(
                bound,
                Severity.WARNING,
                "no-v1",
                message,
                "most providers want it to end with `/v1`",
                *place,
                "base_url",
            )
        if upstream.dialect is Dialect.ANTHROPIC and parts.path.rstrip("/").endswith("/v1"):
            message = f"`base_url` of `{upstream.name}` ends with `/v1`, and `/v1/messages` is put behind it"
            yield _finding(
                bound,
                Severity.ERROR,
                "v1-twice",
                message,
                "leave `/v1` out, as Anthropic's SDK does",
                *place,
                "base_url",
            )


def _grants(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Passthroughs to everything that a credential opens."""
    for t, tenant in enumerate(bound.value.tenants):
        for g, grant in enumerate(tenant.passthrough):
            if not grant.paths:
                message = f"`{tenant.name}` may ask `{grant.upstream}` for everything that its credential opens"
                yield _finding(
                    bound, Severity.ADVICE, "open-passthrough", message, "name `paths`", "tenants", t, "passthrough", g
                )


def _unstated(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Passthroughs of tenants with a budget of money that nothing holds against it."""
    stated = {entry.name for entry in bound.value.upstreams if entry.passthrough_usd_per_call is not None}
    for t, tenant in enumerate(bound.value.tenants):
        has_money = any(one.usd is not None for one in tenant.budgets) or any(
            one.usd is not None for one in tenant.quotas
        )
        for g, grant in enumerate(tenant.passthrough if has_money else ()):
            if grant.upstream not in stated:
                message = f"what `{tenant.name}` passes through to `{grant.upstream}` may cost more than is held against its budgets"
                todo = (
                    f"set `passthrough_usd_per_call` of upstream `{grant.upstream}` to the most that one call may cost"
                )
                yield _finding(
                    bound, Severity.ADVICE, "unstated-passthrough", message, todo, "tenants", t, "passthrough", g
                )


def _tenants(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Nobody to serve, and tenants whose spend nothing stops."""
    config = bound.value
    if not config.tenants:
        yield _finding(
            bound,
            Severity.WARNING,
            "no-tenants",
            "there are no tenants, so no key can be made",
            "add one under `tenants`",
            "tenants",
        )
    for t, tenant in enumerate(config.tenants):
        place = ("tenants", t)
        if not tenant.budgets and tenant.limits.tokens_per_minute is None:
            message = f"nothing bounds what `{tenant.name}` can spend"
            yield _finding(
                bound, Severity.ADVICE, "no-budget", message, "add `budgets: [{usd: 50, window: month}]`", *place
            )
        if tenant.models == ():
            message = f"`{tenant.name}` may use no model"
            yield _finding(
                bound,
                Severity.WARNING,
                "no-models-allowed",
                message,
                "list models, or leave `models` out for all",
                *place,
            )
        total = [budget.usd for budget in tenant.budgets if budget.window is Window.TOTAL and budget.usd is not None]
        for b, budget in enumerate(tenant.budgets):
            if budget.usd == 0 or (total and budget.usd is not None and budget.usd > min(total)):
                message = f"budget `{budget.budget_id}` of `{tenant.name}` " + (
                    "is nothing" if budget.usd == 0 else "is more than its total"
                )
                yield _finding(
                    bound, Severity.WARNING, "odd-budget", message, "is the amount right?", *place, "budgets", b
                )


def _server(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Doors that stand open."""
    server = bound.value.server
    if server.door.enabled and server.host not in _LOOPBACK and server.door.password is None:
        message = "the ClickHouse door has no password, so it answers on the loopback address only"
        yield _finding(
            bound, Severity.ADVICE, "door-password", message, "set `server.door.password: env:NAME`", "server", "door"
        )
    if server.redis is None and server.workers * server.proxy.hosts > 1:
        who = f"{server.workers} workers" if server.workers > 1 else "workers"
        who += f" on {server.proxy.hosts} hosts" if server.proxy.hosts > 1 else ""
        message = (
            f"without Redis {who} split every limit and quota, and share neither stored answers nor calls in flight"
        )
        todo = "set `server.redis` to share them"
        yield _finding(bound, Severity.ADVICE, "no-redis", message, todo, "server", "workers")
    if server.redis is not None and server.redis_password is not None:
        address = parse_redis_address(server.redis)
        if not address.tls and address.host and address.host not in _LOOPBACK:
            message, todo = "the password of Redis travels unencrypted", "use `rediss://` in `server.redis`"
            yield _finding(bound, Severity.WARNING, "clear-text", message, todo, "server", "redis")


def _sharing(bound: Bound[ConfigFile]) -> Iterator[Finding]:
    """Settings that together make untrue how much more than a limit can be spent."""
    server = bound.value.server
    proxy, workers = server.proxy, server.workers * server.proxy.hosts
    if server.redis is None:
        yield from _without_part(bound, workers)
    else:
        if proxy.redis_timeout_s > _RENEWAL_SHARE * proxy.quota_lease_s:
            message = (
                f"`redis_timeout_s` of {proxy.redis_timeout_s:g} s is more than {_RENEWAL_SHARE:g} of `quota_lease_s`, so "
                "slices of limits can end before a slow Redis has renewed them, and each worker goes on with its part"
            )
            todo = f"set it to {_RENEWAL_SHARE * proxy.quota_lease_s:g} or less, or `quota_lease_s` to more"
            yield _finding(
                bound, Severity.WARNING, "lease-too-short", message, todo, "server", "proxy", "redis_timeout_s"
            )
        if proxy.hosts > 1 and proxy.quota_lease_s < _LEASE_S_MIN:
            message = "`quota_lease_s` is hardly longer than the clocks of hosts may differ"
            todo = f"set it to {_LEASE_S_MIN:g} or more"
            yield _finding(
                bound, Severity.WARNING, "lease-below-clocks", message, todo, "server", "proxy", "quota_lease_s"
            )
    for t, tenant in enumerate(bound.value.tenants):
        for q, quota in enumerate(tenant.quotas):
            length_s = 0.0 if quota.window is None else _LENGTH_S.get(quota.window, math.inf)
            if quota.per is not QuotaScope.TENANT and length_s > proxy.quota_idle_s:
                message = (
                    f"quota `{quota.quota_id}` of tenant `{tenant.name}` counts for longer than `server.proxy.quota_idle_s`: when "
                    f"there are more than {proxy.quota_instances_max:,} of its {quota.per}s, what an idle one had spent is forgotten"
                )
                todo = (
                    "set `quota_idle_s` to the length of the window, or `quota_instances_max` to more than there can be"
                )
                yield _finding(bound, Severity.ADVICE, "quota-forgotten", message, todo, "tenants", t, "quotas", q)


def _without_part(bound: Bound[ConfigFile], workers: int) -> Iterator[Finding]:
    """Limits of which, divided among workers, some have nothing."""
    for t, tenant in enumerate(bound.value.tenants):
        limits = (
            ("requests_per_minute", tenant.limits.requests_per_minute),
            ("concurrency", tenant.limits.concurrency),
        )
        for name, limit in limits:
            if limit is not None and 0 < limit < workers:
                message = f"tenant `{tenant.name}` has {name} {limit}, and {workers} workers divide it, so that some refuse all"
                todo = "set `server.redis`, raise the limit, or run fewer workers"
                yield _finding(
                    bound, Severity.WARNING, "limit-below-workers", message, todo, "tenants", t, "limits", name
                )


def _secrets(bound: Bound[ConfigFile], environ: Mapping[str, str]) -> Iterator[Finding]:
    """References that cannot be resolved here."""
    config = bound.value
    references: list[tuple[str, tuple[str | int, ...]]] = [
        (entry.credential, ("upstreams", u, "credential"))
        for u, entry in enumerate(config.upstreams)
        if entry.credential
    ]
    references += [
        (value, ("upstreams", u, "options", name))
        for u, entry in enumerate(config.upstreams)
        for name, value in entry.options.items()
        if is_reference(value)
    ]
    references += [(entry.secret, ("alerts", a, "secret")) for a, entry in enumerate(config.alerts) if entry.secret]
    if config.server.door.password:
        references.append((config.server.door.password, ("server", "door", "password")))
    if config.server.telemetry_password:
        references.append((config.server.telemetry_password, ("server", "telemetry_password")))
    if config.server.redis_password:
        references.append((config.server.redis_password, ("server", "redis_password")))
    for reference, place in references:
        try:
            resolve(reference, environ)
        except SecretUnavailable as error:
            yield _finding(bound, Severity.ERROR, "secret", error.message, "calls that need it will fail", *place)

"""A snapshot compiled for look-ups. Immutable: a new snapshot makes a new Runtime, swapped by one assignment; a call keeps the one it began with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from controlplane.contract.pricing import Dearest, dearest_of
from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Concurrency, RetryRule, Strategy, rules_of
from controlplane.contract.snapshot import (
    Deployment,
    KeyEntry,
    Lease,
    LeaseKind,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from proxy.dialects.dialect import Dialect
from proxy.dialects.hosted_tools import always_searches
from proxy.dialects.operations import OPERATIONS
from proxy.dialects.passthrough import PassthroughDialect
from proxy.wires import Wire, default_header, fixed_lines, wires_of

_ALL_OPERATIONS = frozenset(OPERATIONS)
_FLAGS: Mapping[str, bool] = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """Who calls: the tenant and the key, found by one look-up of the key's hash."""

    tenant: TenantPolicy
    key: KeyEntry
    models: frozenset[str] | None  # aliases both tenant and key allow; None: all


@dataclass(frozen=True, slots=True)
class Foreign:
    """What litellm must know of an upstream; never shown, for it holds secrets.

    secrets: what must not stand in any message.
    """

    api_key: str = field(default="", repr=False)
    api_base: str = ""
    options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an upstream listens and how each request to it begins.

    wires: by operation, how it is asked for there; an operation that is not among them, it does not serve.
    missing: the credential reference that could not be resolved; empty if there is nothing to miss.
    foreign: for litellm; None: we speak to it ourselves.
    """

    host: str
    port: int
    tls: bool
    wires: Mapping[str, Wire] = field(repr=False)
    missing: str = ""
    foreign: Foreign | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment ready to be tried."""

    deployment: Deployment
    upstream: Upstream
    lease: Lease | None  # a DRAIN or SHARE override; the route stage checks its expiry for each call
    endpoint: Endpoint | None = None
    measured: bool = False  # calls in flight and latencies are counted, since a route or a limit needs them
    searches: bool = False  # its model searches the web for every answer, and does not say so
    dearest: Dearest | None = None  # of its price, where tokens are all that a call of text is ever billed there


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route with its candidates in groups of equal `order`, smallest first.

    plain: all candidates in order, where neither weights nor leases leave anything to decide; otherwise None.
    rules: what is done about each class of failure.
    serves: operations that every candidate serves. narrowed: for operations that only some serve, the entry with those.
    """

    route: Route
    groups: tuple[tuple[Candidate, ...], ...]
    plain: tuple[Candidate, ...] | None = None
    serves: frozenset[str] = _ALL_OPERATIONS
    narrowed: Mapping[str, RouteEntry] = field(default_factory=dict)
    rules: Mapping[AttemptError, RetryRule] = field(default_factory=rules_of)
    spares: tuple[Candidate, ...] = ()  # of the models that it falls back to, but for those of the budget
    shadow: Candidate | None = None


@dataclass(frozen=True, slots=True)
class Door:
    """An upstream as calls meet it that are passed through.

    lines: headers of every request, credential included, so they are never shown. default: a header for clients that do not send it.
    deployments: by the upstream's name of their model, with an alias.
    """

    upstream: Upstream
    endpoint: Endpoint
    base_path: bytes
    lines: bytes = field(repr=False)
    default: tuple[bytes, bytes] | None
    dialect: Dialect
    deployments: Mapping[str, tuple[str, Deployment]]


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the stages look things up in."""

    snapshot: Snapshot
    keys: Mapping[str, KeyIdentity]  # by key hash
    routes: Mapping[str, RouteEntry]  # by alias
    doors: Mapping[str, Door] = field(default_factory=dict)  # by upstream
    measured: Mapping[str, Concurrency | None] = field(
        default_factory=dict
    )  # deployments whose load is kept, with limits

    @property
    def version(self) -> int:
        """The snapshot's version."""
        return self.snapshot.version

    @property
    def missing_credentials(self) -> tuple[str, ...]:
        """A sentence for each upstream whose credential is not there, for the log."""
        endpoints = {
            candidate.upstream.id: candidate.endpoint
            for entry in self.routes.values()
            for group in entry.groups
            for candidate in group
        }
        return tuple(f"{name}: {end.missing}" for name, end in sorted(endpoints.items()) if end and end.missing)


def compile_runtime(snapshot: Snapshot, environ: Mapping[str, str]) -> Runtime:
    """The snapshot as look-up tables, with credentials resolved from this process's environment and files.

    A credential that is missing makes its deployments fail with a clear refusal; it never stops the others.
    """
    tenants = {tenant.id: tenant for tenant in snapshot.tenants}
    keys = {key.hash: identity_of(tenants[key.tenant], key) for key in snapshot.keys if key.tenant in tenants}
    endpoints = {upstream.id: _endpoint(upstream, environ) for upstream in snapshot.upstreams}
    upstreams = {upstream.id: upstream for upstream in snapshot.upstreams}
    leases = _leases(snapshot.leases)
    measured = _measured(snapshot.routes)
    routes: dict[str, RouteEntry] = {}
    for route in snapshot.routes:
        candidates = [
            Candidate(
                item,
                upstreams[item.upstream],
                leases.get(item.id),
                endpoints[item.upstream],
                item.id in measured,
                always_searches(item.model),
                _dearest_of(item),
            )
            for item in route.deployments
            if item.upstream in upstreams
        ]
        rules = rules_of(route.retries, snapshot.retries)
        routes[route.alias] = replace(_entry(route, candidates), rules=rules)
    routes = {alias: _joined(entry, routes) for alias, entry in routes.items()}
    doors = {
        upstream.id: _door(upstream, endpoints[upstream.id], environ, snapshot.routes)
        for upstream in snapshot.upstreams
        if upstream.dialect != "litellm"
    }
    return Runtime(snapshot=snapshot, keys=keys, routes=routes, measured=measured, doors=doors)


def _dearest_of(deployment: Deployment) -> Dearest | None:
    """The dearest tokens of a deployment whose price is the same for calls of every length and service class."""
    price = deployment.price
    if price is None or price.long or price.service or always_searches(deployment.model):
        return None
    return dearest_of(price)


def _door(upstream: Upstream, endpoint: Endpoint, environ: Mapping[str, str], routes: Iterable[Route]) -> Door:
    deployments: dict[str, tuple[str, Deployment]] = {}
    for route in routes:
        for deployment in route.deployments:
            if deployment.upstream == upstream.id:
                deployments.setdefault(deployment.model, (route.alias, deployment))
    return Door(
        upstream=upstream,
        endpoint=endpoint,
        base_path=urlsplit(upstream.base_url).path.rstrip("/").encode("latin-1"),
        lines=fixed_lines(upstream, _credential(upstream.credential, environ)[0]),
        default=default_header(upstream.dialect),
        dialect=PassthroughDialect(upstream.dialect),
        deployments=deployments,
    )


def _measured(routes: tuple[Route, ...]) -> dict[str, Concurrency | None]:
    """The deployments whose load somebody asks for."""
    asking = (Strategy.LEAST_BUSY, Strategy.LOWEST_LATENCY)
    return {
        item.id: item.concurrency
        for route in routes
        for item in route.deployments
        if item.concurrency is not None or route.hedge is not None or route.strategy in asking
    }


def _joined(entry: RouteEntry, routes: Mapping[str, RouteEntry]) -> RouteEntry:
    """The entry with what other routes have of it: where it falls back to, and its shadow."""
    route = entry.route
    named = (*route.fallbacks.general, *route.fallbacks.context_window, *route.fallbacks.content_policy)
    others = [routes[alias] for alias in dict.fromkeys(named) if alias in routes]
    spares = tuple(item for other in others for group in other.groups for item in group)
    shadow = None
    if route.shadow is not None:
        all_items = (item for other in routes.values() for group in other.groups for item in group)
        shadow = next((item for item in all_items if item.deployment.id == route.shadow.deployment), None)
    if not spares and shadow is None and not entry.narrowed:
        return entry
    narrowed = {
        name: replace(item, rules=entry.rules, spares=spares, shadow=shadow) for name, item in entry.narrowed.items()
    }
    return replace(entry, spares=spares, shadow=shadow, narrowed=narrowed)


def identity_of(tenant: TenantPolicy, key: KeyEntry) -> KeyIdentity:
    """Who calls with a key of a tenant."""
    if tenant.models is None:
        models = None if key.models is None else frozenset(key.models)
    else:
        models = frozenset(tenant.models) if key.models is None else frozenset(tenant.models) & frozenset(key.models)
    return KeyIdentity(tenant=tenant, key=key, models=models)


def _leases(leases: tuple[Lease, ...]) -> dict[str, Lease]:
    """The lease that counts for each deployment: a drain before a share, then the one that lasts longest."""
    strongest: dict[str, Lease] = {}
    for lease in sorted(leases, key=lambda lease: (lease.kind is LeaseKind.DRAIN, lease.expires_us)):
        strongest[lease.deployment] = lease
    return strongest


def _entry(route: Route, candidates: list[Candidate]) -> RouteEntry:
    served = [frozenset(() if item.endpoint is None else item.endpoint.wires) for item in candidates]
    by_all = frozenset.intersection(*served) if served else frozenset()
    narrowed = {
        operation: _grouped(route, [item for item, its in zip(candidates, served, strict=True) if operation in its])
        for operation in frozenset().union(*served) - by_all
    }
    return replace(_grouped(route, candidates), serves=by_all, narrowed=narrowed)


def _grouped(route: Route, candidates: list[Candidate]) -> RouteEntry:
    orders = sorted({candidate.deployment.order for candidate in candidates})
    groups = tuple(tuple(item for item in candidates if item.deployment.order == order) for order in orders)
    ordered = route.strategy is Strategy.ORDERED
    simple = all((ordered or len(group) == 1) and all(item.lease is None for item in group) for group in groups)
    simple = simple and route.canary is None and route.affinity is None
    plain = tuple(candidate for group in groups for candidate in group) if simple else None
    return RouteEntry(route, groups, plain=plain)


def _endpoint(upstream: Upstream, environ: Mapping[str, str]) -> Endpoint:
    url = urlsplit(upstream.base_url)
    tls = url.scheme == "https"
    credential, missing = _credential(upstream.credential, environ)
    wires = wires_of(upstream, credential)
    if upstream.dialect == "litellm":
        foreign, lacking = _foreign(upstream, credential, environ)
        return Endpoint("", 0, tls=True, wires=wires, missing=missing or lacking, foreign=foreign)
    return Endpoint(
        host=url.hostname or "", port=url.port or (443 if tls else 80), tls=tls, wires=wires, missing=missing
    )


def _foreign(upstream: Upstream, credential: str, environ: Mapping[str, str]) -> tuple[Foreign, str]:
    """An upstream as litellm must know it, and what is missing if a reference cannot be had."""
    options: dict[str, str | bool] = {}
    secrets = [credential] if credential else []
    lacking = ""
    for name, said in upstream.options.items():
        value = said
        if said.startswith("env:"):
            value = environ.get(said[4:], "").strip()
        elif said.startswith("file:"):
            value = _text_of(said[5:])
        if value != said:
            secrets += [value, *value.split()]
            lacking = lacking or ("" if value else f"option {name}: {said} is not there")
        options[name] = _FLAGS.get(value, value)
    return Foreign(credential, upstream.base_url, options, tuple(secrets)), lacking


def _text_of(path: str) -> str:
    """A file's text; "" if it cannot be had."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _credential(reference: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """The secret behind a reference, and what is missing if it cannot be had."""
    if reference is None:
        return "", ""
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = environ.get(name, "").strip()
        return (value, "") if _is_header_safe(value) else ("", f"set the environment variable {name}")
    if kind == "file":
        try:
            value = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            value = ""
        return (value, "") if _is_header_safe(value) else ("", f"put the credential into the file {name}")
    return "", f"write the credential as env:NAME or file:/path, not as `{kind}:`"


def _is_header_safe(value: str) -> bool:
    """Whether a credential can stand in a header: there, and printable ASCII."""
    return bool(value) and value.isascii() and value.isprintable()

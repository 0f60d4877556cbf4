"""A LiteLLM proxy's `config.yaml` as a configuration of ours: what was mapped, what was approximated, and what was refused, with the reason.

A reader of the common subset: models, router, cache, fallbacks and budgets. Whatever else stands in the file is told as refused, so
that nobody believes it is in force. Secrets are never copied: `os.environ/NAME` becomes `env:NAME`, and a secret that stands in the file
becomes a reference that the operator has to fill.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType, NoneType

import msgspec
import yaml

from controlplane.catalog.from_litellm_addresses import settle_addresses
from controlplane.catalog.from_litellm_files import Read, name_the_redis, with_includes, with_its_environment
from controlplane.catalog.from_litellm_models import (
    ENVIRON,
    TIMEOUT_S_MAX,
    WHOLE_CALL,
    Deployment,
    Document,
    Object,
    deployment_of,
    name_of,
    plain,
    seconds_of,
)
from controlplane.catalog.from_litellm_reasons import NOT_SERVED, NOT_SERVED_REASON, STRANGE, reason_of
from controlplane.catalog.from_litellm_redis import address_of
from controlplane.catalog.from_litellm_shares import share_out
from controlplane.errors import ConfigError

BYTES_MAX = 4 * 1024 * 1024
MODELS_MAX = 10_000
_STRATEGIES = {
    "simple-shuffle": "weighted",
    "least-busy": "least_busy",
    "latency-based-routing": "lowest_latency",
    "cost-based-routing": "cheapest",
}
_NEAR_STRATEGIES = {
    "usage-based-routing": ("least_busy", "calls in flight stand for tokens used"),
    "usage-based-routing-v2": ("least_busy", "calls in flight stand for tokens used"),
}
_FALLBACKS = {
    "fallbacks": "general",
    "context_window_fallbacks": "context_window",
    "content_policy_fallbacks": "content_policy",
}
_WINDOWS = ((3_600, "hour"), (86_400, "day"), (30 * 86_400, "month"))
_TTL_S_MAX = 365 * 86_400
_TENANT = "default"
_NEARER = "no model is left for it: each has its own, or that of `router_settings`"
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class Fate(StrEnum):
    """What became of a setting."""

    MAPPED = "mapped"
    APPROXIMATED = "approximated"
    REFUSED = "refused"


class Line(msgspec.Struct, frozen=True):
    """One setting of theirs. place: where it stands; ours: what it became; reason: why not more."""

    fate: Fate
    place: str
    ours: str = ""
    reason: str = ""


class Imported(msgspec.Struct, frozen=True):
    """A configuration of ours as YAML, and what became of each setting of theirs."""

    text: str
    lines: tuple[Line, ...]


def import_litellm(
    text: str, *, file: str, environ: Mapping[str, str] = NO_ENVIRONMENT, text_of: Callable[[str], str] | None = None
) -> Imported:
    """The configuration that comes nearest. environ: what addresses that stand in the environment are; secrets are never read there.

    text_of: reads a file that this one includes; without it such files are told as not read.
    Raises ConfigError if the text is no YAML mapping with a list of models, or too large, and what `text_of` raises.
    """
    document = _mapping(text, file)
    if not isinstance(document.get("model_list", []), list | NoneType):
        raise ConfigError.at(file, "the file is not a LiteLLM configuration: it has no list `model_list:`")
    if not document:
        raise ConfigError.at(file, "the file is empty")
    included: tuple[str, ...] = ()
    if text_of is not None:
        document, included = with_includes(document, file, _reader(text_of))
    environ = with_its_environment(document, environ)
    name_the_redis(document, environ)
    settled = settle_addresses(document, environ)
    found = _Import(Document(document)).result()
    lines = [Line(Fate.MAPPED, "include", f"read with the rest: {place}") for place in included]
    lines += [line for line in found.lines if line.place not in settled or line.fate is not Fate.MAPPED]
    lines += [
        Line(
            Fate.APPROXIMATED,
            place,
            address,
            f"what `{variable}` says now; an address cannot come from the environment",
        )
        for place, (variable, address) in settled.items()
    ]
    return msgspec.structs.replace(found, lines=tuple(lines))


def _reader(text_of: Callable[[str], str]) -> Read:
    def read(name: str, named_in: str) -> tuple[str, Object]:
        place = str(Path(named_in).parent / name)
        return place, _mapping(text_of(place), place)

    return read


def _mapping(text: str, file: str) -> Object:
    """What a file says. Raises ConfigError for what is too large, no YAML or no mapping."""
    if len(text) > BYTES_MAX:
        raise ConfigError.at(file, f"the file is larger than {BYTES_MAX} bytes")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError.at(file, f"the file is not YAML: {_said(error)}") from error
    if not isinstance(document, dict):
        raise ConfigError.at(file, "the file is not a LiteLLM configuration: it has no list `model_list:`")
    return {str(key): value for key, value in document.items()}


def _said(error: yaml.YAMLError | RecursionError | ValueError) -> str:
    """What is wrong and where, without what stands there, for that may be a secret."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _Import:
    """One walk over one document; whatever was not looked at by its end is refused."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._lines: list[Line] = []
        self._upstreams: dict[str, Object] = {}
        self._models: dict[str, Object] = {}
        self._identities: dict[str, Object] = {}  # what a deployment's id means, in whichever model it stands
        self._rows: dict[str, list[tuple[str, Object, dict[str, float]]]] = {}
        self._server: Object = {}
        self._rest: Object = {}

    def result(self) -> Imported:
        self._read_models()
        self._read_router()
        self._read_fallbacks()
        self._read_cache()
        router = self._document.inner("router_settings")
        if "redis" not in self._server and (router.has("redis_host") or router.has("redis_url")):
            self._read_redis(router, "router_settings", prefix="redis_")
        self._read_budget()
        self._read_operation()
        self._lines += [Line(Fate.REFUSED, place, reason=reason_of(place)) for place in self._document.unread()]
        self._lines += [Line(Fate.REFUSED, place, reason=STRANGE) for place in self._document.strange()]
        whole: Object = {"server": self._server} if self._server else {}
        whole |= {"upstreams": list(self._upstreams.values()), "models": list(self._models.values())}
        whole |= {"tenants": [{"name": _TENANT, **self._rest.pop("tenant", {})}], **self._rest}
        return Imported(yaml.safe_dump(whole, sort_keys=False, width=120), tuple(self._lines))

    def _mapped(self, place: str, ours: str) -> None:
        self._lines.append(Line(Fate.MAPPED, place, ours))

    def _near(self, place: str, ours: str, reason: str) -> None:
        self._lines.append(Line(Fate.APPROXIMATED, place, ours, reason))

    def _refused(self, place: str, reason: str) -> None:
        self._lines.append(Line(Fate.REFUSED, place, reason=reason))

    def _read_models(self) -> None:
        credentials = self._credentials()
        for place, entry in self._document.take_list("model_list", MODELS_MAX):
            alias = entry.take_text("model_name")
            if alias is None or "*" in alias:
                self._refused(f"{place}.model_name", "a model is asked for by its name; wildcards have no route here")
                entry.close()
                continue
            mode = entry.inner("model_info").take_text("mode") or ""
            if mode in NOT_SERVED:
                self._refused(f"{place}.model_info.mode", NOT_SERVED_REASON)
                entry.close()
                continue
            entry.inner("litellm_params").lend(credentials, by="litellm_credential_name")
            found = deployment_of(entry, place, mode=mode)
            self._lines += [Line(Fate(fate), at, ours, reason) for fate, at, ours, reason in found.lines]
            if found.upstream is None:
                continue
            self._join(place, alias, found)
        strategy = self._document.inner("router_settings").take("routing_strategy")
        for rows in self._rows.values():
            told = share_out(rows, shuffled=strategy in (None, "simple-shuffle"))
            self._lines += [Line(Fate(fate), at, ours, reason) for fate, at, ours, reason in told]

    def _credentials(self) -> dict[str, Object]:
        """What `credential_list` lends to the models that name it."""
        found: dict[str, Object] = {}
        for place, entry in self._document.take_list("credential_list", MODELS_MAX):
            name, values = entry.take_text("credential_name"), entry.take("credential_values")
            if name is not None and isinstance(values, dict):
                found[name] = {str(key): value for key, value in values.items()}
                self._mapped(place, f"what models take from `{name}`")
                entry.close()
        return found

    def _join(self, place: str, alias: str, found: Deployment) -> None:
        upstream = self._named(found)
        name = name_of(alias)
        if name != alias:
            self._near(f"{place}.model_name", name, "a name has letters, digits and `. _ : @ / + -`")
        model = self._models.setdefault(name, {"name": name, "deployments": []})
        entry = {"upstream": upstream, **found.entry}
        self._identify(entry, model)
        model["deployments"].append(entry)
        self._rows.setdefault(name, []).append((place, entry, found.figures))
        if found.timeout_s is not None:
            model["timeout_s"] = max(found.timeout_s, model.get("timeout_s", 0.0))
        self._mapped(place, f"models `{name}` -> `{entry.get('id') or upstream + '/' + entry['model']}`")

    def _identify(self, entry: Object, model: Object) -> None:
        """Gives a deployment an id of its own where its usual one stands in this model already, or means another elsewhere."""
        usual = f"{entry['upstream']}/{entry['model']}"
        base = str(entry.get("id") or usual)
        meant = {key: value for key, value in entry.items() if key not in ("id", "order")}
        taken = {one.get("id") or f"{one['upstream']}/{one['model']}" for one in model["deployments"]}
        for number in range(1, len(self._identities) + len(taken) + 2):
            name = base if number == 1 else f"{base[:120]}/{number}"
            if name not in taken and self._identities.setdefault(name, meant) == meant:
                break
        if name != usual:
            entry["id"] = name

    def _named(self, found: Deployment) -> str:
        """The name of an upstream that is as wanted, made if there is none yet."""
        wanted = found.upstream or {}
        base = str(wanted["name"])
        for number in range(1, len(self._upstreams) + 2):
            name = base if number == 1 else f"{base}-{number}"
            known = self._upstreams.setdefault(name, {**wanted, "name": name})
            if known == {**wanted, "name": name}:
                return name
        raise AssertionError("there is always a free name")

    def _read_router(self) -> None:
        for section in ("router_settings", "litellm_settings"):
            settings, place = self._document.inner(section), section
            self._read_strategy(settings, place)
            retries = settings.take_number("num_retries")
            if retries is not None:
                tries = max(1, min(20, int(retries) + 1))
                if self._for_all("attempts_max", tries, only_unset=True):
                    self._mapped(f"{place}.num_retries", f"attempts_max: {tries}")
                else:
                    self._refused(f"{place}.num_retries", _NEARER)
            for key in ("timeout", "request_timeout"):
                timeout_s = settings.take_number(key)
                if timeout_s is not None and timeout_s > 0:
                    if self._for_all("timeout_s", min(TIMEOUT_S_MAX, timeout_s), only_unset=True):
                        self._near(f"{place}.{key}", f"timeout_s: {timeout_s:g}", WHOLE_CALL)
                    else:
                        self._refused(f"{place}.{key}", _NEARER)
            self._read_breaker(settings, place)
            self._read_aliases(settings, place)

    def _read_strategy(self, settings: Document, place: str) -> None:
        strategy = settings.take_text("routing_strategy")
        if strategy is None:
            return
        if strategy in _STRATEGIES:
            self._for_all("strategy", _STRATEGIES[strategy])
            self._mapped(f"{place}.routing_strategy", f"strategy: {_STRATEGIES[strategy]}")
        elif strategy in _NEAR_STRATEGIES:
            ours, reason = _NEAR_STRATEGIES[strategy]
            self._for_all("strategy", ours)
            self._near(f"{place}.routing_strategy", f"strategy: {ours}", reason)
        else:
            self._refused(f"{place}.routing_strategy", f"there is no strategy like `{strategy[:64]}`")

    def _read_breaker(self, settings: Document, place: str) -> None:
        cooldown_s = settings.take_number("cooldown_time")
        if cooldown_s is not None and cooldown_s > 0:
            self._rest.setdefault("breaker", {})["open_s"] = min(3_600.0, cooldown_s)
            reason = "a breaker is probed after that, and closed when the probes pass"
            self._near(f"{place}.cooldown_time", f"breaker.open_s: {cooldown_s:g}", reason)
        if settings.take("allowed_fails") is not None:
            reason = "a breaker opens by the share of failures; see `breaker` for when"
            self._near(f"{place}.allowed_fails", "breaker", reason)

    def _read_aliases(self, settings: Document, place: str) -> None:
        for alias, target in settings.take_mapping("model_group_alias"):
            hidden = target.get("model") if isinstance(target, Mapping) else target
            model = self._models.get(name_of(str(hidden)))
            if model is None:
                self._refused(f"{place}.model_group_alias.{alias}", f"there is no model `{str(hidden)[:64]}`")
                continue
            self._models[name_of(alias)] = {**copy.deepcopy(model), "name": name_of(alias)}
            self._mapped(f"{place}.model_group_alias.{alias}", f"models `{name_of(alias)}`, with the same deployments")

    def _for_all(self, field: str, value: object, *, only_unset: bool = False) -> bool:
        """Whether any model has it now."""
        chosen = [model for model in self._models.values() if not (only_unset and field in model)]
        for model in chosen:
            model[field] = value
        return bool(chosen)

    def _read_fallbacks(self) -> None:
        for section in ("router_settings", "litellm_settings"):
            settings = self._document.inner(section)
            for theirs, ours in _FALLBACKS.items():
                for alias, targets in settings.take_pairs(theirs):
                    self._add_fallbacks(f"{section}.{theirs}", alias, targets, ours)
            for target in settings.take_texts("default_fallbacks"):
                if name_of(target) not in self._models:
                    self._refused(f"{section}.default_fallbacks", f"there is no model `{target[:64]}`")
                    continue
                for alias in list(self._models):
                    self._add_fallbacks(f"{section}.default_fallbacks", alias, [target], "general", quiet=True)
                self._mapped(f"{section}.default_fallbacks", f"fallbacks.general of all models: {target}")

    def _add_fallbacks(self, place: str, alias: str, targets: object, ours: str, *, quiet: bool = False) -> None:
        names = [name_of(alias)] if alias != "*" else list(self._models)
        wanted = [name_of(_target(each)) for each in targets] if isinstance(targets, list) else []
        known = [target for target in wanted if target in self._models]
        if len(known) < len(wanted) or not wanted or not all(name in self._models for name in names):
            self._refused(f"{place}.{alias}", "it names a model that is not there")
        for name in names:
            if name in self._models:
                own = self._models[name].setdefault("fallbacks", {}).setdefault(ours, [])
                own += [target for target in known if target not in (name, *own)][: 10 - len(own)]
                if not own:
                    del self._models[name]["fallbacks"][ours]
                if not self._models[name]["fallbacks"]:
                    del self._models[name]["fallbacks"]
        if known and not quiet and any(name in self._models for name in names):
            self._mapped(f"{place}.{alias}", f"fallbacks.{ours}: {', '.join(known)}")

    def _read_cache(self) -> None:
        settings = self._document.inner("litellm_settings")
        enabled = settings.take("cache")
        params = settings.inner("cache_params")
        if enabled is not True:
            self._rest["cache"] = {"enabled": False}
            self._mapped("litellm_settings.cache", "cache.enabled: false, as there unless it is switched on")
            return
        cache: Object = {"enabled": True}
        if params.has("mode") and params.take_text("mode") == "default_off":
            cache["enabled"] = False
            reason = "no call can ask for a cache that is off; a tenant may have its own `cache`"
            self._near("litellm_settings.cache_params.mode", "cache.enabled: false", reason)
        kind = params.take_text("type") or "local"
        ttl_s = params.take_number("ttl")
        if ttl_s is not None:
            cache["ttl_s"] = min(_TTL_S_MAX, max(0, int(ttl_s)))
            self._mapped("litellm_settings.cache_params.ttl", f"cache.ttl_s: {cache['ttl_s']}")
        self._rest["cache"] = cache
        place = "litellm_settings.cache_params.type"
        if kind in {"local", "disk"}:
            self._mapped(place, "memory and disk are always there")
        elif kind == "redis":
            self._read_redis(params, "litellm_settings.cache_params")
        else:
            self._refused(place, f"there is no cache like `{kind[:64]}`; exact answers are kept in memory and on disk")
        self._mapped("litellm_settings.cache", f"cache.enabled: {str(cache['enabled']).lower()}")

    def _read_redis(self, params: Document, place: str, *, prefix: str = "") -> None:
        address = address_of(params, prefix=prefix)
        password = params.take(f"{prefix}password")
        if address is None:
            reason = "write the address as `server.redis`; it cannot come from the environment"
            self._refused(f"{place}.{prefix}host", reason)
            return
        self._server["redis"] = address
        self._mapped(f"{place}.{prefix}host", f"server.redis: {address}")
        if password is not None:
            name = str(password).removeprefix(ENVIRON) if str(password).startswith(ENVIRON) else ""
            self._server["redis_password"] = f"env:{name or 'REDIS_PASSWORD'}"
            if name:
                self._mapped(f"{place}.{prefix}password", self._server["redis_password"])
            else:
                self._near(
                    f"{place}.{prefix}password",
                    "env:REDIS_PASSWORD",
                    "a secret is not copied; put it into the environment",
                )

    def _read_budget(self) -> None:
        settings = self._document.inner("litellm_settings")
        amount, duration = settings.take("max_budget"), settings.take_text("budget_duration")
        if amount is None:
            return
        try:
            usd = Decimal(str(amount))
        except InvalidOperation:
            self._refused("litellm_settings.max_budget", "it is no amount")
            return
        if not usd.is_finite() or usd <= 0:
            self._refused("litellm_settings.max_budget", "it is no amount")
            return
        budget: Object = {"usd": plain(usd), "window": "total"}
        place = "litellm_settings.max_budget"
        if duration is None:
            self._mapped(place, f"tenants[0].budgets: {amount} USD in total")
        else:
            length_s = seconds_of(duration) or _WINDOWS[-1][0]
            window_s, window = min(_WINDOWS, key=lambda near: abs(near[0] - length_s))
            share = (usd * window_s / length_s).quantize(Decimal("0.000001"), ROUND_DOWN)
            budget |= {"usd": plain(share), "window": window}
            reason = "windows are those of the calendar, in UTC, and the amount is of the same rate"
            self._near(f"{place}, budget_duration", f"tenants[0].budgets: {budget['usd']} USD a {window}", reason)
        self._rest["tenant"] = {"budgets": [budget]}

    def _read_operation(self) -> None:
        general = self._document.inner("general_settings")
        if general.take("master_key") is not None:
            reason = "make keys with `hephaestus keys create`; the operator's token is made at the first start"
            self._refused("general_settings.master_key", reason)
        for key in ("database_url", "store_model_in_db"):
            if general.take(key) is not None:
                self._refused(f"general_settings.{key}", "records and journal are kept by the control plane itself")


def _target(target: object) -> str:
    """The model of a fallback, which may be written with messages of its own."""
    return str(target.get("model") if isinstance(target, Mapping) else target)


def counted(lines: tuple[Line, ...]) -> Iterator[tuple[Fate, int]]:
    """How many settings met each fate."""
    for fate in Fate:
        yield fate, sum(line.fate is fate for line in lines)

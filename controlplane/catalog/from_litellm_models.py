"""LiteLLM's deployments in our words: providers become upstreams, `litellm_params` become deployments, prices per token become prices per million."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias  # a foreign file holds anything
from urllib.parse import urlsplit

import msgspec

Object: TypeAlias = dict[str, Any]
Told: TypeAlias = tuple[str, str, str, str]
"""Fate, place, ours, reason."""

OPENAI_COMPATIBLE = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "text-completion-openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "together_ai": ("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "perplexity": ("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "hosted_vllm": ("", "HOSTED_VLLM_API_KEY"),
    "litellm_proxy": ("", "LITELLM_PROXY_API_KEY"),
    "custom_openai": ("", "OPENAI_API_KEY"),
}
"""Providers that speak OpenAI's language: base URL, empty where `api_base` must say it, and the usual variable of the key."""

ANTHROPIC = ("https://api.anthropic.com", "ANTHROPIC_API_KEY")
_VENDORS = {"OPENAI_API_KEY": "openai.com", "ANTHROPIC_API_KEY": "anthropic.com"}  # whose own keys are not for others
PLACEHOLDER = "https://example.invalid/v1"  # where an address has to be written; `check-config` knows the domain
_PRICES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_input": "input_cost_per_audio_token",
    "audio_output": "output_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "image_output": "output_cost_per_image_token",
}
_UNITS = {
    "second": ("input_cost_per_second", 1),
    "character": ("input_cost_per_character", 1),
    "picture": ("output_cost_per_image", 1),
    "container": ("code_interpreter_cost_per_session", 1),
    "file_search": ("file_search_cost_per_1k_calls", 1_000),
}
"""What is no token: their names, and of how many the price is."""
_OPTIONS = (
    "api_version", "aws_profile_name", "aws_region_name", "aws_role_name", "aws_session_name", "client_id", "organization", "region_name",
    "tenant_id", "vertex_location", "vertex_project",
)  # fmt: skip
_SECRET_OPTIONS = (
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "azure_ad_token", "client_secret", "vertex_credentials",
)  # fmt: skip
_LONG_THRESHOLDS = (128, 200, 256, 272)  # thousands of tokens above which their prices know another amount
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "mo": 30 * 86_400}
ENVIRON = "os.environ/"
TIMEOUT_S_MAX = 86_400.0
WHOLE_CALL = "it bounds a call with all its tries, not each of them"


class Deployment(msgspec.Struct):
    """One entry of `model_list` in our words; upstream: None if it has no place here."""

    upstream: Object | None
    entry: Object
    lines: list[Told]
    timeout_s: float | None = None
    figures: dict[str, float] = {}  # of how calls are shared out, by name


class Document:
    """A mapping of a foreign file, which knows what of it has been read."""

    def __init__(self, content: Object, place: str = "") -> None:
        self._content = content
        self._place = place
        self._taken: set[str] = set()
        self._inner: dict[str, Document] = {}
        self._lists: list[Document] = []
        self._strange: list[str] = []  # where something else stands than what was looked for

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        return self._content.get(key) is not None

    def take(self, key: str) -> object:
        """A value; None if it is not there."""
        self._taken.add(key)
        value: object = self._content.get(key)
        return value

    def take_text(self, key: str) -> str | None:
        """A text; None if it is not there or none."""
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            self._strange.append(self._path(key))
        return value if isinstance(value, str) else None

    def take_number(self, key: str) -> float | None:
        """A number, which may be written as a text; None if it is not there or none."""
        value = self.take(key)
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        if value is not None:
            self._strange.append(self._path(key))
        return None

    def take_texts(self, key: str) -> list[str]:
        """A list of texts; what is none of them is left out, and told as unread."""
        return [each for each in self._entries(key, str) if isinstance(each, str)]

    def take_mapping(self, key: str) -> list[tuple[str, object]]:
        """The pairs of a mapping."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            self._strange.append(self._path(key))
        return [(str(name), each) for name, each in value.items()] if isinstance(value, Mapping) else []

    def take_pairs(self, key: str) -> list[tuple[str, object]]:
        """The pairs of a list of mappings, as fallbacks are written."""
        entries = self._entries(key, Mapping)
        return [(str(name), each) for entry in entries if isinstance(entry, Mapping) for name, each in entry.items()]

    def take_list(self, key: str, most: int) -> Iterator[tuple[str, Document]]:
        """The mappings of a list, each with its place."""
        for index, entry in enumerate(self._entries(key, dict)[:most]):
            if isinstance(entry, dict):
                inner = Document(entry, f"{self._path(key)}[{index}]")
                self._lists.append(inner)
                yield inner._place, inner

    def _entries(self, key: str, kind: type) -> list[object]:
        """What stands in a list; what is no list, and entries of another kind, are told as unread."""
        value = self.take(key)
        if not isinstance(value, list):
            if value is not None:
                self._strange.append(self._path(key))
            return []
        self._strange += [
            f"{self._path(key)}[{index}]" for index, each in enumerate(value) if not isinstance(each, kind)
        ]
        return value

    def inner(self, key: str) -> Document:
        """A mapping within; empty if it is not there."""
        if key not in self._inner:
            value = self.take(key)
            if value is not None and not isinstance(value, dict):
                self._strange.append(self._path(key))
            self._inner[key] = Document(value if isinstance(value, dict) else {}, self._path(key))
        return self._inner[key]

    def close(self) -> None:
        """Says that what is left of it was told already."""
        self._taken |= set(self._content)
        self._strange.clear()
        for each in self._inner.values():
            each.close()

    def lend(self, lenders: Mapping[str, Object], *, by: str) -> None:
        """Fills in what is missing here from the lender that is named under `by`."""
        if (name := self._content.get(by)) in lenders:
            self._taken.add(by)
            self._content = {**lenders[str(name)], **self._content}

    def unread(self) -> Iterator[str]:
        """Where the values stand that nobody took."""
        for key in self._content:
            if key not in self._taken:
                yield self._path(str(key))
        for each in (*self._inner.values(), *self._lists):
            yield from each.unread()

    def strange(self) -> Iterator[str]:
        """Where something else stands than what was looked for, each place once."""
        yield from dict.fromkeys(self._strange)
        for each in (*self._inner.values(), *self._lists):
            yield from each.strange()

    def _path(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key


def deployment_of(entry: Document, place: str, *, mode: str) -> Deployment:
    """One entry of `model_list`. mode: of `model_info`; what is no model of text is served through the same upstream all the same."""
    params, info = entry.inner("litellm_params"), entry.inner("model_info")
    found = Deployment(None, {}, [])
    named = params.take_text("model")
    spoken = params.take_text("custom_llm_provider")
    if named is None:
        found.lines.append(("refused", f"{place}.litellm_params.model", "", "it is missing"))
        entry.close()
        return found
    if "*" in named:
        found.lines.append(("refused", f"{place}.litellm_params.model", "", "wildcards have no route here"))
        entry.close()
        return found
    provider, _, model = named.partition("/")
    if spoken:
        provider, model = spoken, named.removeprefix(f"{spoken}/")
        named = f"{provider}/{model}"
        found.lines.append(("mapped", f"{place}.litellm_params.custom_llm_provider", f"{provider}/{model}", ""))
    elif not model:
        provider, model = ("anthropic" if named.startswith("claude") else "openai"), named
    if provider == "openai" and model.startswith("responses/"):
        model = model.removeprefix("responses/")
        reason = "a call goes on as what it came: chat stays chat"
        found.lines.append(("approximated", f"{place}.litellm_params.model", f"model: {model}", reason))
    found.upstream = _upstream(provider, params, place, found.lines)
    foreign = found.upstream["dialect"] == "litellm"  # whose model is called as a whole, and is a good id already
    found.entry |= {"model": named, "id": name_of(named)} if foreign else {"model": model}
    if mode:
        found.lines.append(("mapped", f"{place}.model_info.mode", "the path that is asked says it", ""))
    _read_shares(params, place, found)
    _read_identity(info, place, found)
    _read_price(params, info, place, found)
    timeout_s = params.take_number("timeout")
    if timeout_s is not None and timeout_s > 0:
        found.timeout_s = min(TIMEOUT_S_MAX, timeout_s)
        at = f"{place}.litellm_params.timeout"
        found.lines.append(("approximated", at, f"timeout_s: {found.timeout_s:g}", WHOLE_CALL))
    return found


def _upstream(provider: str, params: Document, place: str, lines: list[Told]) -> Object:
    base_url = params.take_text("api_base") or params.take_text("base_url")
    key = params.take("api_key")
    if provider == "anthropic":
        upstream: Object = {"name": provider, "dialect": "anthropic", "base_url": base_url or ANTHROPIC[0]}
        variable = ANTHROPIC[1]
    elif provider in OPENAI_COMPATIBLE and (base_url or OPENAI_COMPATIBLE[provider][0]):
        known, variable = OPENAI_COMPATIBLE[provider]
        upstream = {"name": provider, "dialect": "openai", "base_url": base_url or known}
    else:
        upstream, variable = {"name": provider, "dialect": "litellm"}, f"{name_of(provider).upper()}_API_KEY"
        if base_url:
            upstream["base_url"] = base_url
        lines.append(("mapped", f"{place}.litellm_params.model", f"an upstream of dialect litellm for {provider}", ""))
        _read_options(params, place, upstream, lines)
    if base_url and (base_url.startswith(ENVIRON) or not urlsplit(base_url).hostname):
        upstream["base_url"] = PLACEHOLDER
        lines.append(("refused", f"{place}.litellm_params.api_base", "", "write the address itself as `base_url`"))
    elif base_url:
        lines.append(("mapped", f"{place}.litellm_params.api_base", "base_url", ""))
        if upstream["dialect"] == "openai":
            upstream["name"] = name_of(urlsplit(base_url).hostname or provider)
    upstream["name"] = name_of(str(upstream["name"]))
    if base_url is not None and variable in _VENDORS and not _is_of(_VENDORS[variable], base_url):
        variable = _own_variable(base_url)
    _read_key(key, variable, upstream, place, lines, own_address=base_url is not None)
    return upstream


def _is_of(vendor: str, base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host == vendor or host.endswith(f".{vendor}")


def _own_variable(base_url: str) -> str:
    """The variable of a key for an address of theirs, named after it."""
    name = base_url.removeprefix(ENVIRON) if base_url.startswith(ENVIRON) else urlsplit(base_url).hostname or "UPSTREAM"
    variable = f"{re.sub(r'[^A-Z0-9]+', '_', name.upper())}_API_KEY"
    return variable if variable[0].isalpha() else f"UPSTREAM_{variable}"


def _read_key(
    key: object, variable: str, upstream: Object, place: str, lines: list[Told], *, own_address: bool
) -> None:
    """own_address: the upstream is one of theirs, which may well need no key."""
    at = f"{place}.litellm_params.api_key"
    if isinstance(key, str) and key.startswith(ENVIRON):
        upstream["credential"] = f"env:{key.removeprefix(ENVIRON)}"
        lines.append(("mapped", at, f"credential: {upstream['credential']}", ""))
    elif key is not None:
        upstream["credential"] = f"env:{variable}"
        reason = "a secret is not copied; put it into the environment"
        lines.append(("approximated", at, f"credential: env:{variable}", reason))
    elif upstream["dialect"] != "litellm" and not own_address:
        upstream["credential"] = f"env:{variable}"


def _read_options(params: Document, place: str, upstream: Object, lines: list[Told]) -> None:
    options: Object = {}
    for name in _OPTIONS:
        value = params.take(name)
        if isinstance(value, str):
            options[name] = f"env:{value.removeprefix(ENVIRON)}" if value.startswith(ENVIRON) else value
            lines.append(("mapped", f"{place}.litellm_params.{name}", f"options.{name}", ""))
    for name in _SECRET_OPTIONS:
        value = params.take(name)
        if value is None:
            continue
        if isinstance(value, str) and value.startswith(ENVIRON):
            options[name] = f"env:{value.removeprefix(ENVIRON)}"
            lines.append(("mapped", f"{place}.litellm_params.{name}", f"options.{name}", ""))
        elif name == "vertex_credentials" and isinstance(value, str) and value.startswith("/"):
            options[name] = f"file:{value}"
            lines.append(("mapped", f"{place}.litellm_params.{name}", f"options.{name}: {options[name]}", ""))
        else:
            options[name] = f"env:{name.upper()}"
            reason = "a secret is not copied; put it into the environment"
            lines.append(("approximated", f"{place}.litellm_params.{name}", f"options.{name}: {options[name]}", reason))
    if options:
        upstream["options"] = options


def _read_shares(params: Document, place: str, found: Deployment) -> None:
    order = params.take_number("order")
    if order is not None:
        found.entry["order"] = min(100, max(0, round(order)))
        found.lines.append(("mapped", f"{place}.litellm_params.order", f"order: {found.entry['order']}", ""))
    numbers = {name: params.take_number(name) for name in ("weight", "rpm", "tpm")}
    found.figures = {name: max(0.0, number) for name, number in numbers.items() if number is not None}


def _read_identity(info: Document, place: str, found: Deployment) -> None:
    name = info.take_text("id")
    if name is not None:
        found.entry["id"] = name_of(name)
        found.lines.append(("mapped", f"{place}.model_info.id", f"id: {found.entry['id']}", ""))
    most = info.take_number("max_output_tokens") or info.take_number("max_tokens")
    if most is not None and most >= 1:
        found.entry["max_output_tokens"] = int(most)
        found.lines.append(("mapped", f"{place}.model_info.max_output_tokens", f"max_output_tokens: {int(most)}", ""))


def _read_price(params: Document, info: Document, place: str, found: Deployment) -> None:
    prices = _kinds(params, info, "", place, found.lines)
    long = {above: _kinds(params, info, f"_above_{above}k_tokens", place, found.lines) for above in _LONG_THRESHOLDS}
    units = _by_unit(params, info, place, found.lines)
    if "input" not in prices and "output" not in prices and not units.keys() & {"second", "character", "picture"}:
        for name in units:
            at = f"{place}.litellm_params.{_UNITS[name][0]}"
            found.lines.append(("refused", at, "", "a price of ours has `input` and `output` too"))
        return
    price: Object = {"input": 0, "output": 0, **prices, **units}
    said = ", ".join(f"{kind} {amount}" for kind, amount in price.items())
    both = {kind: price[kind] for kind in ("input", "output")}
    rows = [{"above_tokens": above * 1000, **both, **kinds} for above, kinds in long.items() if kinds]
    if rows:
        price["long"] = rows
        said += f", and more above {rows[0]['above_tokens']} tokens"
    found.entry["price"] = price
    found.lines.append(("mapped", f"{place}.litellm_params.input_cost_per_token", f"price per million: {said}", ""))


def _by_unit(params: Document, info: Document, place: str, lines: list[Told]) -> Object:
    """Prices of one of what is no token."""
    found: Object = {}
    for ours, (theirs, of) in _UNITS.items():
        value = next((each for each in (params.take(theirs), info.take(theirs)) if each is not None), None)
        if value is None:
            continue
        try:
            found[ours] = plain(Decimal(str(value)) / of)
        except (InvalidOperation, ValueError, OverflowError):
            lines.append(("refused", f"{place}.litellm_params.{theirs}", "", "it is no price"))
    return found


def _kinds(params: Document, info: Document, ending: str, place: str, lines: list[Told]) -> Object:
    """Prices per million tokens of the kinds whose names end so."""
    found: Object = {}
    for ours, theirs in _PRICES.items():
        values = [source.take(theirs + ending) for source in (params, info)]
        value = next((each for each in values if each is not None), None)
        if value is None:
            continue
        try:
            found[ours] = plain(Decimal(str(value)) * 1_000_000)
        except (InvalidOperation, ValueError, OverflowError):
            lines.append(("refused", f"{place}.litellm_params.{theirs}{ending}", "", "it is no price"))
    return found


def plain(amount: Decimal) -> int | float:
    """A number that YAML writes as a person would."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def name_of(text: str) -> str:
    """A name as we allow it, as near to theirs as can be."""
    name = re.sub(r"[^A-Za-z0-9._:@/+-]+", "-", text).lstrip("._:@/+-")[:128]
    return name or "unnamed"


def seconds_of(text: str) -> int | None:
    """A length of time such as `30d`; None if it is none."""
    match = re.fullmatch(r"(\d{1,9})(mo|[smhd])", text.strip())
    return None if match is None else int(match[1]) * _UNITS_S[match[2]]

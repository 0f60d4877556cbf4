"""The price book: what a model costs, from a reviewed, pinned copy that is part of this package (`controlplane.costs.seed` makes it).

It is never fetched. What the configuration says under `prices:` comes first (`controlplane.catalog.compile`). A model that is not here is
unpriced, never free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

import msgspec

from controlplane.contract.pricing import LongPrice, Price, ServicePrice, price_by_kind

_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
# How litellm is told the way to a model whose row bears the provider's own name for it.
_ROUTED = re.compile(
    r"^(?:bedrock/(?:(?:converse|converse_like|invoke)/)?(?=[a-z0-9-]+\.)|vertex_ai/(?=gemini-)|cohere_chat/(?=command))"
)
_FINE_TUNED = re.compile(r"^(ft:[^:]+):.*$")
_NAME_CHARS_MAX = 256
_TOOLS = frozenset(("search", "file_search", "container"))
Amount = int | dict[str, int]
_FOLLOWERS = {
    "input": ("cache_read", "cache_write", "cache_write_1h", "audio_input", "image_input"),
    "output": ("reasoning", "audio_output", "image_output"),
}
_MAKERS = frozenset(
    {
        "anthropic", "cerebras", "cohere", "deepseek", "gemini", "google", "groq", "mistral", "mistralai", "models", "moonshot", "openai",
        "voyage", "x-ai", "xai",
    }
)  # fmt: skip
"""Prefixes that say who makes or sells a model at list price; behind any other, such as a cloud's, a price without it would be a guess."""


class PriceRow(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Published prices of one model, in nano-USD per million tokens; what is no token, from `second` on, in nano-USD for one.

    long: by threshold, the kinds that cost another amount in a call whose input is longer. service: by class, the same for its calls.
    output_tokens_max: the longest answer that the model gives, where that is published.
    until: with `was`, the last day, in ISO 8601, on which the row was the published price.
    """

    input: int
    output: int
    mode: str
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None
    second: int | None = None
    character: int | None = None
    picture: int | None = None
    search: int | None = None
    file_search: int | None = None
    container: int | None = None
    pictures: dict[str, int] | None = None
    long: dict[int, Kinds] = {}
    service: dict[str, ServiceRow] = {}
    output_tokens_max: int | None = None
    until: str = ""
    was: tuple[PriceRow, ...] = ()


class Kinds(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The kinds that cost another amount than the row they belong to says."""

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None
    second: int | None = None
    character: int | None = None
    picture: int | None = None
    search: int | None = None
    file_search: int | None = None
    container: int | None = None
    pictures: dict[str, int] | None = None


class ServiceRow(Kinds, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The same for a service class, with its own long prompts."""

    long: dict[int, Kinds] = {}


class PriceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data file. version: of the book; source_version: of the table that it was made from."""

    version: str
    date: str
    source: str
    source_version: str
    unit: str
    count: int
    models: dict[str, PriceRow]


class PriceBook:
    """Prices by model name."""

    def __init__(self, file: PriceFile) -> None:
        self._models: Mapping[str, PriceRow] = file.models
        self._by_last_part: dict[str, list[str]] = {}
        for name in file.models:
            maker, _, last = name.rpartition("/")
            if maker in _MAKERS:
                self._by_last_part.setdefault(last, []).append(name)
        self.version = file.version
        self.date = file.date
        self.source = f"{file.source} {file.source_version}"

    @classmethod
    def packaged(cls) -> PriceBook:
        """The book that this version of Hephaestus comes with; reads and checks its file, so make one and keep it."""
        data = (files("controlplane.costs") / "prices.json").read_bytes()
        file = msgspec.json.decode(data, type=PriceFile)
        if file.count != len(file.models):
            raise ValueError(f"prices.json says {file.count} models and holds {len(file.models)}; make it anew")
        return cls(file)

    def __len__(self) -> int:
        return len(self._models)

    def names(self) -> Iterator[str]:
        """All models, sorted."""
        yield from sorted(self._models)

    def price(self, model: str, *, day: str | None = None) -> Price | None:
        """The price of a model by the name an upstream knows it by; None: unpriced.

        day: in ISO 8601, for the price that was published then; None: the current one. Tokens read from a prompt cache cost as much
        as input where no discount is published. The price's version names this book and the row that was used.
        """
        name = self.row_name(model)
        if name is None:
            return None
        row = self._models[name]
        version = f"{self.version}/{name}"
        if day is not None:
            for earlier in sorted(row.was, key=lambda earlier: earlier.until):
                if day <= earlier.until:
                    row, version = earlier, f"until-{earlier.until}/{name}"
                    break
        kinds = _kinds(row)
        return msgspec.structs.replace(
            _price(kinds, version=version),
            long=_long(kinds, row.long, version),
            service=tuple(_service(kinds, name, each, version, row.long) for name, each in sorted(row.service.items())),
        )

    def output_tokens_max(self, model: str) -> int | None:
        """The longest answer of a model, in tokens; None: nobody has published it."""
        name = self.row_name(model)
        return None if name is None else self._models[name].output_tokens_max

    def row_name(self, model: str) -> str | None:
        """The row that a model's name means: itself, without its provider, with one, or without its date, in this order.

        A name that several providers sell at different prices means none of them.
        """
        if len(model) > _NAME_CHARS_MAX:
            return None
        name = model.strip().lower()
        routed = _ROUTED.sub("", name)
        if routed != name and name not in self._models and routed in self._models:
            return routed
        for candidate in dict.fromkeys((name, _FINE_TUNED.sub(r"\1", name), _DATED.sub("", name))):
            if (found := self._with_or_without_provider(candidate)) is not None:
                return found
        return None

    def _with_or_without_provider(self, name: str) -> str | None:
        if name in self._models:
            return name
        maker, _, last = name.rpartition("/")
        if maker and maker not in _MAKERS:
            return None
        if last in self._models:
            return last
        sold = self._by_last_part.get(last, [])
        amounts = [_amounts(self._models[full]) for full in sold]
        return min(sold) if amounts and all(each == amounts[0] for each in amounts) else None


def _service(
    kinds: Mapping[str, Amount], name: str, row: ServiceRow, version: str, standard: Mapping[int, Kinds]
) -> ServicePrice:
    """A class with its long prompts. One that says nothing of them has those of the standard class, by its own factor, rounded up."""
    version = f"{version}/{name}"
    own = _tier(kinds, row)
    long = dict(row.long)
    for above, each in standard.items():
        if above not in long:
            tier = _tier(kinds, each)
            changed = {kind: _scaled(tier[kind], own[kind], kinds[kind]) for kind in kinds if tier[kind] != kinds[kind]}
            long[above] = msgspec.convert(changed, Kinds)
    return ServicePrice(name, msgspec.structs.replace(_price(own, version=version), long=_long(own, long, version)))


def _scaled(amount: Amount, now: Amount, before: Amount) -> Amount:
    """An amount that is to another as the second is to the third; what is no number stays."""
    if isinstance(amount, int) and isinstance(now, int) and isinstance(before, int) and before:
        return -(-amount * now // before)
    return amount


def _long(kinds: Mapping[str, Amount], rows: Mapping[int, Kinds], version: str) -> tuple[LongPrice, ...]:
    return tuple(
        LongPrice(above, _price(_tier(kinds, row), version=f"{version}/above-{above}"))
        for above, row in sorted(rows.items())
    )


def _tier(kinds: Mapping[str, Amount], row: Kinds) -> dict[str, Amount]:
    """What a tier costs that states only some kinds. Where it is dearer, what it leaves out is dearer too, by the same factor, rounded up.

    The published tables leave out most of all the discounts of a prompt cache and the tokens of reasoning.
    """
    own = _kinds(row)
    tier = {**kinds, **own}
    for leader, followers in _FOLLOWERS.items():
        before, now = kinds.get(leader), own.get(leader)
        if not (isinstance(before, int) and isinstance(now, int) and now > before > 0):
            continue
        for kind in followers:
            amount = kinds.get(kind)
            if kind not in own and isinstance(amount, int):
                tier[kind] = -(-amount * now // before)
    _follow_down(kinds, own, tier)
    return tier


def _follow_down(kinds: Mapping[str, Amount], own: Mapping[str, Amount], tier: dict[str, Amount]) -> None:
    """What a cheaper tier leaves out and cannot cost what it did: reasoning that is priced as output, and writes to a prompt cache for an hour
    beside those for five minutes.
    """
    if "reasoning" not in own and kinds.get("reasoning") == kinds["output"]:
        tier["reasoning"] = tier["output"]
    before, now, hour = kinds.get("cache_write"), own.get("cache_write"), kinds.get("cache_write_1h")
    if "cache_write_1h" not in own and isinstance(before, int) and isinstance(now, int) and isinstance(hour, int):
        tier["cache_write_1h"] = -(-hour * now // before) if before else hour


def _price(kinds: Mapping[str, Amount], *, version: str) -> Price:
    """A price by its kinds; what is read from a prompt cache costs as input where no discount is published."""
    return price_by_kind({"cache_read": kinds["input"], **kinds}, version=version)


def _kinds(row: PriceRow | Kinds) -> dict[str, Amount]:
    """The kinds for which a row states an amount."""
    stated = {kind: getattr(row, kind) for kind in Kinds.__struct_fields__}
    return {kind: amount for kind, amount in stated.items() if amount is not None}


def _amounts(row: PriceRow) -> tuple[object, ...]:
    """What two rows must have in common to be one price."""
    kinds = {kind: amount for kind, amount in _kinds(row).items() if kind not in _TOOLS}
    return (sorted(kinds.items(), key=lambda item: item[0]), sorted(row.long.items()), sorted(row.service.items()))

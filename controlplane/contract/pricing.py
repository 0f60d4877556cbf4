"""Money: what an attempt costs, in integer nano-USD.

Token kinds are disjoint: a token is counted in exactly one of them, and they sum to what the provider reports as its total.
Prices are integers too: nano-USD per million tokens, so that the cheapest published price (fractions of a nano-USD per token)
is exact. The only rounding is one division at the very end.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

TOKENS_PER_PRICE_UNIT = 1_000_000
NANOUSD_PER_USD = 1_000_000_000
PICTURE_SIZE_USUAL, PICTURE_QUALITY_USUAL = "1024x1024", "standard"
"""Of a picture where neither request nor answer says it: what the models do that bill by the picture."""
_UNDECIDED = "auto"
Dearest = tuple[int, int]  # nano-USD per million tokens of input and of output


class Tokens(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one attempt by kind; every count >= 0 and no token in two kinds."""

    input: int = 0  # text input that was neither read from nor written to a prompt cache
    cache_read: int = 0
    cache_write: int = 0  # prompt-cache write, five-minute class
    cache_write_1h: int = 0
    output: int = 0  # visible output, reasoning excluded
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0

    @property
    def total(self) -> int:
        """All tokens, as the provider's own total counts them."""
        return (
            self.input + self.cache_read + self.cache_write + self.cache_write_1h + self.audio_input
            + self.image_input + self.output + self.reasoning + self.audio_output + self.image_output
        )  # fmt: skip

    @property
    def special(self) -> bool:
        """Whether some are of another kind than plain input and output."""
        return bool(
            self.cache_read or self.cache_write or self.cache_write_1h or self.audio_input
            or self.image_input or self.reasoning or self.audio_output or self.image_output
        )  # fmt: skip

    @property
    def total_input(self) -> int:
        """All tokens that went in."""
        return (
            self.input + self.cache_read + self.cache_write + self.cache_write_1h + self.audio_input + self.image_input
        )

    @property
    def total_output(self) -> int:
        """All tokens that came out."""
        return self.output + self.reasoning + self.audio_output + self.image_output


NO_TOKENS = Tokens()
TOKEN_KINDS: tuple[str, ...] = Tokens.__struct_fields__
ITEM_KINDS: tuple[str, ...] = ("search", "file_search", "container", "second", "character", "picture")
"""What can be billed that is no token; each has a field of its name in `Price`."""


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that an upstream bills beside the tokens, or instead of them: a component of a cost.

    kind: one of ITEM_KINDS. micros: how many, in millionths. nanousd: what of the cost it makes; None: it has no price, so that the
    cost is not all that will be billed.
    """

    kind: str
    micros: int
    nanousd: int | None = None

    def plus(self, other: Item) -> Item:
        """Both together; of the same kind."""
        both = (self.nanousd, other.nanousd)
        known = [nanousd for nanousd in both if nanousd is not None]
        return Item(self.kind, self.micros + other.micros, sum(known) if known else None)


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """Price of one model, in nano-USD per million tokens of each kind; None: this kind has no price.

    version names the price-book row and its effective date, and is kept on every record that used it.
    long: what a call costs whose input is longer than a threshold, all its tokens included; the thresholds grow.
    service: what a call costs in another service class than the standard one, by the provider's name for it: `batch`, `flex`, `priority`, `fast`;
        several at once are joined by `+`, and cost as the first of them where they have no price together.
    second, character, picture: nano-USD for one second of sound heard, character spoken, picture drawn, of models that count no tokens.
    pictures: the same for a picture of one quality and size, by `quality/WIDTHxHEIGHT` or `WIDTHxHEIGHT`; they come before `picture`.
    search, file_search, container: nano-USD for what a provider's own tools do beside the tokens: one search of the web, one search in
        files, and one gigabyte of a container in which it runs code (for as long as it bills a container at once).
    """

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None  # None: priced as output, as every provider that reports it does
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None
    version: str = ""
    long: tuple[LongPrice, ...] = ()
    service: tuple[ServicePrice, ...] = ()
    second: int | None = None
    character: int | None = None
    picture: int | None = None
    search: int | None = None
    file_search: int | None = None
    container: int | None = None
    pictures: dict[str, int] | None = None

    @property
    def by_unit_only(self) -> bool:
        """Whether it prices seconds, characters or pictures and no tokens: those are then not known, rather than free."""
        return not (self.input or self.output) and bool(self.second or self.character or self.picture or self.pictures)


class LongPrice(msgspec.Struct, frozen=True):
    """A whole price that holds when the input is longer than above_tokens."""

    above_tokens: int
    price: Price


class ServicePrice(msgspec.Struct, frozen=True):
    """A whole price that holds in a service class."""

    name: str
    price: Price


def price_by_kind(kinds: Mapping[str, int | dict[str, int]], *, version: str) -> Price:
    """A price from amounts by kind, in nano-USD per million tokens; `input` and `output` must be among them."""
    return msgspec.convert({**kinds, "version": version}, Price)


def priced_at(price: Price, *, input_tokens: int, service_class: str = "") -> Price:
    """The price that holds for one attempt: of its service class, where that has one of its own, then of its length.

    input_tokens: all that went in, prompt cache included, because that is what providers hold against their threshold.
    """
    if service_class:
        classes = {service.name: service.price for service in price.service}
        names = (service_class, *service_class.split("+"))
        price = next((classes[name] for name in names if name in classes), price)
    found = price
    for long in price.long:
        if input_tokens > long.above_tokens:
            found = long.price
    return found


class UnknownPrice(LookupError):
    """Tokens of a kind for which the price says nothing; carries the kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no price for {kind} tokens; add `{kind}` to this model's price in the configuration")
        self.kind = kind


def cost_nanousd(tokens: Tokens, price: Price, *, service_class: str = "") -> int:
    """Price of one attempt, in nano-USD, rounded half up once at the end.

    tokens: as the upstream reported them, each >= 0.
    price: nano-USD per million tokens, by kind.
    service_class: the provider's name for how it served; empty, or one without a price of its own: the standard one.
    Raises UnknownPrice if there are tokens of a kind that has no price, or if the price knows only units that are no tokens.
    Source: docs/reference/data-model.md, "Money".
    """
    if price.long or (price.service and service_class):
        price = priced_at(price, input_tokens=tokens.total_input, service_class=service_class)
    millionths = tokens.input * price.input + tokens.output * price.output
    if tokens.special:
        millionths += _special_millionths(tokens, price)
    if not millionths and tokens.total and price.by_unit_only:
        raise UnknownPrice("input")
    return (millionths + TOKENS_PER_PRICE_UNIT // 2) // TOKENS_PER_PRICE_UNIT


def known_nanousd(tokens: Tokens, price: Price) -> int:
    """What is known of a cost that is not known whole: that of the kinds which have a price, in nano-USD, rounded half up once at the end."""
    millionths = 0
    for kind in TOKEN_KINDS:
        unit_price = price.output if kind == "reasoning" and price.reasoning is None else getattr(price, kind)
        millionths += getattr(tokens, kind) * (unit_price or 0)
    return (millionths + TOKENS_PER_PRICE_UNIT // 2) // TOKENS_PER_PRICE_UNIT


def _special_millionths(tokens: Tokens, price: Price) -> int:
    """The kinds most calls do not have."""
    reasoning = price.output if price.reasoning is None else price.reasoning
    millionths = tokens.reasoning * reasoning
    for kind, count, unit_price in (
        ("cache_read", tokens.cache_read, price.cache_read),
        ("cache_write", tokens.cache_write, price.cache_write),
        ("cache_write_1h", tokens.cache_write_1h, price.cache_write_1h),
        ("audio_input", tokens.audio_input, price.audio_input),
        ("audio_output", tokens.audio_output, price.audio_output),
        ("image_input", tokens.image_input, price.image_input),
        ("image_output", tokens.image_output, price.image_output),
    ):
        if count == 0:
            continue
        if unit_price is None:
            raise UnknownPrice(kind)
        millionths += count * unit_price
    return millionths


def units_nanousd(micros: int, unit_price: int) -> int:
    """Price of something that is not counted in tokens, in nano-USD, rounded half up once at the end.

    micros: millionths of a unit, >= 0. unit_price: nano-USD for one.
    """
    return (micros * unit_price + 500_000) // 1_000_000


def picture_nanousd(price: Price, *, quality: str, size: str) -> int | None:
    """Price of one picture, in nano-USD; None: it is not known. quality, size: as the provider names them; empty: its usual ones."""
    if price.pictures and _UNDECIDED not in (quality, size):
        size = size or PICTURE_SIZE_USUAL
        names = (f"{quality or PICTURE_QUALITY_USUAL}/{size}", size)
        found = next((price.pictures[name] for name in names if name in price.pictures), None)
        if found is not None:
            return found
    return price.picture


def picture_nanousd_max(price: Price, *, quality: str, size: str) -> int:
    """The most that one picture can cost, in nano-USD, if it is asked for like this: the dearest, where that does not decide it."""
    found = None if _UNDECIDED in (quality, size) else picture_nanousd(price, quality=quality, size=size)
    return max(price.picture or 0, *(price.pictures or {}).values(), 0) if found is None else found


def worst_case_nanousd(*, tokens_in: int, tokens_out: int, price: Price, any_class: bool = False) -> int:
    """The most an attempt can cost: every token at the dearest kind of its direction, in nano-USD, rounded up.

    A long price counts as soon as the input may be so long. any_class: the service class may be another than the standard one.
    """
    nanousd = dearest_nanousd(tokens_in, tokens_out, dearest_of(price))
    for long in price.long:
        if tokens_in > long.above_tokens:
            nanousd = max(nanousd, dearest_nanousd(tokens_in, tokens_out, dearest_of(long.price)))
    if any_class:
        for service in price.service:
            dearer = worst_case_nanousd(tokens_in=tokens_in, tokens_out=tokens_out, price=service.price)
            nanousd = max(nanousd, dearer)
    return nanousd


def dearest_of(price: Price) -> Dearest:
    """The dearest kind of token of each direction, for inputs that are not long and for the standard service class."""
    dearest_in = max(
        price.input,
        price.cache_read or 0,
        price.cache_write or 0,
        price.cache_write_1h or 0,
        price.audio_input or 0,
        price.image_input or 0,
    )
    dearest_out = max(price.output, price.reasoning or 0, price.audio_output or 0, price.image_output or 0)
    return dearest_in, dearest_out


def dearest_nanousd(tokens_in: int, tokens_out: int, dearest: Dearest) -> int:
    """What so many tokens cost at these prices, in nano-USD, rounded up."""
    return -(-(tokens_in * dearest[0] + tokens_out * dearest[1]) // TOKENS_PER_PRICE_UNIT)

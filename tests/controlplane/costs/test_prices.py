"""The price book knows what is published, exactly, and says None where it would have to guess."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.contract.pricing import Tokens, UnknownPrice, cost_nanousd
from controlplane.costs.prices import Kinds, PriceBook, PriceFile, PriceRow, ServiceRow


@pytest.fixture(scope="module")
def packaged() -> PriceBook:
    """The book that is part of the package."""
    return PriceBook.packaged()


def book(**models: PriceRow) -> PriceBook:
    """A book with these rows; `__` in a name stands for a slash."""
    rows = {name.replace("__", "/").replace("_", "-"): row for name, row in models.items()}
    return PriceBook(PriceFile("v1", "2026-01-01", "s", "1", "u", len(rows), rows))


def row(amount: int, *, cache_read: int | None = None, until: str = "") -> PriceRow:
    """A row whose input costs an amount."""
    return PriceRow(input=amount, output=2 * amount, mode="chat", cache_read=cache_read, until=until)


@pytest.mark.parametrize(
    ("model", "input_usd", "output_usd"),
    [
        ("gpt-4o-mini-2024-07-18", "0.15", "0.60"),
        ("claude-sonnet-4-5", "3", "15"),
        ("text-embedding-3-small", "0.02", "0"),
        ("gpt-4o", "2.5", "10"),
    ],
)
def test_published_prices_are_exact(packaged: PriceBook, model: str, input_usd: str, output_usd: str) -> None:
    """Well-known prices in US dollars per million tokens come out to the nano-USD."""
    price = packaged.price(model)
    assert price is not None
    assert (int(float(input_usd) * 1000) * 10**6, int(float(output_usd) * 1000) * 10**6) == (price.input, price.output)


def test_the_book_is_whole_and_nothing_in_it_is_free(packaged: PriceBook) -> None:
    """Hundreds of models, each with a price above zero for input, and for output unless it makes embeddings; or for one of another unit."""
    assert 1_000 <= len(packaged) == len(list(packaged.names()))
    for name in packaged.names():
        price = packaged.price(name)
        assert price is not None
        assert f"{packaged.version}/{name}" == price.version
        if price.by_unit_only:
            assert 0 < min(
                filter(None, (price.second, price.character, price.picture, *(price.pictures or {}).values()))
            )
            continue
        assert 0 < price.input < 10**13, name
        assert 0 <= price.output < 10**13, name
        assert all(
            amount is None or amount > 0
            for amount in (price.cache_read, price.cache_write, price.cache_write_1h, price.reasoning)
        )


def test_a_dearer_tier_is_dearer_in_every_kind(packaged: PriceBook) -> None:
    """Long prompts and service classes that cost more for input or output never cost less for what is counted beside them."""
    sides = {
        "input": ("cache_read", "cache_write", "cache_write_1h", "audio_input", "image_input"),
        "output": ("reasoning", "audio_output", "image_output"),
    }
    for name in packaged.names():
        price = packaged.price(name)
        assert price is not None
        tiers = [(price, long.price) for long in price.long]
        for service in price.service:
            tiers += [(price, service.price), *((service.price, long.price) for long in service.price.long)]
        for standard, tier in tiers:
            for leader, kinds in sides.items():
                if getattr(tier, leader) > getattr(standard, leader):
                    for kind in kinds:
                        assert (getattr(tier, kind) or 0) >= (getattr(standard, kind) or 0), (name, tier.version, kind)
                    assert tier.reasoning is None or leader == "input" or tier.reasoning > (standard.reasoning or 0)
            assert tier.cache_read is not None


def test_what_a_tier_leaves_out_follows_what_it_says() -> None:
    """A prompt cache's discount and reasoning cost as many times more as input and output; a cheaper tier changes nothing else."""
    row = PriceRow(
        input=100, output=400, mode="chat", cache_read=10, reasoning=500,
        long={200_000: Kinds(input=150, output=600)},
        service={"priority": ServiceRow(input=180, output=800), "batch": ServiceRow(input=50, output=200)},
    )  # fmt: skip
    bare = PriceRow(input=100, output=400, mode="chat", service={"priority": ServiceRow(input=180, output=800)})
    book = PriceBook(PriceFile("v", "d", "s", "1", "u", 2, {"m": row, "bare": bare}))
    price, plain = book.price("m"), book.price("bare")
    assert price is not None
    assert plain is not None
    found = {service.name: service.price for service in price.service}
    assert (15, 750) == (price.long[0].price.cache_read, price.long[0].price.reasoning)
    assert (18, 1_000) == (found["priority"].cache_read, found["priority"].reasoning)
    assert (10, 500) == (found["batch"].cache_read, found["batch"].reasoning)
    longs = [(long.price.input, long.price.output, long.price.cache_read) for long in found["batch"].long]
    assert [(75, 300, 15)] == longs  # a batch of long prompts costs half of what they cost
    assert (100, 180) == (plain.cache_read, plain.service[0].price.cache_read)


def test_a_batch_halves_what_goes_with_what_it_halves() -> None:
    """Reasoning that costs as output, and prompts cached for an hour beside those for five minutes; real rows leave both out."""
    row = PriceRow(
        input=100, output=400, mode="chat", reasoning=400, cache_write=125, cache_write_1h=200,
        service={"batch": ServiceRow(input=50, output=200, cache_write=63), "flex": ServiceRow(input=50, output=200)},
    )  # fmt: skip
    price = PriceBook(PriceFile("v", "d", "s", "1", "u", 2, {"m": row})).price("m")
    assert price is not None
    found = {service.name: service.price for service in price.service}
    assert (200, 63, 101) == (found["batch"].reasoning, found["batch"].cache_write, found["batch"].cache_write_1h)
    assert (125, 200) == (found["flex"].cache_write, found["flex"].cache_write_1h)


def test_every_price_can_cost_an_attempt(packaged: PriceBook) -> None:
    """Text tokens, cached ones among them, can be costed with every price of the book that knows tokens, and are free with none."""
    for name in packaged.names():
        price = packaged.price(name)
        assert price is not None
        tokens = Tokens(input=1_000_000, cache_read=1_000, output=1, reasoning=1)
        if price.by_unit_only:
            with pytest.raises(UnknownPrice):
                cost_nanousd(tokens, price)
        else:
            assert 0 < cost_nanousd(tokens, price)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt", "gpt"),
        ("GPT", "gpt"),
        ("openai/gpt", "gpt"),
        ("models/gpt", "gpt"),
        ("gpt-2031-01-02", "gpt"),
        ("gpt-20310102", "gpt"),
        ("gpt-latest", "gpt"),
        ("gpt-2024-01-01", "gpt-2024-01-01"),
        ("openai/gpt-2031-01-02", "gpt"),
        ("mistral/large", "mistral/large"),
        ("large", "mistral/large"),
        ("mistralai/large", "mistral/large"),
        ("large-2031-01-02", "mistral/large"),
        ("ft:gpt:acme::abc", "ft:gpt"),
        ("bedrock/converse/eu.amazon.nova", "eu.amazon.nova"),
        ("bedrock/eu.amazon.nova", "eu.amazon.nova"),
        ("vertex_ai/gemini-x", "gemini-x"),
        ("bedrock/gpt", None),
        ("vertex_ai/gpt", None),
        ("azure/gpt", None),
        ("openrouter/openai/gpt", None),
        ("twice", None),
        ("same", "gemini/same"),
        ("gpt-mini", None),
        ("gpt-2", None),
        ("", None),
        ("x" * 1_000, None),
    ],
)
def test_names_are_found_as_upstreams_write_them(model: str, name: str | None) -> None:
    """Case, provider prefixes and dates do not hide a price; a cloud's own name and an ambiguous one have none."""
    rows = {
        "gpt": row(1), "gpt-2024-01-01": row(2), "mistral/large": row(3), "ft:gpt": row(4), "mistral/twice": row(5), "groq/twice": row(6),
        "gemini/same": row(7), "groq/same": row(7),
        "eu.amazon.nova": row(8), "gemini-x": row(9),
    }  # fmt: skip
    assert name == PriceBook(PriceFile("v1", "2026-01-01", "s", "1", "u", len(rows), rows)).row_name(model)


def test_cached_input_without_a_discount_costs_as_input() -> None:
    """Where no discount is published, a cached token costs what any input token costs; other kinds stay unpriced."""
    price = book(m=row(10)).price("m")
    assert price is not None
    assert (10, None, None) == (price.cache_read, price.cache_write, price.audio_input)
    discounted = book(m=row(10, cache_read=1)).price("m")
    assert discounted is not None
    assert 1 == discounted.cache_read


def test_long_prompts_and_service_classes_have_prices_of_their_own() -> None:
    """A long prompt and a service class change the kinds that their row names; the others cost as without, or follow what is dearer."""
    long = {200_000: Kinds(input=20)}
    service = {"batch": ServiceRow(input=5, long={100: Kinds(output=7)})}
    price = book(m=msgspec.structs.replace(row(10, cache_read=1), long=long, service=service)).price("m")
    assert price is not None
    output = price.output
    assert [(200_000, 20, output, 2)] == [
        (x.above_tokens, x.price.input, x.price.output, x.price.cache_read) for x in price.long
    ]
    batch = price.service[0]
    assert ("batch", 5, output, 1) == (batch.name, batch.price.input, batch.price.output, batch.price.cache_read)
    assert [(100, 5, 7), (200_000, 10, 20)] == [
        (x.above_tokens, x.price.input, x.price.output) for x in batch.price.long
    ]
    versions = [price.version, price.long[0].price.version, batch.price.version, batch.price.long[0].price.version]
    assert ["v1/m", "v1/m/above-200000", "v1/m/batch", "v1/m/batch/above-100"] == versions


def test_history_is_priced_as_it_was() -> None:
    """For a day in the past the price is the one that was published then, under a version of its own."""
    was = (row(2, until="2025-12-31"), row(1, until="2025-06-30"))
    prices = book(m=msgspec.structs.replace(row(3), was=was))
    days = ("2025-01-01", "2025-06-30", "2025-07-01", "2026-01-01", None)
    found = [prices.price("m", day=day) for day in days]
    assert [1, 1, 2, 3, 3] == [price.input for price in found if price is not None]
    assert ["until-2025-06-30/m", "until-2025-12-31/m", "v1/m"] == [p.version for p in found[1:4] if p is not None]


def test_the_longest_answer_of_a_model_is_known_by_its_name() -> None:
    """By the same names as its price; None where nobody has published it."""
    book = PriceBook.packaged()
    assert [16_384, 16_384, 64_000, None, None] == [
        book.output_tokens_max(model)
        for model in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "claude-haiku-4-5", "text-embedding-3-small", "nobody/x")
    ]

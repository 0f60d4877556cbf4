"""Tests of money."""

from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import (
    NO_TOKENS,
    TOKEN_KINDS,
    LongPrice,
    Price,
    ServicePrice,
    Tokens,
    UnknownPrice,
    cost_nanousd,
    known_nanousd,
    units_nanousd,
    worst_case_nanousd,
)

COUNTS = st.integers(0, 10_000_000)
UNIT_PRICES = st.integers(0, 200_000_000_000)  # up to 200 USD per million tokens
TOKENS = st.builds(Tokens, **dict.fromkeys(TOKEN_KINDS, COUNTS))
PRICES = st.builds(
    Price,
    input=UNIT_PRICES,
    output=UNIT_PRICES,
    cache_read=UNIT_PRICES,
    cache_write=UNIT_PRICES,
    cache_write_1h=UNIT_PRICES,
    reasoning=st.none() | UNIT_PRICES,
    audio_input=UNIT_PRICES,
    audio_output=UNIT_PRICES,
    image_input=UNIT_PRICES,
    image_output=UNIT_PRICES,
)


def _exact(tokens: Tokens, price: Price) -> Decimal:
    """The cost in nano-USD before any rounding, kind by kind."""
    total = Decimal(0)
    for kind in TOKEN_KINDS:
        unit_price = getattr(price, kind)
        if kind == "reasoning" and unit_price is None:
            unit_price = price.output
        total += Decimal(getattr(tokens, kind)) * Decimal(unit_price) / 1_000_000
    return total


@given(TOKENS)
def test_kinds_are_disjoint_and_sum_to_the_total(tokens: Tokens) -> None:
    """Each token is counted once: the kinds sum to the total, and so do the two directions."""
    assert sum(getattr(tokens, kind) for kind in TOKEN_KINDS) == tokens.total
    assert tokens.total == tokens.total_input + tokens.total_output


@given(TOKENS, PRICES)
def test_cost_is_exact_and_rounded_once(tokens: Tokens, price: Price) -> None:
    """The cost is the exact sum over the kinds, rounded half up at the end, and an int."""
    cost = cost_nanousd(tokens, price)
    assert int(_exact(tokens, price).quantize(Decimal(1), rounding=ROUND_HALF_UP)) == cost
    assert type(cost) is int


@given(
    TOKENS,
    PRICES,
    st.sets(st.sampled_from([kind for kind in TOKEN_KINDS if kind not in ("input", "output", "reasoning")])),
)
def test_what_is_known_of_a_cost_is_that_of_the_kinds_with_a_price(
    tokens: Tokens, price: Price, unpriced: set[str]
) -> None:
    """Without a price for some kinds it is the cost of all others, and with a price for each it is the cost."""
    lacking = msgspec.structs.replace(price, **dict.fromkeys(unpriced))
    rest = msgspec.structs.replace(tokens, **dict.fromkeys(unpriced, 0))
    assert cost_nanousd(rest, price) == known_nanousd(tokens, lacking)
    assert cost_nanousd(tokens, price) == known_nanousd(tokens, price)


@given(TOKENS, TOKENS, PRICES)
def test_cost_is_additive_but_for_one_rounding(one: Tokens, other: Tokens, price: Price) -> None:
    """Pricing two attempts apart or together differs by one nano-USD at most."""
    both = Tokens(**{kind: getattr(one, kind) + getattr(other, kind) for kind in TOKEN_KINDS})
    apart = cost_nanousd(one, price) + cost_nanousd(other, price)
    assert abs(cost_nanousd(both, price) - apart) <= 1


@given(TOKENS, PRICES, st.sampled_from(TOKEN_KINDS), st.integers(1, 1000))
def test_more_tokens_never_cost_less(tokens: Tokens, price: Price, kind: str, more: int) -> None:
    """Cost grows with each kind of token."""
    counts = {each: getattr(tokens, each) for each in TOKEN_KINDS}
    counts[kind] += more
    assert cost_nanousd(tokens, price) <= cost_nanousd(Tokens(**counts), price)


@given(TOKENS, PRICES, st.integers(0, 1000), st.integers(0, 1000))
def test_the_worst_case_is_never_exceeded(tokens: Tokens, price: Price, more_in: int, more_out: int) -> None:
    """No split of at most so many tokens over the kinds costs more than the worst case of that many."""
    worst = worst_case_nanousd(
        tokens_in=tokens.total_input + more_in, tokens_out=tokens.total_output + more_out, price=price
    )
    assert cost_nanousd(tokens, price) <= worst


@given(TOKENS, PRICES, PRICES, PRICES, st.integers(1, 30_000_000), st.sampled_from(["", "batch", "flex"]))
def test_the_worst_case_covers_long_prompts_and_service_classes(
    tokens: Tokens, price: Price, long: Price, batch: Price, above: int, service_class: str
) -> None:
    """Whatever threshold is passed and whatever class is asked for, the worst case is never exceeded, at the standard price neither."""
    whole = msgspec.structs.replace(price, long=(LongPrice(above, long),), service=(ServicePrice("batch", batch),))
    worst = worst_case_nanousd(
        tokens_in=tokens.total_input, tokens_out=tokens.total_output, price=whole, any_class=bool(service_class)
    )
    assert cost_nanousd(tokens, whole, service_class=service_class) <= worst
    assert cost_nanousd(tokens, whole) <= worst


@given(COUNTS, COUNTS, UNIT_PRICES, UNIT_PRICES)
def test_the_worst_case_rounds_up(tokens_in: int, tokens_out: int, input_: int, output: int) -> None:
    """A worst case is rounded up, never down."""
    exact = Decimal(tokens_in * input_ + tokens_out * output) / 1_000_000
    worst = worst_case_nanousd(tokens_in=tokens_in, tokens_out=tokens_out, price=Price(input_, output))
    assert int(exact.to_integral_value(rounding=ROUND_CEILING)) == worst


@pytest.mark.parametrize(
    "kind",
    ["cache_read", "cache_write", "cache_write_1h", "audio_input", "audio_output", "image_input", "image_output"],
)
def test_tokens_of_an_unpriced_kind_raise(kind: str) -> None:
    """A kind without a price is never free: it raises and names the kind."""
    with pytest.raises(UnknownPrice) as caught:
        cost_nanousd(Tokens(**{kind: 1}), Price(input=1, output=1))
    assert kind == caught.value.kind
    assert f"`{kind}`" in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "price", "expected"),
    [
        (NO_TOKENS, Price(150_000_000, 600_000_000), 0),
        (Tokens(input=1000, output=500), Price(150_000_000, 600_000_000), 450_000),
        (Tokens(input=1), Price(499_999, 0), 0),
        (Tokens(input=1), Price(500_000, 0), 1),  # half a nano-USD rounds up
        (Tokens(reasoning=2), Price(0, 3_000_000), 6),  # reasoning without a price of its own is output
        (Tokens(reasoning=2, output=1), Price(0, 3_000_000, reasoning=1_000_000), 5),
        (Tokens(input=1, cache_read=1), Price(4_000_000, 0, cache_read=1_000_000), 5),
    ],
)
def test_known_costs(tokens: Tokens, price: Price, expected: int) -> None:
    """Costs that can be checked by hand."""
    assert expected == cost_nanousd(tokens, price)


@pytest.mark.parametrize(
    ("micros", "unit_price", "expected"),
    [(0, 100, 0), (1_000_000, 100, 100), (7_500_000, 100_000, 750_000), (1, 499_999, 0), (1, 500_000, 1)],
)
def test_units_cost_their_price(micros: int, unit_price: int, expected: int) -> None:
    """Seconds, characters and pictures: exact, rounded half up once."""
    assert expected == units_nanousd(micros, unit_price)


def test_tokens_are_not_free_where_only_seconds_have_a_price() -> None:
    """A price of zero for tokens beside one for units says that nobody knows what a token costs."""
    with pytest.raises(UnknownPrice):
        cost_nanousd(Tokens(input=5), Price(input=0, output=0, second=100_000))
    assert 0 == cost_nanousd(Tokens(), Price(input=0, output=0, second=100_000))
    assert 0 == cost_nanousd(Tokens(input=5), Price(input=0, output=0))

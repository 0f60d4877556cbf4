"""Tests of what an answer without an upstream call would have cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import ITEM_KINDS, Item, Price, Tokens
from controlplane.contract.records import AttemptRecord
from controlplane.contract.snapshot import Deployment
from proxy.savings import avoided_nanousd, split_attempt
from tests.proxy.state_fakes import DEPLOYMENT, make_call

TOKENS = Tokens(input=10, output=5)


def test_the_price_is_that_of_the_deployment_that_answered() -> None:
    """Among several candidates the one that served decides."""
    dear = Deployment("sim/dear", "sim", "dear", price=Price(input=10_000_000, output=20_000_000))
    call = make_call(deployments=(DEPLOYMENT, dear))
    assert [20, 200] == [avoided_nanousd(call, name, TOKENS) for name in ("sim/m", "sim/dear")]


def test_no_saving_is_claimed_that_cannot_be_proven() -> None:
    """A deployment that is gone or has no price, and tokens of a kind without a price, save nothing."""
    call = make_call(deployments=(DEPLOYMENT, Deployment("sim/free", "sim", "free")))
    assert 0 == avoided_nanousd(call, "gone", TOKENS)
    assert 0 == avoided_nanousd(call, "sim/free", TOKENS)
    assert 0 == avoided_nanousd(call, "sim/m", Tokens(input=1, audio_input=1))


AMOUNTS = st.none() | st.integers(0, 10**12)


@given(
    own=st.integers(0, 10**12),
    amounts=st.lists(st.tuples(st.integers(1, 10**9), AMOUNTS), max_size=3),
    weights=st.lists(st.integers(0, 100), min_size=1, max_size=6),
)
def test_a_shared_try_shares_its_items(own: int, amounts: list[tuple[int, int | None]], weights: list[int]) -> None:
    """The parts sum to the whole, item by item and to the nano-USD, and no part's items cost more than the part."""
    items = tuple(Item(kind, micros, cost) for kind, (micros, cost) in zip(ITEM_KINDS, amounts, strict=False))
    cost = own + sum(item.nanousd or 0 for item in items)
    whole = AttemptRecord("d", "u", "m", 0, 0, tokens=Tokens(input=7), cost_nanousd=cost, items=items)
    parts = split_attempt(whole, weights)
    assert cost == sum(part.cost_nanousd for part in parts)
    for place, item in enumerate(items):
        shares = [part.items[place] for part in parts]
        assert item.micros == sum(share.micros for share in shares)
        assert (item.nanousd or 0) == sum(share.nanousd or 0 for share in shares)
        assert {item.nanousd is None} == {share.nanousd is None for share in shares}
    for part in parts:
        assert part.cost_nanousd >= sum(item.nanousd or 0 for item in part.items)

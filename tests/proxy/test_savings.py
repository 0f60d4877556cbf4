"""Tests of what an answer without an upstream call would have cost."""

from __future__ import annotations

from controlplane.contract.pricing import Price, Tokens
from controlplane.contract.snapshot import Deployment
from proxy.savings import avoided_nanousd
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

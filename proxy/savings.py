"""What an answer that came without an upstream call would have cost."""

from __future__ import annotations

from controlplane.contract.pricing import Tokens, UnknownPrice, cost_nanousd
from proxy.call import Call


def avoided_nanousd(call: Call, deployment: str, tokens: Tokens) -> int:
    """The price of these tokens at that deployment, by the call's own runtime; 0 where it has no price or no longer exists.

    Never too much: a saving that cannot be proven is not claimed.
    """
    for candidate in call.candidates:
        if candidate.deployment.id == deployment:
            price = candidate.deployment.price
            if price is None:
                return 0
            try:
                return cost_nanousd(tokens, price)
            except UnknownPrice:
                return 0
    return 0

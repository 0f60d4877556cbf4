"""What an answer that came without an upstream call would have cost, and what is due of one that was shared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.contract.pricing import NO_TOKENS, TOKEN_KINDS, Item, Tokens, UnknownPrice, cost_nanousd
from controlplane.contract.records import AttemptRecord
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


def split(total: int, weights: Sequence[int]) -> list[int]:
    """A whole in parts by weight, which sum to it exactly; what does not divide goes to the largest remainders, then to the first.

    total >= 0; weights: at least one, each >= 0; all zero means equal parts.
    """
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    left = total - sum(parts)
    if left:
        by_remainder = sorted(range(len(weights)), key=lambda at: -(total * weights[at] % whole))
        for at in by_remainder[:left]:
            parts[at] += 1
    return parts


def split_tokens(tokens: Tokens, weights: Sequence[int]) -> list[Tokens]:
    """The same, kind by kind."""
    kinds = {kind: split(getattr(tokens, kind), weights) for kind in TOKEN_KINDS if getattr(tokens, kind)}
    if not kinds:
        return [NO_TOKENS] * len(weights)
    return [Tokens(**{kind: parts[at] for kind, parts in kinds.items()}) for at in range(len(weights))]


def split_attempt(attempt: AttemptRecord, weights: Sequence[int]) -> list[AttemptRecord]:
    """One try as so many records, whose tokens and costs sum to its own."""
    costs = split(attempt.cost_nanousd - sum(item.nanousd or 0 for item in attempt.items), weights)
    parts = [
        msgspec.structs.replace(attempt, tokens=tokens, cost_nanousd=cost)
        for tokens, cost in zip(split_tokens(attempt.tokens, weights), costs, strict=True)
    ]
    return _with_split_items(parts, attempt.items, weights) if attempt.items else parts


def _with_split_items(
    parts: list[AttemptRecord], items: tuple[Item, ...], weights: Sequence[int]
) -> list[AttemptRecord]:
    """The parts of a try with their parts of its items."""
    shares: list[list[Item]] = [[] for _ in parts]
    for item in items:
        micros = split(item.micros, weights)
        costs = [None] * len(parts) if item.nanousd is None else split(item.nanousd, weights)
        for share, part, cost in zip(shares, micros, costs, strict=True):
            share.append(Item(item.kind, part, cost))
    return [
        msgspec.structs.replace(
            part, items=tuple(share), cost_nanousd=part.cost_nanousd + sum(item.nanousd or 0 for item in share)
        )
        for part, share in zip(parts, shares, strict=True)
    ]

"""How LiteLLM shares out calls within a model, in our words: the first of `weight`, `rpm` and `tpm` that is set decides for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from math import lcm

from controlplane.catalog.from_litellm_models import Object, Told

METRICS = ("weight", "rpm", "tpm")
_WEIGHT_MAX = 1_000_000
_ORDER_MAX = 100
_NO_RATE = "a deployment has no rate of its own; its upstream says when it is too much"
_NEAR = "it shares out calls by this, and does not hold them back"
_STANDBY = "calls go there when the others cannot serve, for there is no weight of nothing"


def share_out(rows: Sequence[tuple[str, Object, dict[str, float]]], *, shuffled: bool) -> Iterator[Told]:
    """Writes weights, and orders where they are needed, into the deployments of one model; says what became of each figure.

    rows: where each stands, the deployment, and its figures by name. shuffled: whether figures alone decide, so that one without gets nothing.
    """
    by_order = sorted(rows, key=lambda row: row[1].get("order", 0))
    told: list[tuple[Object, bool]] = []
    for _, group in groupby(by_order, key=lambda row: row[1].get("order", 0)):
        members = list(group)
        decides = next((name for name in METRICS if any(row[2].get(name, 0) > 0 for row in members)), None)
        weights = _whole([row[2].get(decides or "", 0.0) for row in members])
        for (place, entry, figures), weight in zip(members, weights, strict=True):
            stands_by = decides is not None and not weight and (shuffled or decides in figures)
            told.append((entry, stands_by))
            if weight:
                entry["weight"] = weight
            elif decides is not None and not stands_by:
                entry["weight"] = max(weights)
            yield from _said(place, figures, entry, decides=decides, stands_by=stands_by)
    if any(stands_by for _, stands_by in told):
        for entry, stands_by in told:  # each order becomes two, so that those who stand by come behind their own alone
            entry["order"] = min(_ORDER_MAX, 2 * int(entry.get("order", 0)) + stands_by)


def _said(
    place: str, figures: dict[str, float], entry: Object, *, decides: str | None, stands_by: bool
) -> Iterator[Told]:
    for name in METRICS:
        at = f"{place}.litellm_params.{name}"
        if name not in figures:
            continue
        if name != decides:
            yield "refused", at, "", _NO_RATE if name != "weight" else "it is nothing for all of them"
        elif stands_by:
            yield "approximated", at, "a later `order`", _STANDBY
        elif name == "weight":
            yield "mapped", at, f"weight: {entry['weight']}", ""
        else:
            yield "approximated", at, f"weight: {entry['weight']}", _NEAR
    if stands_by and decides not in figures:
        yield "approximated", f"{place}.litellm_params", "a later `order`", f"it has no `{decides}`; {_STANDBY}"


def _whole(amounts: Sequence[float]) -> list[int]:
    """Whole numbers in the same proportion, as written where they are whole; only nothing becomes 0."""
    exact = [Fraction(str(amount)) if amount > 0 else Fraction(0) for amount in amounts]
    scale = Fraction(lcm(*(each.denominator for each in exact)))
    largest = max(exact) * scale
    if largest > _WEIGHT_MAX:
        scale *= _WEIGHT_MAX / largest
    return [max(1, round(each * scale)) if each else 0 for each in exact]

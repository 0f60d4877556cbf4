"""Prices that the operator states: as they hold at a moment, with their long prompts, service classes and the days on which they change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec

from controlplane.catalog.bind import Bound
from controlplane.catalog.file import ConfigFile, PriceChangeEntry, PriceEntry, PriceKinds, ServicePriceEntry
from controlplane.contract.pricing import LongPrice, Price, ServicePrice, price_by_kind
from controlplane.errors import Problem

_KINDS = PriceKinds.__struct_fields__


def own_price(entry: PriceEntry, *, now_us: int) -> Price:
    """The price that holds now; its version names its content, so that rows tell under which price they were costed."""
    current: PriceEntry | PriceChangeEntry = entry
    for change in sorted(entry.changes, key=lambda change: change.start):
        if start_us(change) <= now_us:
            current = change
    fields = msgspec.structs.asdict(current)
    fields.pop("changes", None)
    digest = hashlib.sha256(msgspec.json.encode(fields, order="deterministic")).hexdigest()[:12]
    start = current.start if isinstance(current, PriceChangeEntry) else ""
    version = f"config/{start}/{digest}" if start else f"config/{digest}"
    return _with_classes(current, current.service, version)


def change_moments_us(config: ConfigFile) -> list[int]:
    """When prices of the file change, past and future."""
    entries = [entry.price for model in config.models for entry in model.deployments if entry.price is not None]
    return [start_us(change) for entry in (*entries, *config.prices.values()) for change in entry.changes]


def start_us(change: PriceChangeEntry) -> int:
    """Midnight, in UTC, of the day on which a price begins.

    Raises ValueError for a day that no month has.
    """
    return int(datetime.fromisoformat(change.start).replace(tzinfo=UTC).timestamp()) * 1_000_000


def price_problems(bound: Bound[ConfigFile]) -> Iterator[Problem]:
    """Prices that begin on a day which no month has, or of which two hold at once."""
    config = bound.value
    places: list[tuple[tuple[str | int, ...], PriceEntry]] = [
        (("prices", name), entry) for name, entry in config.prices.items()
    ]
    places += [
        (("models", m, "deployments", d, "price"), entry.price)
        for m, model in enumerate(config.models)
        for d, entry in enumerate(model.deployments)
        if entry.price is not None
    ]
    for place, price in places:
        days: set[str] = set()
        for c, change in enumerate(price.changes):
            at = (*place, "changes", c)
            try:
                start_us(change)
            except ValueError:
                yield bound.problem(f"there is no day {change.start}", *at, "from")
            if change.start in days:
                yield bound.problem(f"two prices begin on {change.start}", *at, "from", hint="keep one of them")
            days.add(change.start)
            yield from _thresholds(bound, at, change, change.service)
        yield from _thresholds(bound, place, price, price.service)


def _thresholds(
    bound: Bound[ConfigFile],
    place: tuple[str | int, ...],
    price: ServicePriceEntry,
    service: Mapping[str, ServicePriceEntry],
) -> Iterator[Problem]:
    for at, entry in ((place, price), *(((*place, "service", name), each) for name, each in service.items())):
        known: set[int] = set()
        for index, long in enumerate(entry.long):
            if long.above_tokens in known:
                yield bound.problem(f"two prices hold above {long.above_tokens} tokens", *at, "long", index)
            known.add(long.above_tokens)


def _with_classes(entry: ServicePriceEntry, service: Mapping[str, ServicePriceEntry], version: str) -> Price:
    standard = _price({}, entry, version)
    kinds = _kinds(entry)
    return msgspec.structs.replace(
        standard,
        long=_long(kinds, entry.long, version),
        service=tuple(
            ServicePrice(
                name,
                msgspec.structs.replace(
                    _price(kinds, each, f"{version}/{name}"),
                    long=_long({**kinds, **_kinds(each)}, each.long, f"{version}/{name}"),
                ),
            )
            for name, each in sorted(service.items())
        ),
    )


def _long(
    kinds: Mapping[str, int | dict[str, int]], entries: Iterable[PriceKinds], version: str
) -> tuple[LongPrice, ...]:
    return tuple(
        LongPrice(above, _price(kinds, entry, f"{version}/above-{above}"))
        for above, entry in sorted((getattr(entry, "above_tokens", 0), entry) for entry in entries)
    )


def _price(kinds: Mapping[str, int | dict[str, int]], entry: PriceKinds, version: str) -> Price:
    return price_by_kind({**kinds, **_kinds(entry)}, version=version)


def _kinds(entry: PriceKinds) -> dict[str, int | dict[str, int]]:
    """The kinds that an entry states."""
    stated = {kind: getattr(entry, kind) for kind in _KINDS}
    return {kind: amount for kind, amount in stated.items() if amount is not None}

"""Which deployment a call tries first, and which stand behind it: groups by order, leases, canaries, affinity, and the route's strategy."""

from __future__ import annotations

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from hashlib import blake2b

from controlplane.contract.pricing import Price, picture_nanousd
from controlplane.contract.routing import Principal, Strategy
from controlplane.contract.snapshot import LeaseKind
from proxy.call import Call
from proxy.dialects.dialect import RequestView
from proxy.dialects.operations import OPERATIONS
from proxy.load import Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate, RouteEntry

_PROMPT_BYTES_MAX = 4096
_OUTPUT_TOKENS_USUAL = 500  # of an answer without a ceiling, where prices are compared
_BYTES_PER_TOKEN = 4
_HEARD_S = 60  # of a sound whose length nobody knows yet
_BEGINS = (b'"system"', b'"messages"', b'"instructions"', b'"input"', b'"prompt"')


class Balancer:
    """Puts a route's candidates in order.

    A drained deployment gets no calls but the probes of its breaker. When all are drained the drains are ignored: a call that may
    fail is better than one that must. A deployment with a share is demoted to a fallback often enough to keep it, one whose breaker is
    open until it may be probed.

    sick: deployments whose breaker is not closed, kept up to date by its owner. probe_due: whether one of them wants a probe;
    draw: uniform in [0, 1). affinity_max: conversations whose deployment is remembered.
    """

    def __init__(
        self,
        metrics: ProxyMetrics,
        loads: Loads,
        *,
        probe_due: Callable[[str], bool],
        sick: Collection[str] = (),
        affinity_max: int = 10_000,
        draw: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._metrics = metrics
        self._loads = loads
        self._probe_due = probe_due
        self._sick = sick
        self._affinity_max = affinity_max
        self._draw = draw
        self._monotonic = monotonic
        self._now_us = now_us
        self._homes: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # conversation: deployment, until

    def order(self, call: Call, entry: RouteEntry) -> tuple[Candidate, ...]:
        """The candidates in the order in which they are to be tried."""
        if entry.plain is not None:
            return entry.plain
        probes: list[Candidate] = []
        first: list[Candidate] = []
        fallbacks: list[Candidate] = []
        demoted: list[Candidate] = []
        chosen = self._canary(call, entry)
        for group in entry.groups:
            live: list[Candidate] = []
            for candidate in group:
                self._place(candidate, chosen, live=live, probes=probes, demoted=demoted)
            if first:
                fallbacks.extend(self._by_strategy(call, entry, live))
            else:
                first = self._by_strategy(call, entry, live)
        if first or demoted:
            ordered = (*probes, *first, *fallbacks, *demoted)
            if entry.route.affinity is None:
                return ordered
            return self._at_home(call, entry, ordered, len(demoted), chosen=bool(probes))
        self._metrics.bound_hit("all_drained")
        return tuple(item for group in entry.groups for item in self._by_strategy(call, entry, list(group)))

    def served(self, call: Call, deployment: str) -> None:
        """Remembers where a conversation is at home, where its route asks for that."""
        entry = call.route
        affinity = None if entry is None else entry.route.affinity
        if entry is None or affinity is None:
            return
        who = principal_of(call, affinity.by)
        if who is None:
            return
        homes, key = self._homes, _digest(entry.route.alias, who)
        homes[key] = (deployment, self._monotonic() + affinity.ttl_s)
        homes.move_to_end(key)
        if len(homes) > self._affinity_max:
            homes.popitem(last=False)
            self._metrics.bound_hit("affinity_entries_max")

    @property
    def conversations(self) -> int:
        """Conversations whose deployment is remembered."""
        return len(self._homes)

    def _place(
        self,
        candidate: Candidate,
        chosen: dict[str, bool],
        *,
        live: list[Candidate],
        probes: list[Candidate],
        demoted: list[Candidate],
    ) -> None:
        """Puts a candidate where its leases, its breaker and the canary say."""
        name, lease = candidate.deployment.id, candidate.lease
        if lease is not None and lease.expires_us > self._now_us():
            if lease.kind is LeaseKind.SHARE:
                (live if self._draw() < lease.share else demoted).append(candidate)
            elif self._probe_due(name):
                probes.append(candidate)
        elif self._sick and name in self._sick and not self._probe_due(name):
            demoted.append(candidate)
        elif name in chosen:
            (probes if chosen[name] else demoted).append(candidate)
        else:
            live.append(candidate)

    def _canary(self, call: Call, entry: RouteEntry) -> dict[str, bool]:
        """The canary of the route, if it has one, and whether this call is one of its."""
        canary = entry.route.canary
        if canary is None:
            return {}
        who = principal_of(call, canary.by)
        at = self._draw() if who is None else _place_of(_digest(entry.route.alias, who))
        return {canary.deployment: at < canary.share}

    def _at_home(
        self, call: Call, entry: RouteEntry, ordered: tuple[Candidate, ...], demoted: int, *, chosen: bool
    ) -> tuple[Candidate, ...]:
        """The same with the conversation's own deployment first, as long as that is healthy.

        chosen: the first is there for a reason, as a canary for its share; a new conversation begins there.
        """
        affinity = entry.route.affinity
        who = None if affinity is None else principal_of(call, affinity.by)
        if who is None:
            return ordered
        key = _digest(entry.route.alias, who)
        known = self._homes.get(key)
        healthy = ordered[: len(ordered) - demoted]
        if known is not None and known[1] > self._monotonic():
            home = next((item for item in healthy if item.deployment.id == known[0]), None)
            if home is not None:
                return (home, *(item for item in ordered if item is not home))
        if entry.route.strategy is not Strategy.WEIGHTED or not healthy or chosen:
            return ordered
        same = [item for item in healthy if item.deployment.order == healthy[0].deployment.order]
        home = max(same, key=lambda item: _rendezvous(key, item))  # so that workers agree without asking each other
        return (home, *(item for item in ordered if item is not home))

    def _by_strategy(self, call: Call, entry: RouteEntry, group: list[Candidate]) -> list[Candidate]:
        """One chosen by the strategy, the others behind it."""
        if len(group) < 2:
            return group
        strategy = entry.route.strategy
        if strategy is Strategy.WEIGHTED:
            return self._by_weight(group)
        if strategy is Strategy.LOWEST_LATENCY:
            return self._of_two(group)
        if strategy is Strategy.LEAST_BUSY:
            return sorted(group, key=lambda item: (self._busy(item), self._draw()))
        if strategy is Strategy.CHEAPEST:
            return sorted(group, key=lambda item: _expected_cost(call, item))
        return group

    def _busy(self, candidate: Candidate) -> float:
        inflight = self._loads.of(candidate.deployment.id).inflight
        return (inflight + 1) / max(candidate.deployment.weight, 0.001)

    def _of_two(self, group: list[Candidate]) -> list[Candidate]:
        """The better of two drawn ones; with everybody on the best one, news that are a moment old would make a herd."""
        one = min(int(self._draw() * len(group)), len(group) - 1)
        other = min(int(self._draw() * (len(group) - 1)), len(group) - 2)
        other += other >= one
        of = self._loads.of
        scores = {item.deployment.id: of(item.deployment.id).score for item in group}
        best = min((group[one], group[other]), key=lambda item: scores[item.deployment.id])
        rest = sorted((item for item in group if item is not best), key=lambda item: scores[item.deployment.id])
        return [best, *rest]

    def _by_weight(self, group: list[Candidate]) -> list[Candidate]:
        """One drawn by weight, the others behind it, heaviest first."""
        total = sum(max(0, candidate.deployment.weight) for candidate in group)
        if total == 0:
            return group
        at = self._draw() * total
        chosen = group[-1]
        for candidate in group:
            at -= max(0, candidate.deployment.weight)
            if at < 0:
                chosen = candidate
                break
        rest = sorted((item for item in group if item is not chosen), key=lambda item: -item.deployment.weight)
        return [chosen, *rest]


def principal_of(call: Call, by: Principal) -> str | None:
    """Who a call belongs to, with its tenant so that no two tenants are one; None: the call does not say."""
    identity = call.identity
    if by is Principal.KEY:
        who = "" if identity is None else identity.key.id
    elif by is Principal.PROMPT:
        who = _prompt(call.body)
    else:
        who = call.session if by is Principal.SESSION else call.user if by is Principal.USER else call.agent
    tenant = "" if identity is None else identity.tenant.id
    return f"{tenant}\0{who}" if who else None


def _prompt(body: bytes) -> str:
    """The beginning of the conversation: its first message or system prompt, which later turns repeat."""
    begins = [at for at in (body.find(name) for name in _BEGINS) if at >= 0]
    if not begins:
        return ""
    start = min(begins)
    end = body.find(b"}", start, start + _PROMPT_BYTES_MAX)
    return body[start : end if end > 0 else start + _PROMPT_BYTES_MAX].hex()


def _digest(alias: str, who: str) -> bytes:
    return blake2b(f"{alias}\0{who}".encode(), digest_size=8).digest()


def _place_of(digest: bytes) -> float:
    """A digest as a number in [0, 1)."""
    return int.from_bytes(digest[:7], "big") / 2**56


def _rendezvous(key: bytes, candidate: Candidate) -> float:
    """Weighted rendezvous: of all candidates the highest wins; one that goes takes only its own conversations along."""
    weight = candidate.deployment.weight
    if weight <= 0:
        return -math.inf
    at = _place_of(blake2b(key + candidate.deployment.id.encode(), digest_size=8).digest())
    return weight / -math.log(max(at, 2**-56))


def _expected_cost(call: Call, candidate: Candidate) -> float:
    """About what the call would cost there; unpriced last."""
    price, view = candidate.deployment.price, call.view
    if price is None:
        return math.inf
    unit = OPERATIONS[call.operation].unit
    if unit and view is not None:
        cost = _by_unit(view, price, unit)
        if cost is not None:
            return cost * 1e6  # as the others: those prices are for a million tokens
    output = _OUTPUT_TOKENS_USUAL if view is None or view.max_output_tokens is None else view.max_output_tokens
    return len(call.body) / _BYTES_PER_TOKEN * price.input + output * price.output


def _by_unit(view: RequestView, price: Price, unit: str) -> int | None:
    """About what a call costs that is billed by something else than tokens; None: this has no price."""
    if unit == "second":
        return None if price.second is None else price.second * _HEARD_S
    if unit == "character":
        return None if price.character is None else price.character * view.characters
    found = picture_nanousd(price, quality=view.quality, size=view.size)
    return None if found is None else found * view.n

"""What the lines of a batch's results add up to, model by model, each line at the batch prices of its model."""

from __future__ import annotations

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Item, Tokens
from controlplane.contract.records import CostState
from controlplane.contract.snapshot import Deployment
from proxy import meter
from proxy.dialects.dialect import Malformed
from proxy.dialects.filed import Answered, Filed, Lines, read_result
from proxy.dialects.hosted_tools import SEARCHED, always_searches, used_in
from proxy.dialects.openai_usage import read_io_usage
from proxy.dialects.service_class import service_class_of
from proxy.transports.batch_plan import BATCH
from proxy.transports.owners import BatchModel, Promised


class Used(msgspec.Struct):
    """What the lines of one model add up to."""

    model: BatchModel
    requests: int = 0
    tokens: Tokens = NO_TOKENS
    nanousd: int = 0
    state: CostState = CostState.FINAL
    price_version: str = ""
    items: dict[str, Item] = {}


class Bill:
    """Adds up what the results of a batch say, as they come."""

    def __init__(self, batch: Promised, line_bytes_max: int) -> None:
        self._batch = batch
        self._lines = Lines(line_bytes_max)
        self._line_bytes_max = line_bytes_max
        self._left_out = 0  # of the files before this one
        self.used: dict[str, Used] = {}  # by alias
        self.unknown = 0  # lines that were answered and whose usage could not be read

    @property
    def left_out(self) -> int:
        """Lines that were too long to be read."""
        return self._left_out + self._lines.left_out

    def feed(self, data: bytes) -> None:
        """Some more of a file."""
        for line in self._lines.feed(data):
            self._add(line)

    def finish(self) -> None:
        """The end of a file. A line that was left out has a cost that is not in the sum."""
        for line in self._lines.finish():
            self._add(line)
        if self._lines.left_out:
            self._lacks()
        self._left_out += self._lines.left_out
        self._lines = Lines(self._line_bytes_max)

    def add_summary(self, said: Filed) -> bool:
        """The results are gone, and what the batch itself says must do: a sum, so an estimate. False if it says nothing."""
        tokens = read_io_usage(said.usage) if bytes(said.usage) else None
        if tokens is not None and tokens.total:
            self._count(Answered(said.model or "", tokens, msgspec.Raw(b"{}")))
        self._lacks()
        return tokens is not None

    def _add(self, line: bytes) -> None:
        try:
            answered = read_result(line, of_anthropic=self._batch.of_anthropic)
        except Malformed:
            self._lacks()
            return
        if answered is not None:
            self._count(answered)

    def _count(self, answered: Answered) -> None:
        model, certain = self._model(answered.model)
        used = self.used.setdefault(model.alias, Used(model))
        used.requests += 1
        if answered.tokens is None:
            self.unknown += 1
            _worsen(used, CostState.ESTIMATED)
            return
        cost, state, used.price_version, items = cost_of(answered, model)
        used.nanousd += cost
        used.tokens = _sum(used.tokens, answered.tokens)
        for one in items:
            known = used.items.get(one.kind)
            used.items[one.kind] = one if known is None else one.plus(known)
        _worsen(used, state if certain else CostState.ESTIMATED)

    def _model(self, said: str) -> tuple[BatchModel, bool]:
        """Which of the batch's models has answered, by the upstream's word for it, and whether that is sure: else the first."""
        models = self._batch.batched.models
        if len(models) == 1:
            return models[0], True
        fitting = [model for model in models if said.startswith(model.model)]
        return (max(fitting, key=lambda model: len(model.model)), True) if fitting else (models[0], False)

    def _lacks(self) -> None:
        """Something is missing in the sums."""
        self.unknown += 1
        if not self.used:
            first = self._batch.batched.models[0]
            self.used[first.alias] = Used(first)
        for used in self.used.values():
            _worsen(used, CostState.ESTIMATED)


def cost_of(answered: Answered, model: BatchModel) -> tuple[int, CostState, str, tuple[Item, ...]]:
    """Cost of one line at the batch prices of its model, how well it is known, the price's version, and what is not tokens in it.

    A price that says nothing of batches is the standard one, which is rather too high: an estimate.
    """
    tokens = answered.tokens or NO_TOKENS
    deployment = Deployment(model.deployment, "", model.model, price=model.price)
    said = service_class_of(bytes(answered.body))
    also = [name for name in said.split("+") if name and name != BATCH]
    cost, state, version = meter.priced(tokens, deployment, service_class="+".join((BATCH, *also)))
    price = model.price
    if state is CostState.FINAL and price is not None and not any(one.name == BATCH for one in price.service):
        state = CostState.ESTIMATED
    used = used_in(bytes(answered.body)) or (SEARCHED if tokens.total and always_searches(model.model) else ())
    cost, state, items = meter.with_tools(cost, state, used, price)
    return cost, state, version, items


def _worsen(used: Used, state: CostState) -> None:
    order = (CostState.FINAL, CostState.ESTIMATED, CostState.UNPRICED)
    used.state = max(used.state, state, key=order.index)


def _sum(first: Tokens, second: Tokens) -> Tokens:
    return Tokens(*(getattr(first, kind) + getattr(second, kind) for kind in Tokens.__struct_fields__))

"""A second try on another deployment when the first shows no content for long; the first content wins, and the loser is cancelled.

A hedge is made when all of these hold:

- the first try has shown nothing for the hedge's delay: `after_ms`, or the percentile of what this deployment usually takes;
- hedges stay within `budget_ratio` of the route's calls over the last ten seconds;
- the second try costs at most `max_extra_usd` by expectation;
- what is gained is worth what it costs: (what a first try still takes that is late by so much, less what the other deployment usually
  takes) times `second_worth_usd` is more than the expected cost of the second try. Past the delay being late is no chance but a
  fact, so the chance of it is in the delay.

Both tries are recorded and billed, the loser with an estimate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Hedge
from proxy import meter
from proxy.call import Call, Reply
from proxy.dialects.operations import OPERATIONS
from proxy.load import DeploymentLoad, Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate, RouteEntry
from proxy.transports.attempt import Attempt, AttemptFailed, AttemptTransport
from proxy.transports.breaker import BreakerOpen
from proxy.transports.concurrency import Saturated
from proxy.transports.retry import RetryBudget

_OBSERVED_MIN = 20  # fewer answers are no percentile
_OUTPUT_TOKENS_USUAL = 500  # of an answer, as long as none was seen


class HedgedTransport:
    """Makes one try, or two that race."""

    def __init__(
        self,
        inner: AttemptTransport,
        loads: Loads,
        metrics: ProxyMetrics,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._loads = loads
        self._metrics = metrics
        self._monotonic = monotonic
        self._budgets: dict[str, RetryBudget] = {}  # by alias

    def configure(self, aliases: set[str]) -> None:
        """Forgets the routes that a new snapshot no longer hedges."""
        for gone in self._budgets.keys() - aliases:
            del self._budgets[gone]

    async def send(
        self,
        attempt: Attempt,
        others: Sequence[Candidate],
        *,
        entry: RouteEntry,
        hedge: Hedge,
        make: Callable[[Candidate], Attempt],
        failed: Callable[[Candidate, AttemptFailed], None],
    ) -> Reply:
        """The reply whose first content came first.

        others: where the second try may go. failed: told of a try that failed and whose failure is not raised.
        Raises what the first try raised when none brought an answer, whichever of them was the last.
        """
        call = attempt.call
        budget = self._budget_of(entry, hedge)
        budget.count_call()
        delay_s = self._delay_s(attempt.candidate, hedge)
        loop = asyncio.get_running_loop()
        waited_ns, began_ns = call.waited_ns, time.monotonic_ns()
        tries = {loop.create_task(self._one(attempt)): attempt}
        try:
            done, _ = await asyncio.wait(tries, timeout=delay_s)
            if not done and (target := self._target(call, attempt, others, hedge, delay_s or 0.0)) is not None:
                if budget.take():
                    second = make(target)
                    tries[loop.create_task(self._one(second))] = second
                else:
                    self._metrics.bound_hit("hedge_budget_ratio")
            won = await self._first(tries, first=attempt, failed=failed)
        except BaseException:
            await _cancel(tries)
            raise
        else:
            try:
                await _cancel(tries)
            except BaseException:  # the call is cancelled now that it has been won
                if won.stream is not None:
                    won.stream.close()
                raise
            return won
        finally:
            call.waited_ns = waited_ns + time.monotonic_ns() - began_ns

    async def _one(self, attempt: Attempt) -> Reply:
        try:
            return await self._inner.send(attempt)
        except AttemptFailed as failure:
            attempt.fail(failure)
            raise

    async def _first(
        self,
        tries: dict[asyncio.Task[Reply], Attempt],
        *,
        first: Attempt,
        failed: Callable[[Candidate, AttemptFailed], None],
    ) -> Reply:
        """The first good reply of those that run; a try that fails leaves the others alone."""
        running = set(tries)
        hedged = len(tries) > 1
        first_failure: Exception | None = None
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: tries[task] is not first):
                error = task.exception()
                if error is not None and not isinstance(error, (AttemptFailed, BreakerOpen, Saturated)):
                    raise error  # a bug of ours: with the others, this try is ended by who called
                ended = tries.pop(task)
                if error is None:
                    if isinstance(first_failure, AttemptFailed):
                        failed(first.candidate, first_failure)
                    if hedged:
                        self._won(ended, tries.values(), won_by_second=ended is not first)
                    return task.result()
                if ended is first:
                    first_failure = error
                elif isinstance(error, AttemptFailed):
                    failed(ended.candidate, error)
                if not tries:
                    assert first_failure is not None, "the first is one of those that have failed"  # noqa: S101
                    raise first_failure

    def _won(self, winner: Attempt, losers: Iterable[Attempt], *, won_by_second: bool) -> None:
        now_ns = time.monotonic_ns()
        for loser in losers:
            if loser.judge is not None:
                self._loads.of(loser.candidate.deployment.id).late((now_ns - loser.started_ns) / 1e9)
        self._metrics.hedge_ended("second" if won_by_second else "first")
        if winner.first_token_us:  # the loser may have said otherwise in the meantime
            call = winner.call
            call.first_token_us = (winner.started_ns - call.started_ns) // 1000 + winner.first_token_us

    def _target(
        self, call: Call, first: Attempt, others: Sequence[Candidate], hedge: Hedge, waited_s: float
    ) -> Candidate | None:
        """Where a second try is worth its price; None: nowhere."""
        of = self._loads.of
        for candidate in others:
            other = of(candidate.deployment.id)
            if candidate.deployment.id == first.candidate.deployment.id or not other.has_room:
                continue
            cost = _expected_nanousd(call, candidate, other)
            if hedge.extra_nanousd_max is not None and (cost is None or cost > hedge.extra_nanousd_max):
                self._metrics.hedge_ended("too_dear")
                continue
            if hedge.second_nanousd is not None:
                gain_s = of(first.candidate.deployment.id).sketch.left_s(waited_s) - other.sketch.quantile(0.5)
                if cost is None or gain_s * hedge.second_nanousd <= cost:
                    self._metrics.hedge_ended("not_worth_it")
                    continue
            return candidate
        return None

    def _delay_s(self, candidate: Candidate, hedge: Hedge) -> float | None:
        """When the first try is late; None: nobody knows yet."""
        if hedge.after_ms is not None:
            return hedge.after_ms / 1000
        sketch = self._loads.of(candidate.deployment.id).sketch
        if hedge.after_percentile is None or sketch.total < _OBSERVED_MIN:
            return None
        return sketch.quantile(hedge.after_percentile / 100)

    def _budget_of(self, entry: RouteEntry, hedge: Hedge) -> RetryBudget:
        alias = entry.route.alias
        budget = self._budgets.get(alias)
        if budget is None:
            budget = self._budgets[alias] = RetryBudget(
                ratio=hedge.budget_ratio, min_per_s=0.0, monotonic=self._monotonic
            )
        budget.ratio = hedge.budget_ratio
        return budget


async def _cancel(tries: dict[asyncio.Task[Reply], Attempt]) -> None:
    """Ends the tries that nobody waits for any more, and waits until they have ended."""
    for task in tries:
        task.cancel()
    try:
        await asyncio.gather(*tries, return_exceptions=True)
    finally:
        for task, attempt in tries.items():
            if task.done() and not task.cancelled() and task.exception() is None:  # it came in the same moment
                stream = task.result().stream
                if stream is not None:
                    stream.close()
            if attempt.judge is not None:  # else nothing was sent
                attempt.finish(AttemptError.CANCELLED)


def _expected_nanousd(call: Call, candidate: Candidate, load: DeploymentLoad) -> int | None:
    """About what the call costs there; None: nobody knows."""
    unit = OPERATIONS[call.operation].unit
    if unit:
        item = meter.by_unit(call, candidate.deployment.price, unit=unit, heard_us=None, drawn=None)
        if item is None or item.nanousd is not None:
            return None if item is None else item.nanousd
    output = load.output_tokens or _OUTPUT_TOKENS_USUAL
    view = call.view
    if view is not None and view.max_output_tokens is not None:
        output = min(output, view.max_output_tokens)
    tokens = Tokens(input=len(call.body) // meter.BYTES_PER_TOKEN, output=int(output))
    cost, _, version = meter.priced(tokens, candidate.deployment)
    return cost if candidate.deployment.price is not None or version else None

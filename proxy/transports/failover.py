"""The next deployment on a failure that another may not have: within the deadline, the route's attempts and a retry budget.

The commit point is the first content byte: the transports below hold a stream back until then, so everything that fails here can
be tried again without the client seeing it twice.

The budget is there so that retries do not bury an upstream that is in trouble. A move to an upstream that this call has not tried yet adds
nothing to that trouble and is free of it: an outage of one upstream costs calls only where there is no other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, Outcome
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.runtime import Candidate
from proxy.transports.attempt import Attempt, AttemptFailed, AttemptTransport
from proxy.transports.breaker import BreakerOpen

_BACKOFF_S = 0.05
# Worth another try on the same deployment; everything else that is not final is worth only another deployment.
_TRANSIENT = frozenset(
    (
        AttemptError.CONNECT,
        AttemptError.STATUS_429,
        AttemptError.STATUS_5XX,
        AttemptError.FIRST_BYTE_TIMEOUT,
        AttemptError.IDLE_TIMEOUT,
        AttemptError.TRUNCATED,
        AttemptError.MALFORMED,
    )
)
_WINDOW_S = 10
_OVERLOADED = 529  # Anthropic's; its clients know what to make of it
_LOG_EVERY_S = 1.0  # an outage fails thousands of calls; their attempts are all recorded, one line a second tells why

log = structlog.get_logger("proxy.failover")


class RetryBudget:
    """How often all calls together may ask an upstream again: a share of the calls of the last ten seconds, and at least a few."""

    def __init__(self, *, ratio: float, min_per_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ratio = ratio
        self._least = min_per_s * _WINDOW_S
        self._monotonic = monotonic
        self._second = 0
        self._calls = [0] * _WINDOW_S
        self._retries = [0] * _WINDOW_S

    def count_call(self) -> None:
        """Counts a call's first try."""
        self._calls[self._slot()] += 1

    def take(self) -> bool:
        """Takes one retry, if the budget still has one."""
        slot = self._slot()
        if sum(self._retries) + 1 > max(self._ratio * sum(self._calls), self._least):
            return False
        self._retries[slot] += 1
        return True

    def _slot(self) -> int:
        now = int(self._monotonic())
        if now != self._second:
            for passed in range(max(self._second + 1, now - _WINDOW_S + 1), now + 1):
                self._calls[passed % _WINDOW_S] = self._retries[passed % _WINDOW_S] = 0
            self._second = now
        return now % _WINDOW_S


class _Tries:
    """What the tries of one call have come to so far."""

    __slots__ = ("blocked", "count", "failures", "open_retry_after_s", "upstreams")

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[AttemptFailed] = []
        self.blocked = 0  # breakers that were open
        self.open_retry_after_s = 0.0
        self.upstreams: list[str] = []  # of the failures


class Failover:
    """Tries the candidates in order, and again where that can help."""

    def __init__(
        self,
        inner: AttemptTransport,
        settings: ProxySettings,
        metrics: ProxyMetrics,
        *,
        budget: RetryBudget | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._settings = settings
        self._metrics = metrics
        self._budget = budget or RetryBudget(ratio=settings.retry_ratio, min_per_s=settings.retry_min_per_s)
        self._monotonic = monotonic
        self._logged_at = -_LOG_EVERY_S

    async def send(self, call: Call) -> Reply:
        """The first good reply, an upstream's final refusal of the request, or our refusal when nothing is left to try."""
        self._budget.count_call()
        tries = _Tries()
        candidates = call.candidates
        while candidates:
            again: list[Candidate] = []
            for candidate in candidates:
                if not self._may_try(call, tries, candidate):
                    return self._give_up(call, tries)
                reply, worth_again = await self._try(call, candidate, tries)
                if reply is not None:
                    return reply
                if worth_again:
                    again.append(candidate)
            if not again or not self._may_retry(call, tries) or not await self._pause(call, tries):
                break
            candidates = tuple(again)
        return self._give_up(call, tries)

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()

    async def _try(self, call: Call, candidate: Candidate, tries: _Tries) -> tuple[Reply | None, bool]:
        """One try: its reply if it ends the call, and whether the same deployment may be tried again."""
        attempt = Attempt(call, candidate, metrics=self._metrics, tokens_per_s=self._settings.abandoned_tokens_per_s)
        try:
            reply = await self._inner.send(attempt)
        except BreakerOpen as blocked:
            tries.blocked += 1
            waits = [wait for wait in (tries.open_retry_after_s, blocked.retry_after_s) if wait > 0.0]
            tries.open_retry_after_s = min(waits, default=0.0)
            return None, False
        except AttemptFailed as failure:
            attempt.finish(failure.error)
            tries.count += 1
            tries.failures.append(failure)
            tries.upstreams.append(candidate.deployment.upstream)
            if failure.error is AttemptError.REJECTED and failure.reply is not None:
                return _passed_through(failure.reply, Outcome.UPSTREAM_REFUSED), False
            return None, failure.error in _TRANSIENT
        except asyncio.CancelledError:
            attempt.finish(AttemptError.CANCELLED)
            raise
        except BaseException:
            attempt.finish(
                AttemptError.CANCELLED
            )  # a bug of ours, no fault of the deployment: recorded, and left to rise
            raise
        tries.count += 1
        return reply, False

    def _may_try(self, call: Call, tries: _Tries, candidate: Candidate) -> bool:
        """Before each try: the first on each upstream is free, the others are taken from the budget."""
        if tries.count == 0:
            return True
        if call.route is not None and tries.count >= call.route.route.attempts_max:
            return False
        if self._monotonic() >= call.deadline:
            return False
        if candidate.deployment.upstream not in tries.upstreams or self._budget.take():
            return True
        self._metrics.bound_hit("retry_ratio")
        return False

    def _may_retry(self, call: Call, tries: _Tries) -> bool:
        """Before a second round over the same deployments."""
        attempts_max = call.route.route.attempts_max if call.route is not None else 1
        return tries.count < attempts_max and self._monotonic() < call.deadline

    async def _pause(self, call: Call, tries: _Tries) -> bool:
        """Waits before a second round, as long as the upstreams asked for; False when that is longer than we may wait."""
        asked_s = [failure.retry_after_s for failure in tries.failures if failure.error is AttemptError.STATUS_429]
        wait_s = min(asked_s) if asked_s and len(asked_s) == len(tries.failures) else 0.0
        if wait_s > self._settings.retry_after_s_max:
            return False
        wait_s = max(wait_s, _BACKOFF_S * 2 ** min(tries.count, 6) * random.uniform(0.5, 1.0))
        if self._monotonic() + wait_s >= call.deadline:
            return False
        began_ns = time.monotonic_ns()
        await asyncio.sleep(wait_s)
        call.waited_ns += time.monotonic_ns() - began_ns
        return True

    def _give_up(self, call: Call, tries: _Tries) -> Reply:
        """What the client hears when no try brought an answer."""
        alias = call.view.model if call.view is not None else ""
        if not tries.failures:
            message = f"no healthy deployment for model `{alias}`: every breaker is open; try again later"
            return refuse(refusals.UNAVAILABLE, message, retry_after_s=max(1.0, tries.open_retry_after_s))
        self._log(call, alias, tries)
        last = tries.failures[-1]
        errors = {failure.error for failure in tries.failures}
        overloaded = {failure.reply.status for failure in tries.failures if failure.reply is not None} == {_OVERLOADED}
        if last.reply is not None and (errors == {AttemptError.STATUS_429} or overloaded):
            return _passed_through(last.reply, Outcome.EXHAUSTED)
        if AttemptError.DEADLINE in errors or self._monotonic() >= call.deadline:
            return refuse(refusals.TIMED_OUT, f"no answer for model `{alias}` within the call's deadline: {last}")
        if errors <= {AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.IDLE_TIMEOUT}:
            return refuse(refusals.TIMED_OUT, f"no deployment of model `{alias}` answered in time: {last}")
        if errors == {AttemptError.AUTH} and last.reply is None:
            message = f"model `{alias}` is not set up completely; its operator finds the reason under {call.call_id}"
            return refuse(refusals.MISCONFIGURED, message)
        message = f"all deployments of model `{alias}` failed after {tries.count} tries; the last: {last}"
        return refuse(refusals.EXHAUSTED, message)

    def _log(self, call: Call, alias: str, tries: _Tries) -> None:
        """Tells the operator what the client must not know: hosts, credentials, what upstreams say about our account."""
        now = self._monotonic()
        if now - self._logged_at < _LOG_EVERY_S:
            self._metrics.bound_hit("log_every_s")
            return
        self._logged_at = now
        reasons = [failure.detail for failure in tries.failures]
        log.warning("a call could not be served", call_id=call.call_id, model=alias, reasons=reasons)


def _passed_through(reply: Reply, outcome: Outcome) -> Reply:
    """An upstream's own error, body unmodified; or our refusal of what its language cannot say."""
    if reply.refusal is not None:
        return reply
    reply.outcome = outcome
    reply.error_code = "upstream_refused" if outcome is Outcome.UPSTREAM_REFUSED else "exhausted"
    return reply

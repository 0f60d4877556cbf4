"""The next deployment on a failure that another may not have: within the deadline, the route's attempts and a retry budget.

The commit point is the first content byte: the transports below hold a stream back until then, so everything that fails here can
be tried again without the client seeing it twice. What follows which class of failure is the route's policy (`RouteEntry.rules`);
when the model's own deployments have nothing left, other models are asked, where the route names some.

The budget is there so that retries do not bury an upstream that is in trouble. A move to an upstream that this call has not tried yet adds
nothing to that trouble and is free of it: an outage of one upstream costs calls only where there is no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.routing import ENDS, Again, FallbackKind
from controlplane.contract.snapshot import Unpriced
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.runtime import Candidate, RouteEntry
from proxy.transports.attempt import Attempt, AttemptFailed, AttemptTransport
from proxy.transports.breaker import BreakerOpen
from proxy.transports.concurrency import Saturated, Shed
from proxy.transports.hedge import HedgedTransport
from proxy.transports.retry import Rests, RetryBudget, pause_s
from proxy.transports.tries import Tries, fallback_kind, given_up, passed_through

_LOG_EVERY_S = 1.0  # an outage fails thousands of calls; their attempts are all recorded, one line a second tells why

log = structlog.get_logger("proxy.failover")

_TROUBLE = (AttemptFailed, BreakerOpen, Saturated, Shed)
Order = Callable[[Call, RouteEntry], tuple[Candidate, ...]]


class Failover:
    """Tries the candidates in order, again where that can help, and then those of other models.

    places: the way to deployments whose load is counted, hedged: to two of them at once; inner: to all others.
    order: another model's candidates in the order in which they are to be tried. tries_when_all_open: what the operator wants
    to happen to calls that have only open breakers.
    """

    def __init__(
        self,
        inner: AttemptTransport,
        places: AttemptTransport,
        hedged: HedgedTransport,
        settings: ProxySettings,
        metrics: ProxyMetrics,
        *,
        order: Order,
        tries_when_all_open: Callable[[], bool] = lambda: False,
        budget: RetryBudget | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._places = places
        self._hedged = hedged
        self._settings = settings
        self._metrics = metrics
        self._order = order
        self._tries_when_all_open = tries_when_all_open
        self._budget = budget or RetryBudget(ratio=settings.retry_ratio, min_per_s=settings.retry_min_per_s)
        self._monotonic = monotonic
        self._logged_at = -_LOG_EVERY_S
        self.rests = Rests(rest_s_max=settings.rest_s_max, monotonic=monotonic)

    async def send(self, call: Call) -> Reply:
        """The first good reply, an upstream's final refusal of the request, or our refusal when nothing is left to try."""
        self._budget.count_call()
        entry = call.route
        assert entry is not None, "route comes first"  # noqa: S101
        if self.rests.until:
            call.candidates = self.rests.last(call.candidates)
        candidates = call.candidates
        tries = None
        if entry.route.hedge is None and candidates:  # nearly all calls end with their first try
            first, alone = candidates[0], len(candidates) == 1
            attempt = self._attempt(call, first, alone=alone)
            attempt.patient = alone
            try:
                reply = await (self._places if first.measured else self._inner).send(attempt)
                if not entry.spares:
                    return reply
                tries = Tries(begun=reply)
            except _TROUBLE as trouble:
                tries = Tries(begun=(attempt, trouble))
            except BaseException:
                _abandon(attempt)
                raise
        return await self._serve(call, entry, tries or Tries())

    async def _serve(self, call: Call, entry: RouteEntry, tries: Tries) -> Reply:
        """All that `send` does, from where it stands."""
        if isinstance(tries.begun, Reply):
            reply: Reply | None = tries.begun
        else:
            reply = await self._walk(call, entry, call.candidates, tries)
        if entry.spares:
            kind = FallbackKind.GENERAL if reply is None else fallback_kind(reply)
            if kind is not None:
                reply = await self._fall_back(call, entry, kind, reply, tries)
        if reply is None and tries.only_open and call.candidates and self._tries_when_all_open():
            self._metrics.bound_hit("all_open")
            reply, _ = await self._last_resort(call, entry, call.candidates[0], tries, forced=True)
        return self._give_up(call, tries) if reply is None else reply

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()

    async def _fall_back(
        self, call: Call, entry: RouteEntry, kind: FallbackKind, reply: Reply | None, tries: Tries
    ) -> Reply | None:
        """What another model answers, of those that this key may use; the reply that there was if none does better."""
        identity = call.identity
        for alias in entry.route.fallbacks.of(kind):
            other = call.runtime.routes.get(alias)
            allowed = identity is None or identity.models is None or alias in identity.models
            if other is None or not allowed or self._monotonic() >= call.deadline:
                continue
            if call.operation not in other.serves:
                other = other.narrowed.get(call.operation)
                if other is None:
                    continue
            candidates = self._order(call, other)
            if self.rests.until:
                candidates = self.rests.last(candidates)
            if identity is not None and identity.tenant.unpriced is Unpriced.REFUSE:
                candidates = tuple(item for item in candidates if item.deployment.price is not None)
            tries.leg, tries.saturated = 0, []
            self._metrics.fell_back(kind.value)
            call.fell_back = kind.value
            answer = await self._walk(call, other, candidates, tries)
            if answer is not None:
                if kind is FallbackKind.GENERAL or fallback_kind(answer) is None:
                    return answer
                reply = answer
        return reply

    async def _walk(self, call: Call, entry: RouteEntry, candidates: Sequence[Candidate], tries: Tries) -> Reply | None:
        """Tries one model's candidates in order, then again those where that may help; None: they have nothing left."""
        while candidates:
            again: list[Candidate] = []
            for at, candidate in enumerate(candidates):
                if candidate.deployment.id not in tries.lost and not self._may_try(call, entry, tries, candidate):
                    return None
                reply, on = await self._try_until_moved(call, entry, candidate, candidates[at + 1 :], tries)
                if reply is not None or on is Again.NONE:
                    return reply
                if on is Again.ANY:
                    again.append(candidate)
            if tries.saturated:  # who is busy is better than who has failed
                busy, tries.saturated = tries.saturated[0], []
                if not self._may_try(call, entry, tries, busy):
                    return None
                reply, on = await self._last_resort(call, entry, busy, tries)
                if reply is not None or on is Again.NONE:
                    return reply
            if (
                not again
                or not self._may_retry(call, entry, tries)
                or not await self._pause(call, tries.failures, tries)
            ):
                break
            candidates = again
        return None

    async def _try_until_moved(
        self, call: Call, entry: RouteEntry, candidate: Candidate, others: Sequence[Candidate], tries: Tries
    ) -> tuple[Reply | None, Again]:
        """Tries one candidate, again as long as its failures ask for the same; the reply, or where to go next."""
        while True:
            if candidate.deployment.id in tries.lost:  # it failed already, as the second of two that raced
                return None, tries.lost.pop(candidate.deployment.id)
            if isinstance(tries.begun, tuple):
                reply, on = self._tell(call, entry, *tries.begun, tries)
                tries.begun = None
            else:
                attempt = self._attempt(call, candidate, alone=not others)
                attempt.patient = not others and not tries.saturated
                reply, on = await self._try(call, entry, attempt, others, tries)
            if reply is not None or on is not Again.SAME:
                return reply, on
            if not await self._pause(call, tries.failures[-1:], tries):
                return None, Again.ANOTHER
            if not self._may_try(call, entry, tries, candidate):
                return None, Again.NONE

    async def _try(
        self, call: Call, entry: RouteEntry, attempt: Attempt, others: Sequence[Candidate], tries: Tries
    ) -> tuple[Reply | None, Again]:
        """One try: its reply if it ends the call, or else where the next may go."""
        hedge = entry.route.hedge
        try:
            if hedge is None or not others or tries.leg + 2 > entry.route.attempts_max:
                way = self._places if attempt.candidate.measured else self._inner
                reply = await way.send(attempt)
            else:
                reply = await self._hedged.send(
                    attempt,
                    others,
                    entry=entry,
                    hedge=hedge,
                    make=lambda target: self._attempt(call, target, alone=True),
                    failed=lambda target, failure: self._lost(entry, tries, target, failure),
                )
        except _TROUBLE as trouble:
            return self._tell(call, entry, attempt, trouble, tries)
        except BaseException:
            _abandon(attempt)
            raise
        return reply, Again.NONE

    def _tell(
        self, call: Call, entry: RouteEntry, attempt: Attempt, trouble: Exception, tries: Tries
    ) -> tuple[Reply | None, Again]:
        """Notes what became of a try without an answer, and says where the next may go."""
        candidate = attempt.candidate
        if isinstance(trouble, AttemptFailed):
            attempt.fail(trouble)
            return self._failed(entry, candidate, trouble, tries)
        if isinstance(trouble, BreakerOpen):
            tries.was_open(trouble.reason, trouble.retry_after_s)
            return None, Again.ANOTHER
        if isinstance(trouble, Shed):
            self._was_shed(call, trouble, tries)
            return None, Again.NONE
        tries.saturated.append(candidate)
        return None, Again.ANOTHER

    async def _last_resort(
        self, call: Call, entry: RouteEntry, candidate: Candidate, tries: Tries, *, forced: bool = False
    ) -> tuple[Reply | None, Again]:
        """One try where a place must be waited for, or past an open breaker."""
        attempt = self._attempt(call, candidate, alone=True)
        attempt.patient, attempt.forced = True, forced
        return await self._try(call, entry, attempt, (), tries)

    def _attempt(self, call: Call, candidate: Candidate, *, alone: bool) -> Attempt:
        attempt = Attempt(call, candidate, metrics=self._metrics, tokens_per_s=self._settings.abandoned_tokens_per_s)
        if call.patience < 1.0 and not alone:  # a client in a hurry still wants the next deployment to be asked in time
            attempt.first_byte_timeout_s *= call.patience
        return attempt

    def _failed(
        self, entry: RouteEntry, candidate: Candidate, failure: AttemptFailed, tries: Tries
    ) -> tuple[Reply | None, Again]:
        """Notes a failed try; the upstream's own answer if that is final, or else where to go by the route's rules."""
        tries.failed(candidate, failure)
        if failure.retry_after_s > 0.0:
            self.rests.note(candidate.deployment.id, failure.retry_after_s)
        if failure.error is AttemptError.REJECTED and failure.reply is not None:
            if _is_ours(failure):  # its language cannot say this; another's may
                return None, Again.ANOTHER
            return passed_through(failure.reply, Outcome.UPSTREAM_REFUSED), Again.NONE
        return None, _where(entry, failure, tries)

    def _lost(self, entry: RouteEntry, tries: Tries, candidate: Candidate, failure: AttemptFailed) -> None:
        """One of two that raced has failed, and the other is what is told of."""
        tries.failed(candidate, failure)
        if failure.retry_after_s > 0.0:
            self.rests.note(candidate.deployment.id, failure.retry_after_s)
        on = _where(entry, failure, tries)
        tries.lost[candidate.deployment.id] = Again.ANY if on is Again.SAME else on

    def _was_shed(self, call: Call, shed: Shed, tries: Tries) -> None:
        alias = call.view.model if call.view is not None else ""
        message = f"no place became free for a call to model `{alias}` before its deadline"
        late = self._monotonic() >= call.deadline
        tries.refused = refuse(refusals.TIMED_OUT, message) if late else shed.reply

    def _may_try(self, call: Call, entry: RouteEntry, tries: Tries, candidate: Candidate) -> bool:
        """Before each try: the first on each upstream is free, the others are taken from the budget."""
        if tries.count == 0:
            return True
        if tries.leg >= entry.route.attempts_max or self._monotonic() >= call.deadline:
            return False
        if candidate.deployment.upstream not in tries.upstreams or self._budget.take():
            return True
        self._metrics.bound_hit("retry_ratio")
        return False

    def _may_retry(self, call: Call, entry: RouteEntry, tries: Tries) -> bool:
        """Before a second round over the same deployments."""
        return tries.leg < entry.route.attempts_max and self._monotonic() < call.deadline

    async def _pause(self, call: Call, failures: Sequence[AttemptFailed], tries: Tries) -> bool:
        """Waits before the same is asked again, as long as the upstreams asked for; False when that is longer than we may wait."""
        wait_s = pause_s(failures, self._settings, tries=tries.count)
        if wait_s is None or self._monotonic() + wait_s >= call.deadline:
            return False
        began_ns = time.monotonic_ns()
        await asyncio.sleep(wait_s)
        call.waited_ns += time.monotonic_ns() - began_ns
        return True

    def _give_up(self, call: Call, tries: Tries) -> Reply:
        """What the client hears, and in the log what it must not know."""
        alias = call.view.model if call.view is not None else ""
        if tries.failures:
            self._log(call, alias, tries)
        return given_up(alias, call.call_id, tries, late=self._monotonic() >= call.deadline)

    def _log(self, call: Call, alias: str, tries: Tries) -> None:
        """Tells the operator what the client must not know: hosts, credentials, what upstreams say about our account."""
        now = self._monotonic()
        if now - self._logged_at < _LOG_EVERY_S:
            self._metrics.bound_hit("log_every_s")
            return
        self._logged_at = now
        reasons = [failure.detail for failure in tries.failures]
        log.warning("a call could not be served", call_id=call.call_id, model=alias, reasons=reasons)


def _is_ours(failure: AttemptFailed) -> bool:
    """Whether we said no ourselves, in the place of the upstream."""
    return failure.reply is not None and failure.reply.refusal is not None


def _abandon(attempt: Attempt) -> None:
    """Ends a try that was cancelled, or met a bug of ours, which is no fault of the deployment; one that never began leaves nothing."""
    if attempt.judge is not None:
        attempt.finish(AttemptError.CANCELLED)


def _wants_no_more(failure: AttemptFailed) -> bool:
    """Whether the upstream says that the same will come of it again."""
    return failure.reply is not None and (b"x-should-retry", b"false") in failure.reply.headers


def _where(entry: RouteEntry, failure: AttemptFailed, tries: Tries) -> Again:
    """Where the next try may go after this failure."""
    rule = entry.rules.get(failure.error, ENDS)
    if failure.error in (AttemptError.REJECTED, AttemptError.DEADLINE):
        return Again.ANOTHER  # no rule can be made for these: `_may_try` knows about the deadline
    if tries.of_class(failure.error) < rule.tries:
        return rule.on if rule.on is Again.NONE or not _wants_no_more(failure) else Again.ANOTHER
    return Again.ANOTHER if rule.on is Again.SAME else Again.NONE

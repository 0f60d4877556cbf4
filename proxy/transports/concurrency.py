"""At most so many calls at once for each deployment that has a limit; the others wait in a bounded queue by priority, or are refused.

Who comes when all places are taken goes to another deployment first, if the route has one with room (`Saturated`). Only a call that has
nowhere else to go waits (`Attempt.patient`), by priority and then in the order of arrival, until its deadline or the policy's `queue_s`.
Under overload the lowest priority is refused first: it may fill only half of the queue, and a better call takes the place of the
worst one that waits.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from functools import partial

from controlplane.contract.routing import Priority
from proxy import refusals
from proxy.call import Call, Reply
from proxy.load import DeploymentLoad, Loads
from proxy.metrics import ProxyMetrics
from proxy.refusals import refuse
from proxy.transports.attempt import Attempt, AttemptTransport
from proxy.transports.breaker import BreakerOpen

_RANKS = {Priority.HIGH.value: 0, Priority.NORMAL.value: 1, Priority.LOW.value: 2}
_LOW = _RANKS[Priority.LOW.value]
_NAMES = {rank: name for name, rank in _RANKS.items()}
_RETRY_AFTER_S_MAX = 60.0


class Saturated(Exception):
    """All places are taken, and the try did not want to wait."""


class Shed(Exception):
    """The call is refused because there is too much to do; carries the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("shed")
        self.reply = reply


class _Waiting:
    """One call in a queue."""

    __slots__ = ("got", "rank", "serial")

    def __init__(self, rank: int, serial: int, got: asyncio.Future[bool]) -> None:
        self.rank = rank
        self.serial = serial
        self.got = got  # True: a place; False: somebody better came

    def __lt__(self, other: _Waiting) -> bool:
        return (self.rank, self.serial) < (other.rank, other.serial)


class ConcurrencyTransport:
    """Counts calls in flight where that matters, and holds them back where there is a limit."""

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
        self._queues: dict[str, list[_Waiting]] = {}
        self._serial = 0

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return sum(map(len, self._queues.values()))

    async def send(self, attempt: Attempt) -> Reply:
        """The inner transport's reply. Raises Saturated or Shed without having tried anything."""
        candidate = attempt.candidate
        if not candidate.measured:
            return await self._inner.send(attempt)
        name = candidate.deployment.id
        load = self._loads.of(name)
        if load.limit is not None and (not load.has_room or self._queues.get(name)):
            if not attempt.patient:
                raise Saturated(name)
            await self._wait(attempt, name, load)  # whoever frees a place hands it over
        else:
            load.begin()
        attempt.load = load
        try:
            return await self._inner.send(attempt)
        except BreakerOpen:  # nothing was tried, and nobody will finish it
            attempt.load = None
            load.release()
            raise

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()

    async def _wait(self, attempt: Attempt, name: str, load: DeploymentLoad) -> None:
        """Waits for a place, and takes it. Raises Shed."""
        call, limit = attempt.call, load.limit
        assert limit is not None, "only a limited deployment is waited for"  # noqa: S101
        rank = rank_of(call)
        queue = self._queues.setdefault(name, [])
        if not self._admit(queue, rank, limit.policy.queue_max):
            raise self._shed(call, rank, load, len(queue))
        load.on_free = partial(self._hand_over, name, load)
        self._serial += 1
        waiting = _Waiting(rank, self._serial, asyncio.get_running_loop().create_future())
        insort(queue, waiting)
        began_ns = time.monotonic_ns()
        wait_s = min(limit.policy.queue_s, call.deadline - self._monotonic())
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                got = await waiting.got
        except TimeoutError:
            got = waiting.got.done() and not waiting.got.cancelled() and waiting.got.result()
        except BaseException:
            if waiting.got.done() and not waiting.got.cancelled() and waiting.got.result():
                load.release()
            raise
        finally:
            if waiting in queue:
                queue.remove(waiting)
            if not queue and self._queues.get(name) is queue:
                del self._queues[name]
            call.waited_ns += time.monotonic_ns() - began_ns
        if not got:
            raise self._shed(call, rank, load, len(queue))
        attempt.restart()

    def _admit(self, queue: list[_Waiting], rank: int, queue_max: int) -> bool:
        """Whether one more of this rank may wait; the worst one leaves for a better one."""
        room = queue_max if rank < _LOW else (queue_max + 1) // 2
        if len(queue) < room:
            return True
        queue[:] = [one for one in queue if not one.got.done()]  # who has left in this turn of the loop
        if len(queue) < room:
            return True
        if not queue or rank >= queue[-1].rank:
            return False
        queue.pop().got.set_result(False)
        return True

    def _hand_over(self, name: str, load: DeploymentLoad) -> None:
        """A place has become free: it goes to the first in the queue."""
        queue = self._queues.get(name)
        while queue and load.has_room:
            first = queue.pop(0)
            if not first.got.done():
                load.begin()
                first.got.set_result(True)

    def _shed(self, call: Call, rank: int, load: DeploymentLoad, ahead: int) -> Shed:
        self._metrics.call_shed(_NAMES[rank])
        limit = 1.0 if load.limit is None else load.limit.value
        wait_s = min(_RETRY_AFTER_S_MAX, (ahead + 1) * max(load.sketch.quantile(0.5), 0.1) / limit)
        alias = "" if call.view is None else call.view.model
        message = f"model `{alias}` is overloaded: no place became free for a call of {_NAMES[rank]} priority"
        return Shed(refuse(refusals.OVERLOADED, message, retry_after_s=wait_s))


def rank_of(call: Call) -> int:
    """How soon it is a call's turn: as its label asks, and never better than its tenant may; what makes no sense is normal."""
    rank = _RANKS.get(call.priority, _RANKS[Priority.NORMAL.value])
    best = Priority.NORMAL if call.identity is None else call.identity.tenant.priority_max
    return max(rank, _RANKS[best.value])

"""Embeddings calls of one tenant that come at about the same time are asked as one, where their route says so.

Who may share: calls of one tenant for one route, with the same request but for the input, the same headers that reach an upstream, and the
same deployments to try; where another model could stand in, also the same list of models that the key may use. Each gets its own answer, in its own order.

When a call waits: only while a request of its group is under way *and* another call is to be expected within the window, going by the
mean time between the last ones. In quiet times nobody waits at all. A batch leaves when the request before it has come
back, when it is full, or when the window is over, whatever is first; the window is the shorter the sooner a full batch is to be expected.

Who pays: the attempts of a shared request are split between its calls, by tokens where every input is an array of tokens, else by
length; the parts sum to what the provider reported, to the token and the nano-USD. A call whose client leaves pays an estimate at once,
marked as one, and the others the rest. An input that the upstream refuses does not fail its neighbours: the batch is halved until the
refusal is its owner's alone.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from controlplane.contract.ids import new_id
from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, AttemptRecord, CostState, Outcome
from controlplane.contract.snapshot import BatchPolicy
from proxy import meter
from proxy.call import Call, Reply, Transport
from proxy.refusals import TIMED_OUT, refuse
from proxy.savings import split, split_attempt, split_tokens
from proxy.transports.concurrency import rank_of
from proxy.transports.embeddings import Answered, Ask, read_answer, read_ask, write_answer, write_ask

_FORWARDED = (b"openai-beta", b"openai-organization", b"openai-project")
_ALONE = b"idempotency-key"  # means one request, and no other
_MEMORY = 0.8  # weight of the past in the mean time between calls
_LEAST = 0.25  # of the window; a burst that is over leaves no later
_OK = 200


@dataclass(slots=True, eq=False)
class _Member:
    """A call that waits for its part of a shared request. billed: that has ended, and what it cost is on its calls."""

    call: Call
    ask: Ask
    reply: asyncio.Future[Reply]
    gone: bool = False
    billed: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """Calls that may share a request."""

    key: tuple[object, ...]
    policy: BatchPolicy
    waiting: list[_Member] = field(default_factory=list)
    items: int = 0  # of those that wait
    under_way: int = 0
    last_s: float = 0.0
    gap_s: float = 0.0  # mean time between calls
    timer: asyncio.TimerHandle | None = None


class Batch:
    """Joins calls into requests."""

    def __init__(self, inner: Transport, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._monotonic = monotonic
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.waiting = 0  # now
        self.requests_total = 0  # that more than one call shared
        self.calls_total = 0  # that shared one
        self.halved_total = 0

    def send(self, call: Call) -> Coroutine[object, object, Reply]:
        """The reply of the inner transport, to this call alone or to a request that it shares."""
        route = call.route
        if route is None or route.route.batch is None or call.operation != "embeddings" or _ALONE in call.headers:
            return self._inner.send(call)
        return self._join(call, route.route.batch)

    async def _join(self, call: Call, policy: BatchPolicy) -> Reply:
        ask = read_ask(call.body)
        if ask is None or len(ask.items) >= policy.items_max:
            return await self._inner.send(call)
        group = self._group_of(call, ask, policy)
        self._count_arrival(group)
        if group.waiting and group.items + len(ask.items) > policy.items_max:
            self._leave(group)
        if not group.waiting and not self._is_worth_waiting(group):
            return await self._alone(group, call)
        return await self._wait(group, call, ask)

    async def aclose(self) -> None:
        """Cancels what is shared now, and closes the inner transport; safe to call twice."""
        while self._running:  # who waits behind a request that ends becomes the next one
            for task in tuple(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._inner.aclose()

    def _group_of(self, call: Call, ask: Ask, policy: BatchPolicy) -> _Group:
        headers = tuple(call.headers.get(name) for name in _FORWARDED)
        tenant = "" if call.identity is None else call.identity.tenant.id
        alias = "" if call.route is None else call.route.route.alias
        candidates = tuple(candidate.deployment.id for candidate in call.candidates)
        spares = call.route is not None and call.route.spares
        models = call.identity.models if spares and call.identity is not None else None  # which may stand in
        key = (tenant, alias, ask.rest, ask.exact, headers, candidates, models, call.runtime.version)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(key, policy)
        return group

    def _count_arrival(self, group: _Group) -> None:
        now_s = self._monotonic()
        if group.last_s:
            gap_s = now_s - group.last_s
            group.gap_s = _MEMORY * group.gap_s + (1 - _MEMORY) * gap_s if group.gap_s else gap_s
        group.last_s = now_s

    def _is_worth_waiting(self, group: _Group) -> bool:
        return group.under_way > 0 and group.gap_s < group.policy.window_s

    async def _alone(self, group: _Group, call: Call) -> Reply:
        """The call as it is, in its own task; those that wait leave when it has come back."""
        group.under_way += 1
        try:
            return await self._inner.send(call)
        finally:
            self._came_back(group)

    async def _wait(self, group: _Group, call: Call, ask: Ask) -> Reply:
        loop = asyncio.get_running_loop()
        member = _Member(call, ask, loop.create_future())
        group.waiting.append(member)
        group.items += len(ask.items)
        self.waiting += 1
        if group.items >= group.policy.items_max:
            self._leave(group)
        elif group.timer is None:
            room = (group.policy.items_max - group.items) / (group.items / len(group.waiting))
            wait_s = min(group.policy.window_s, max(group.gap_s * room, group.policy.window_s * _LEAST))
            group.timer = loop.call_later(wait_s, self._leave, group)
        left_s = call.deadline - self._monotonic() if call.deadline else None
        try:
            async with asyncio.timeout(left_s):
                return await member.reply
        except TimeoutError:
            self._give_up(group, member)
            return refuse(TIMED_OUT, "the answer to a request shared with other calls did not come in time")
        except asyncio.CancelledError:
            self._give_up(group, member)
            raise

    def _give_up(self, group: _Group, member: _Member) -> None:
        """The member's client does not wait any more: it leaves the queue, or pays an estimate of what was asked for it."""
        member.gone = True
        if member in group.waiting:
            group.waiting.remove(member)
            group.items -= len(member.ask.items)
            self.waiting -= 1
            if not group.waiting and group.timer is not None:
                group.timer.cancel()
                group.timer = None
            self._forget_idle(group)
        elif not member.billed and (not member.reply.done() or member.reply.cancelled()):
            member.call.attempts.append(_estimate(member))

    def _leave(self, group: _Group) -> None:
        """Whoever waits in a group becomes a request."""
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        members, group.waiting, group.items = group.waiting, [], 0
        self.waiting -= len(members)
        if not members:
            return
        group.under_way += 1
        task = asyncio.get_running_loop().create_task(self._ask(members), name="batch")
        self._running.add(task)
        task.add_done_callback(partial(self._ended, group, members))

    def _came_back(self, group: _Group) -> None:
        group.under_way -= 1
        if not group.under_way:
            self._leave(group)
        self._forget_idle(group)

    def _forget_idle(self, group: _Group) -> None:
        if not group.under_way and not group.waiting and self._groups.get(group.key) is group:
            del self._groups[group.key]

    def _ended(self, group: _Group, members: list[_Member], task: asyncio.Task[None]) -> None:
        """A request is over, perhaps before it began: whoever has no answer is told."""
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        for member in members:
            if task.cancelled():
                member.billed = True
                member.reply.cancel()
            elif error is not None and not member.reply.done():  # it belongs to the calls, whose pipeline tells of it
                member.reply.set_exception(error)
        self._came_back(group)

    async def _ask(self, members: list[_Member]) -> None:
        """One request for all of them that still wait, and theirs what comes."""
        members = [member for member in members if not member.gone]
        if not members:
            return
        if len(members) > 1:
            self.requests_total += 1
            self.calls_total += len(members)
        shared = _shared_call(members)
        sending = asyncio.ensure_future(self._inner.send(shared))
        for member in members:
            member.reply.add_done_callback(lambda _: sending.cancel() if all(one.gone for one in members) else None)
        try:
            reply = await sending
        except asyncio.CancelledError:
            if all(member.gone for member in members):
                return  # each has paid an estimate
            sending.cancel()
            raise
        finally:
            _bill(shared, members)
        await self._hand_out(members, reply)

    async def _hand_out(self, members: list[_Member], reply: Reply) -> None:
        """To each its own; a request that was refused, or answered with something else, is halved until it is one call's alone."""
        count = sum(len(member.ask.items) for member in members)
        good = reply.outcome is Outcome.OK and reply.status == _OK and reply.stream is None
        answered = read_answer(reply.body, count=count) if good else None
        if answered is not None:
            _deliver(members, reply, answered)
        elif len(members) > 1 and (good or reply.outcome is Outcome.UPSTREAM_REFUSED):
            self.halved_total += 1
            half = len(members) // 2
            await asyncio.gather(self._ask(members[:half]), self._ask(members[half:]))
        else:
            for member in members:
                if not member.reply.done():
                    member.reply.set_result(_copy_of(reply, reply.body))


def _shared_call(members: Sequence[_Member]) -> Call:
    """A call for all inputs: as the first one, but with no record of its own. It may take as long as the most patient one may, and is as urgent as any is."""
    first = members[0].call
    shared = copy.copy(first)
    shared.call_id = new_id("call")
    shared.body = write_ask(members[0].ask, [item for member in members for item in member.ask.items])
    shared.priority = min((member.call for member in members), key=rank_of).priority
    shared.deadline = max(member.call.deadline for member in members)
    shared.attempts = []
    shared.waited_ns = 0
    shared.reservation = None
    return shared


def _bill(shared: Call, members: Sequence[_Member]) -> None:
    """Splits what the request cost between its calls; who has left has paid an estimate, which is taken off the whole."""
    staying = [member for member in members if not member.gone]
    paid = [attempt for member in members if member.gone for attempt in member.call.attempts[-1:]]
    if not staying:
        return
    weights = [sum(member.ask.weights) for member in staying]
    for attempt in shared.attempts:
        rest = attempt
        if paid and attempt.tokens.total:
            rest = _less(attempt, paid)
            paid = []
        for member, part in zip(staying, split_attempt(rest, weights), strict=True):
            member.call.attempts.append(part)
    for member in staying:
        member.call.waited_ns += shared.waited_ns
        member.call.fell_back = shared.fell_back


def _less(attempt: AttemptRecord, paid: Sequence[AttemptRecord]) -> AttemptRecord:
    """What is left of an attempt's bill; never less than nothing."""
    tokens = max(0, attempt.tokens.input - sum(one.tokens.input for one in paid))
    cost = max(0, attempt.cost_nanousd - sum(one.cost_nanousd for one in paid))
    return msgspec.structs.replace(
        attempt, tokens=msgspec.structs.replace(attempt.tokens, input=tokens), cost_nanousd=cost
    )


def _estimate(member: _Member) -> AttemptRecord:
    """What a call pays that left before its answer: by the size of its inputs, at the first deployment's price."""
    call = member.call
    deployment = call.candidates[0].deployment
    weight = sum(member.ask.weights)
    tokens = Tokens(input=weight if member.ask.exact else weight // meter.BYTES_PER_TOKEN)
    cost, state, version = meter.priced(tokens, deployment)
    return AttemptRecord(
        deployment=deployment.id,
        upstream=deployment.upstream,
        model=deployment.model,
        started_us=call.started_us,
        latency_us=(time.monotonic_ns() - call.started_ns) // 1000,
        error=AttemptError.CANCELLED,
        tokens=tokens,
        cost_nanousd=cost,
        cost_state=CostState.ESTIMATED if state is CostState.FINAL else state,
        price_version=version,
    )


def _deliver(members: Sequence[_Member], reply: Reply, answered: Answered) -> None:
    weights = [sum(member.ask.weights) for member in members]
    counts = split(answered.tokens, weights)
    tokens = split_tokens(reply.tokens, weights)
    at = 0
    for member, count, own in zip(members, counts, tokens, strict=True):
        items = answered.items[at : at + len(member.ask.items)]
        at += len(member.ask.items)
        if member.reply.done():
            continue
        body = write_answer(items, model=answered.model, tokens=count, fields=answered.fields)
        part = _copy_of(reply, body)
        part.tokens = own
        part.headers.append((b"x-heph-batch-calls", b"%d" % len(members)))
        member.reply.set_result(part)


def _copy_of(reply: Reply, body: bytes) -> Reply:
    """The reply for one of those who share it."""
    part = Reply(
        reply.status,
        list(reply.headers),
        body=body,
        source=reply.source,
        outcome=reply.outcome,
        error_code=reply.error_code,
    )
    part.deployment, part.model, part.refusal = reply.deployment, reply.model, reply.refusal
    part.finish_reason, part.complete, part.usage_known = reply.finish_reason, reply.complete, reply.usage_known
    return part


def watch_batch(watch: Callable[[str, str, Callable[[], float]], None], batch: Batch) -> None:
    """Shows the figures of what is asked together."""
    watch("batch_waiting", "Embeddings calls that wait for others now.", lambda: batch.waiting)
    watch("batch_requests_total", "Requests that several embeddings calls shared.", lambda: batch.requests_total)
    watch("batch_calls_total", "Embeddings calls that shared a request.", lambda: batch.calls_total)
    watch("batch_halved_total", "Shared requests that were refused, and halved.", lambda: batch.halved_total)

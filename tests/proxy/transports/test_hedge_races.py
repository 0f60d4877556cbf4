"""Races of two tries in any order: one reply or one error, every try ended once, nothing left running."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.records import AttemptError
from controlplane.contract.routing import Hedge
from controlplane.contract.snapshot import Deployment, Route, Snapshot, Upstream
from proxy.call import Call, Reply
from proxy.dialects.dialect import RequestView
from proxy.load import Loads
from proxy.metrics import ProxyMetrics
from proxy.runtime import Candidate, compile_runtime
from proxy.transports.attempt import Attempt, AttemptFailed
from proxy.transports.breaker import BreakerOpen
from proxy.transports.concurrency import Saturated
from proxy.transports.hedge import HedgedTransport

HEDGE = Hedge(after_ms=0, budget_ratio=1.0)
ENDS = st.sampled_from(["good", "fails", "open", "full", "hangs"])


class Told:
    """Who judges tries: counts them."""

    def __init__(self) -> None:
        self.reports: list[AttemptError] = []

    def report(self, error: AttemptError, *, latency_s: float, probe: bool) -> None:
        """One try has ended."""
        self.reports.append(error)


@dataclass
class Race:
    """An inner transport whose tries end as the test says, when it says."""

    ends: dict[str, str]
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    running: int = 0
    began: list[Attempt] = field(default_factory=list)
    judge: Told = field(default_factory=Told)

    async def send(self, attempt: Attempt) -> Reply:
        """One try."""
        name = attempt.candidate.deployment.id
        end = self.ends[name]
        if end == "open":
            raise BreakerOpen(name, 1.0)
        if end == "full":
            raise Saturated(name)
        attempt.judge = self.judge
        self.began.append(attempt)
        self.running += 1
        try:
            await self.gates.setdefault(name, asyncio.Event()).wait()
        finally:
            self.running -= 1
        if end == "fails":
            raise AttemptFailed(AttemptError.STATUS_5XX, "no")
        reply = Reply(200, [])
        attempt.reply = reply
        attempt.finish(AttemptError.NONE)
        return reply

    async def aclose(self) -> None:
        """Nothing to close."""


def route() -> tuple[Call, tuple[Candidate, ...]]:
    """A call on a route with two deployments."""
    items = tuple(Deployment(id=name, upstream="u", model="m") for name in "ab")
    snapshot = Snapshot(
        version=1,
        created_us=0,
        upstreams=(Upstream(id="u", dialect="openai", base_url="http://localhost/v1"),),
        routes=(Route(alias="gpt", deployments=items, hedge=HEDGE),),
    )
    runtime = compile_runtime(snapshot, {})
    call = Call(runtime, "chat", "/", {}, b"{}", call_id="c", started_us=0, started_ns=0)
    call.view, call.route = RequestView(model="gpt"), runtime.routes["gpt"]
    return call, runtime.routes["gpt"].groups[0]


async def turns(count: int = 20) -> None:
    """Lets everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def run(first: str, second: str, opens: list[str], *, leaves: bool) -> None:
    """One race; opens: whose gate opens when, both in one turn of the loop where they are written together."""
    call, (a, b) = route()
    race = Race({"a": first, "b": second})
    metrics = ProxyMetrics("0")
    hedged = HedgedTransport(race, Loads(), metrics)
    lost: list[str] = []
    assert call.route is not None

    def made(candidate: Candidate) -> Attempt:
        return Attempt(call, candidate, metrics=metrics, tokens_per_s=100.0)

    sending = asyncio.create_task(
        hedged.send(
            made(a),
            (b,),
            entry=call.route,
            hedge=HEDGE,
            make=made,
            failed=lambda item, _: lost.append(item.deployment.id),
        )
    )
    for names in opens:
        await turns()
        for name in names:
            race.gates.setdefault(name, asyncio.Event()).set()
    if leaves or "hangs" in (first, second):
        await turns()
        for name, end in (("a", first), ("b", second)):
            if end != "hangs":
                race.gates.setdefault(name, asyncio.Event()).set()
        await turns()
        sending.cancel()
    else:
        for gate in "ab":
            race.gates.setdefault(gate, asyncio.Event()).set()
    (outcome,) = await asyncio.gather(sending, return_exceptions=True)
    assert 0 == race.running
    assert isinstance(outcome, (Reply, AttemptFailed, BreakerOpen, Saturated, asyncio.CancelledError))
    unfinished = [
        attempt
        for attempt in race.began
        if attempt.candidate.deployment.id not in {r.deployment for r in call.attempts}
    ]
    assert [] == unfinished
    assert len(race.began) == len(call.attempts) == len(race.judge.reports) <= 2
    good = [record for record in call.attempts if record.error is AttemptError.NONE]
    if isinstance(outcome, Reply):
        assert 1 <= len(good)
    elif not leaves and "hangs" not in (first, second):  # the first's own, whichever came last
        expected = {"fails": AttemptFailed, "open": BreakerOpen, "full": Saturated}[first]
        assert isinstance(outcome, expected)
    if first == "good" and not leaves and second != "hangs":
        assert isinstance(outcome, Reply)
    assert len(lost) <= 1


@settings(max_examples=60, deadline=None)
@given(
    first=ENDS,
    second=ENDS,
    opens=st.lists(st.sampled_from(["a", "b", "ab", "ba"]), max_size=2),
    leaves=st.booleans(),
)
def test_any_race_ends_once(first: str, second: str, opens: list[str], leaves: bool) -> None:
    """However both end, in whatever order, with or without the client: every try that began has one record and one judgement."""
    asyncio.run(run(first, second, opens, leaves=leaves))


class Slow(Race):
    """A race whose loser takes its time to end; the winner brings a stream."""

    def __init__(self) -> None:
        super().__init__({"a": "hangs", "b": "good"})
        self.closed: list[str] = []

    async def send(self, attempt: Attempt) -> Reply:
        """One try."""
        name = attempt.candidate.deployment.id
        attempt.judge = self.judge
        if name == "a":
            try:
                await asyncio.Event().wait()
            finally:
                await self.gates.setdefault(name, asyncio.Event()).wait()
        return Reply(200, [], stream=_Stream(self, attempt))

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass
class _Stream:
    race: Slow
    attempt: Attempt

    async def read(self) -> bytes:
        """Nothing."""
        return b""

    def close(self) -> None:
        """Ends the try."""
        self.race.closed.append(self.attempt.candidate.deployment.id)
        self.attempt.finish(AttemptError.CANCELLED)


async def test_a_client_that_leaves_while_the_loser_ends_leaves_no_stream_open() -> None:
    """The winner was nobody's yet: it is closed, and both tries are on the record."""
    call, (a, b) = route()
    race, metrics = Slow(), ProxyMetrics("0")
    hedged = HedgedTransport(race, Loads(), metrics)
    assert call.route is not None

    def made(candidate: Candidate) -> Attempt:
        return Attempt(call, candidate, metrics=metrics, tokens_per_s=100.0)

    sending = asyncio.create_task(
        hedged.send(made(a), (b,), entry=call.route, hedge=HEDGE, make=made, failed=lambda *_: None)
    )
    await turns()
    assert not sending.done()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (["b"], ["a", "b"]) == (race.closed, sorted(record.deployment for record in call.attempts))

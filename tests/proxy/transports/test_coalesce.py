"""Tests of flights: one upstream call, the same bytes for everybody, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptRecord, CacheState, Outcome
from controlplane.contract.snapshot import CachePolicy, CoalesceCost, TenantPolicy
from proxy.call import Call, Reply, StreamBroken
from proxy.refusals import EXHAUSTED, OVERLOADED, TIMED_OUT, refuse
from proxy.runtime import KeyIdentity
from proxy.transports.coalesce import Coalesce
from tests.proxy.state_fakes import FakeClock, FakeInner, complete_reply, make_call, read_all, settle_down

ANSWER_NANOUSD = 10 * 1 + 5 * 2  # of the fakes' tokens at the fakes' price


class Client:
    """One client and the pipeline's part for it, as the protocol in `coalesce` says."""

    def __init__(self, coalesce: Coalesce, *, key: bytes = b"key", state: CacheState = CacheState.MISS) -> None:
        self.coalesce = coalesce
        self.call: Call = make_call()
        self.call.cache_key, self.call.cache = key, state
        self.got: list[bytes] = []
        self.ended = ""
        self.broken: StreamBroken | None = None
        self.reply: Reply | None = None
        self.may_read = asyncio.Semaphore(0)
        self.task = asyncio.create_task(self.serve())

    async def serve(self) -> None:
        """The serving task."""
        try:
            reply = self.reply = await self.coalesce.send(self.call)
            if reply.stream is not None:
                await self.pump(reply)
            else:
                self.got.append(reply.body)
            self.ended = "complete"
        except StreamBroken as broken:
            self.broken = broken
            self.ended = "broken"
        except asyncio.CancelledError:
            self.ended = "cancelled"
        except RuntimeError as error:
            self.ended = str(error)

    async def pump(self, reply: Reply) -> None:
        """Passes chunks on as fast as the client reads, or throws them away when it has gone."""
        assert reply.stream is not None
        try:
            while True:
                await self.may_read.acquire()
                chunk = await reply.stream.read()
                if not chunk:
                    return
                if not self.call.client_gone:
                    self.got.append(chunk)
        finally:
            reply.stream.close()

    def leave(self) -> bool:
        """The client goes."""
        may_cancel = self.coalesce.leave(self.call, self.task)
        if may_cancel:
            self.task.cancel()
        else:
            self.read_freely()
        return may_cancel

    def read_freely(self) -> None:
        """From now on this client is never the slow one."""
        for _ in range(1000):
            self.may_read.release()


def _coalesce(
    inner: FakeInner, *, calls_max: int = 100, buffer_bytes_max: int = 10**6, clock: FakeClock | None = None
) -> Coalesce:
    return Coalesce(
        inner,
        calls_max=calls_max,
        buffer_bytes_max=buffer_bytes_max,
        buffers_bytes_max=10 * buffer_bytes_max,
        monotonic=(clock or FakeClock()).s,
    )


def _is_empty(coalesce: Coalesce) -> bool:
    figures = (coalesce.members, coalesce.flights, coalesce.followers, coalesce.buffered_bytes)
    return figures == (0, 0, 0, 0)


async def test_identical_calls_share_one_complete_answer() -> None:
    """One upstream call; followers get the same status, body and headers, pay nothing and say what they saved."""
    inner = FakeInner(gated=True)
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(5)]
    await settle_down()
    inner.gate.set()
    await settle_down()
    leader, *followers = clients
    assert [leader.call] == inner.calls
    assert [[b'{"answer":1}']] * 5 == [client.got for client in clients]
    assert (CacheState.MISS, 0) == (leader.call.cache, leader.call.saved_nanousd)
    for follower in followers:
        assert follower.reply is not None
        assert leader.reply is not None
        assert leader.reply.headers == follower.reply.headers
        assert leader.reply.headers is not follower.reply.headers
        assert (CacheState.COALESCED, ANSWER_NANOUSD, 0) == (
            follower.call.cache,
            follower.call.saved_nanousd,
            follower.reply.tokens.total,
        )
        assert ("sim/m", "m", "stop", True) == (
            follower.reply.deployment,
            follower.reply.model,
            follower.reply.finish_reason,
            follower.reply.complete,
        )
    assert _is_empty(coalesce)


@pytest.mark.parametrize(
    ("key", "state"), [(b"other", CacheState.MISS), (b"", CacheState.MISS), (b"key", CacheState.BYPASS)]
)
async def test_calls_that_are_not_to_share_go_alone(key: bytes, state: CacheState) -> None:
    """Another key, no key, or a call that bypasses the cache: an upstream call of its own."""
    inner = FakeInner(gated=True)
    coalesce = _coalesce(inner)
    clients = [Client(coalesce), Client(coalesce, key=key, state=state)]
    await settle_down()
    assert 2 == len(inner.calls)
    inner.gate.set()
    await settle_down()
    assert ["complete"] * 2 == [client.ended for client in clients]
    assert _is_empty(coalesce)


async def test_a_follower_gets_the_chunks_so_far_and_then_the_live_ones() -> None:
    """Joining in the middle of a stream misses nothing, and the end tells the follower what it saved."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader = Client(coalesce)
    leader.read_freely()
    await settle_down()
    (stream,) = inner.streams
    stream.feed(b"one", b"two")
    await settle_down()
    late = Client(coalesce)
    late.read_freely()
    await settle_down()
    assert [b"one", b"two"] == late.got
    stream.feed(b"three")
    stream.end()
    await settle_down()
    assert [b"one", b"two", b"three"] == leader.got == late.got
    assert late.reply is not None
    assert (True, "stop", ANSWER_NANOUSD) == (late.reply.complete, late.reply.finish_reason, late.call.saved_nanousd)
    assert late.call.first_token_us > 0
    assert (1, 1) == (stream.closed, stream.reads_at_once)
    assert _is_empty(coalesce)


async def test_an_answer_that_has_ended_can_be_joined_until_the_leader_has_read_it() -> None:
    """While the leader's client reads slowly, an identical call still needs no upstream call."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, fast = Client(coalesce), Client(coalesce)
    fast.read_freely()
    await settle_down()
    inner.streams[0].feed(b"all")
    inner.streams[0].end()
    await settle_down()
    late = Client(coalesce)
    late.read_freely()
    await settle_down()
    assert ([b"all"], "complete") == (late.got, late.ended)
    leader.read_freely()
    await settle_down()
    assert ([b"all"], 1) == (leader.got, len(inner.calls))
    assert _is_empty(coalesce)


@pytest.mark.parametrize("head_first", [False, True])
async def test_the_call_goes_on_for_the_followers_when_the_leader_s_client_leaves(head_first: bool) -> None:
    """The leader's task is not cancelled, reads to the end, and knows the truth to settle with."""
    inner = FakeInner(gated=not head_first)
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, follower = Client(coalesce), Client(coalesce)
    follower.read_freely()
    await settle_down()
    assert not leader.leave()
    assert not leader.leave()
    assert (True, False) == (leader.call.client_gone, leader.call.aborted)
    inner.gate.set()
    await settle_down()
    inner.streams[0].feed(b"one")
    await settle_down()
    inner.streams[0].end()
    await settle_down()
    assert ([b"one"], "complete") == (follower.got, follower.ended)
    assert ([], "complete") == (leader.got, leader.ended)
    assert leader.reply is not None
    assert (True, 15) == (leader.reply.complete, leader.reply.tokens.total)
    assert _is_empty(coalesce)


@pytest.mark.parametrize("head_first", [False, True])
async def test_the_last_follower_to_leave_cancels_a_leader_without_a_client(head_first: bool) -> None:
    """When nobody is interested any more, the upstream call is cancelled by cancelling the task that runs it."""
    inner = FakeInner(gated=not head_first)
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, one, two = Client(coalesce), Client(coalesce), Client(coalesce)
    two.read_freely()
    await settle_down()
    assert [False, True] == [leader.leave(), one.leave()]
    await settle_down()
    assert "" == leader.ended
    assert two.leave()
    await settle_down()
    assert (True, "cancelled") == (leader.call.aborted, leader.ended)
    assert [leader.call] == inner.cancelled or 1 == inner.streams[0].closed
    assert _is_empty(coalesce)


async def test_a_leader_alone_may_be_cancelled_and_a_new_call_starts_anew() -> None:
    """Nobody joins a flight that is being given up."""
    inner = FakeInner(gated=True)
    coalesce = _coalesce(inner)
    leader = Client(coalesce)
    await settle_down()
    assert leader.leave()
    next_one = Client(coalesce)
    await settle_down()
    inner.gate.set()
    await settle_down()
    assert [leader.call, next_one.call] == inner.calls
    assert ("cancelled", "complete") == (leader.ended, next_one.ended)
    assert _is_empty(coalesce)


async def test_leaving_after_the_end_costs_nothing_to_finish() -> None:
    """A client that goes when its stream has come in whole lets the task read the rest: it is here already."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, follower = Client(coalesce), Client(coalesce)
    follower.read_freely()
    await settle_down()
    inner.streams[0].feed(b"one")
    inner.streams[0].end()
    await settle_down()
    assert not leader.leave()
    await settle_down()
    assert "complete" == leader.ended
    assert leader.leave()
    assert _is_empty(coalesce)


async def test_a_reader_that_is_cancelled_while_it_pulls_takes_nothing_along() -> None:
    """The one who waits for the upstream leaves; the other gets the chunk."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, follower = Client(coalesce), Client(coalesce)
    follower.read_freely()
    await settle_down()
    leader.read_freely()
    await settle_down()
    assert follower.leave()
    await settle_down()
    inner.streams[0].feed(b"one")
    inner.streams[0].end()
    await settle_down()
    assert [b"one"] == leader.got
    assert _is_empty(coalesce)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: complete_reply(b'{"error":1}', status=429, complete=False),
        lambda: refuse(EXHAUSTED, "no deployment answered"),
    ],
)
async def test_errors_are_shared_with_those_in_flight_only(answer: Callable[[], Reply]) -> None:
    """Followers get the leader's error as it is; the next identical call asks again."""
    inner = FakeInner(gated=True)
    inner.answer = answer
    coalesce = _coalesce(inner)
    leader, follower = Client(coalesce), Client(coalesce)
    await settle_down()
    inner.gate.set()
    await settle_down()
    assert leader.reply is not None
    assert follower.reply is not None
    for name in ("status", "outcome", "error_code", "source", "body", "headers"):
        assert getattr(leader.reply, name) == getattr(follower.reply, name)
    assert 1 == len(inner.calls)
    if answer().outcome is not Outcome.OK:
        assert 0 == follower.call.saved_nanousd
    Client(coalesce)
    await settle_down()
    assert 2 == len(inner.calls)


async def test_a_broken_stream_breaks_for_all_with_the_same_words() -> None:
    """Each reader gets all chunks and then the upstream's own error; a later call does not join a broken flight."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(3)]
    clients[0].read_freely()
    await settle_down()
    inner.streams[0].feed(b"one")
    inner.streams[0].end(StreamBroken(Outcome.BROKEN_STREAM, "it broke", event=b"data: {}\n\n"))
    await settle_down()
    later = Client(coalesce)
    await settle_down()
    assert 2 == len(inner.calls)
    for client in clients:
        client.read_freely()
    await settle_down()
    for client in clients:
        assert ([b"one"], "broken") == (client.got, client.ended)
        assert client.broken is not None
        assert ("it broke", b"data: {}\n\n", Outcome.BROKEN_STREAM) == (
            str(client.broken),
            client.broken.event,
            client.broken.outcome,
        )
        assert 0 == client.call.saved_nanousd
    later.leave()
    await settle_down()
    assert _is_empty(coalesce)


async def test_a_leader_that_dies_does_not_take_its_followers_along() -> None:
    """A bug in the leader's task is its own; the followers go on with one of them in the lead."""
    inner = FakeInner(gated=True)
    inner.failure = RuntimeError("bug")
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(3)]
    await settle_down()
    inner.gate.set()
    await asyncio.sleep(0)
    inner.failure = None
    inner.gate.clear()
    await settle_down()
    inner.gate.set()
    await settle_down()
    assert ["bug", "complete", "complete"] == [client.ended for client in clients]
    assert [clients[0].call, clients[1].call] == inner.calls
    assert [CacheState.MISS, CacheState.MISS, CacheState.COALESCED] == [client.call.cache for client in clients]
    assert _is_empty(coalesce)


async def test_a_leader_out_of_time_hands_over_to_those_who_have_time_left() -> None:
    """A follower with a later deadline does not inherit the leader's time-out; one without time does."""
    inner = FakeInner(gated=True)
    inner.answer = lambda: refuse(TIMED_OUT, "too slow") if len(inner.calls) == 1 else complete_reply()
    clock = FakeClock()
    coalesce = _coalesce(inner, clock=clock)
    leader, patient = Client(coalesce), Client(coalesce)
    patient.call.deadline = clock.s() + 100
    await settle_down()
    clock.advance(10)
    inner.gate.set()
    await settle_down()
    assert leader.reply is not None
    assert patient.reply is not None
    assert (504, 200, 2) == (leader.reply.status, patient.reply.status, len(inner.calls))
    assert _is_empty(coalesce)


async def test_who_comes_before_its_leader_does_not_share_that_there_was_no_place() -> None:
    """A call of low priority is refused first; followers of a better one start over, and those of its own are refused with it."""
    inner = FakeInner(gated=True)
    inner.answer = lambda: refuse(OVERLOADED, "no place") if len(inner.calls) == 1 else complete_reply()
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(4)]
    for client, priority in zip(clients, ("low", "low", "normal", ""), strict=True):
        client.call.priority = priority
    await settle_down()
    inner.gate.set()
    await settle_down()
    assert [503, 503, 200, 200] == [client.reply.status for client in clients if client.reply is not None]
    assert _is_empty(coalesce)


async def test_a_follower_s_own_deadline_ends_its_wait() -> None:
    """A follower whose time is over before the answer begins is refused with 504; the flight goes on."""
    inner = FakeInner(gated=True)
    clock = FakeClock()
    coalesce = _coalesce(inner, clock=clock)
    leader, hasty = Client(coalesce), Client(coalesce)
    hasty.call.deadline = clock.s() + 0.001
    async with asyncio.timeout(60):
        await hasty.task
    assert hasty.reply is not None
    assert (504, Outcome.TIMED_OUT) == (hasty.reply.status, hasty.reply.outcome)
    inner.gate.set()
    await settle_down()
    assert "complete" == leader.ended
    assert _is_empty(coalesce)


async def test_too_many_followers_go_alone_and_are_counted() -> None:
    """Above the bound a call makes its own upstream call instead of waiting."""
    inner = FakeInner(gated=True)
    coalesce = _coalesce(inner, calls_max=2)
    clients = [Client(coalesce) for _ in range(5)]
    await settle_down()
    assert (3, 2, 2) == (len(inner.calls), coalesce.full_total, coalesce.followers)
    inner.gate.set()
    await settle_down()
    assert ["complete"] * 5 == [client.ended for client in clients]
    assert _is_empty(coalesce)


async def test_a_large_answer_is_not_kept_and_a_reader_far_behind_loses_it() -> None:
    """Above the limit nobody joins, what all have read is dropped, and the one that does not read is let go."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner, buffer_bytes_max=100)
    leader, asleep = Client(coalesce), Client(coalesce)
    leader.read_freely()
    await settle_down()
    stream = inner.streams[0]
    for number in range(10):
        stream.feed(b"%030d" % number)
        await settle_down()
    assert (1, 1) == (coalesce.unjoinable_total, coalesce.ejected_total)
    assert coalesce.buffered_bytes <= 100
    later = Client(coalesce)
    await settle_down()
    assert 2 == len(inner.calls)
    asleep.read_freely()
    stream.end()
    await settle_down()
    assert (10, "complete", "broken") == (len(leader.got), leader.ended, asleep.ended)
    later.leave()
    await settle_down()
    assert _is_empty(coalesce)


async def test_a_leader_that_reads_too_slowly_still_settles_the_upstream_call() -> None:
    """Its client loses the stream, but its task follows the flight to the end, where the tokens are known."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner, buffer_bytes_max=100)
    leader, follower = Client(coalesce), Client(coalesce)
    follower.read_freely()
    await settle_down()
    (stream,) = inner.streams
    for number in range(10):
        stream.feed(b"%030d" % number)
        await settle_down()
    leader.read_freely()
    await settle_down()
    assert (1, "") == (coalesce.ejected_total, leader.ended)
    stream.end()
    await settle_down()
    assert (10, "complete", "broken") == (len(follower.got), follower.ended, leader.ended)
    assert leader.reply is not None
    assert (True, 15) == (leader.reply.complete, leader.reply.tokens.total)
    assert _is_empty(coalesce)


@pytest.mark.parametrize("follower_pulls", [False, True])
async def test_a_leader_whose_task_ends_takes_the_stream_with_it(follower_pulls: bool) -> None:
    """A shutdown or a bug: the upstream is closed before the leader settles, and the followers' streams break at once."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    leader, follower = Client(coalesce), Client(coalesce)
    await settle_down()
    inner.streams[0].feed(b"one")
    first, second = (follower, leader) if follower_pulls else (leader, follower)
    first.read_freely()
    await settle_down()
    second.read_freely()
    await settle_down()
    leader.task.cancel()
    await settle_down()
    assert ("cancelled", 1) == (leader.ended, inner.streams[0].closed)
    assert ([b"one"], "broken") == (follower.got, follower.ended)
    assert 0 == follower.task.cancelling()
    assert _is_empty(coalesce)


async def test_a_shutdown_that_cancels_everybody_cancels_everybody() -> None:
    """A follower that is cancelled at the same time as its leader ends as cancelled, not as broken."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(3)]
    for client in reversed(clients):
        client.read_freely()
        await settle_down()
    for client in clients:
        client.task.cancel()
    await settle_down()
    assert ["cancelled"] * 3 == [client.ended for client in clients]
    assert 1 == inner.streams[0].closed
    assert _is_empty(coalesce)


STEPS = st.one_of(
    st.just(("join", 0)),
    st.just(("feed", 0)),
    st.just(("open", 0)),
    st.tuples(st.just("leave"), st.integers(0, 6)),
    st.tuples(st.just("read"), st.integers(0, 6)),
    st.tuples(st.just("run"), st.integers(1, 8)),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=40), breaks=st.booleans())
def test_any_interleaving_gives_everybody_the_same_bytes(steps: list[tuple[str, int]], breaks: bool) -> None:
    """Joining, reading and leaving in any order: one upstream call while anybody stays, equal bytes, nothing left behind."""

    async def play() -> None:
        world = World()
        for step, number in steps:
            await world.play(step, number)
            assert world.upstream_calls == len(world.inner.calls)
        await world.finish(breaks=breaks)

    asyncio.run(play())


class World:
    """Clients that come and go, and an upstream that says one more thing now and then."""

    def __init__(self) -> None:
        self.inner = FakeInner(gated=True)
        self.inner.streaming = True
        self.coalesce = _coalesce(self.inner)
        self.clients: list[Client] = []
        self.staying: list[Client] = []
        self.sent: dict[int, list[bytes]] = {}  # by number of the upstream call that opened a stream
        self.upstream_calls = 0  # as there should be

    async def play(self, step: str, number: int) -> None:
        """One thing happens."""
        client = self.clients[number % len(self.clients)] if self.clients else None
        if step == "join":
            await self.join()
        elif step == "feed":
            self.feed()
        elif step == "open":
            self.inner.gate.set()
        elif step == "run":
            for _ in range(number):
                await asyncio.sleep(0)
        elif step == "read" and client is not None:
            client.may_read.release()
        elif step == "leave" and self.staying:
            self.staying.pop(number % len(self.staying)).leave()

    async def join(self) -> None:
        """An identical call; it needs an upstream call of its own only if nobody is there to share with."""
        if not self.staying:
            await settle_down()  # a flight that is given up is over before the next one is counted
            self.upstream_calls += 1
        self.clients.append(Client(self.coalesce))
        self.staying.append(self.clients[-1])
        await asyncio.sleep(0)

    def feed(self) -> None:
        """A chunk that no other chunk equals, on the newest stream."""
        if self.inner.streams:
            chunks = self.sent.setdefault(len(self.inner.streams), [])
            chunks.append(b"%d.%d" % (len(self.inner.streams), len(chunks)))
            self.inner.streams[-1].feed(chunks[-1])

    async def finish(self, *, breaks: bool) -> None:
        """Everybody reads to the end, which comes now; where nobody stayed, the upstream has been given up already."""
        await settle_down()
        if not self.staying:
            assert all(client.task.done() for client in self.clients)
        self.inner.gate.set()
        for client in self.clients:
            client.read_freely()
        await settle_down()
        for stream in self.inner.streams:
            stream.end(StreamBroken(Outcome.BROKEN_STREAM, "gone") if breaks else None)
        await asyncio.gather(*(client.task for client in self.clients))
        assert self.upstream_calls == len(self.inner.calls)
        for client in self.staying:
            assert self.sent.get(len(self.inner.streams), []) == client.got
            assert ("broken" if breaks else "complete") == client.ended
        prefixes = [chunks[:end] for chunks in [*self.sent.values(), []] for end in range(len(chunks) + 1)]
        assert all(client.got in prefixes for client in self.clients)
        assert all(stream.closed and stream.reads_at_once <= 1 for stream in self.inner.streams)
        assert _is_empty(self.coalesce)


async def test_closing_closes_what_is_below() -> None:
    """The chain is closed from the top."""
    inner = FakeInner()
    await _coalesce(inner).aclose()
    assert 1 == inner.closed


async def test_reading_after_the_end_says_the_end_again() -> None:
    """The stream of a reply keeps to the protocol of streams."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    call = make_call()
    call.cache_key, call.cache = b"key", CacheState.MISS
    reply = await coalesce.send(call)
    inner.streams[0].feed(b"x")
    inner.streams[0].end()
    assert reply.stream is not None
    assert [b"x", b"", b""] == [await reply.stream.read() for _ in range(3)]
    assert b"" == await read_all(reply)
    reply.stream.close()
    assert _is_empty(coalesce)


def _bill(call: Call, nanousd: int, tokens: int) -> None:
    attempt = AttemptRecord("sim/m", "sim", "m", 1, 2, tokens=Tokens(input=tokens), cost_nanousd=nanousd)
    call.attempts.append(attempt)


SPLIT = TenantPolicy("acme", cache=CachePolicy(coalesce_cost=CoalesceCost.SPLIT))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("policy", [CoalesceCost.LEADER, CoalesceCost.SPLIT])
async def test_the_bill_is_the_leader_s_or_everybody_s(streaming: bool, policy: CoalesceCost) -> None:
    """Split in equal parts that sum to the nano-USD and the token; what each saved is what it did not pay."""
    inner = FakeInner(gated=not streaming)
    inner.streaming = streaming
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(3)]
    for client in clients:
        assert client.call.identity is not None
        tenant = TenantPolicy("acme", cache=CachePolicy(coalesce_cost=policy))
        client.call.identity = KeyIdentity(tenant, client.call.identity.key, None)
        client.read_freely()
    await settle_down()
    _bill(clients[0].call, ANSWER_NANOUSD, 10)
    if streaming:
        inner.streams[0].feed(b"all")
        inner.streams[0].end()
    inner.gate.set()
    await settle_down()
    costs = [sum(one.cost_nanousd for one in client.call.attempts) for client in clients]
    tokens = [sum(one.tokens.input for one in client.call.attempts) for client in clients]
    saved = [client.call.saved_nanousd for client in clients]
    assert ["complete"] * 3 == [client.ended for client in clients]
    if policy is CoalesceCost.LEADER:
        assert ([ANSWER_NANOUSD, 0, 0], [10, 0, 0], [0, ANSWER_NANOUSD, ANSWER_NANOUSD]) == (costs, tokens, saved)
    else:
        assert ([7, 7, 6], [4, 3, 3], [13, 13, 14]) == (costs, tokens, saved)
    assert _is_empty(coalesce)


async def test_who_has_left_before_the_end_pays_nothing() -> None:
    """The bill is split between those who are there when it is known."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = _coalesce(inner)
    clients = [Client(coalesce) for _ in range(3)]
    for client in clients:
        assert client.call.identity is not None
        client.call.identity = KeyIdentity(SPLIT, client.call.identity.key, None)
        client.read_freely()
    await settle_down()
    clients[1].leave()
    await settle_down()
    _bill(clients[0].call, ANSWER_NANOUSD, 10)
    inner.streams[0].end()
    await settle_down()
    assert [10, 0, 10] == [sum(one.cost_nanousd for one in client.call.attempts) for client in clients]

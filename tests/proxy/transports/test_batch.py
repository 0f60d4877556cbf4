"""Tests of micro-batching: zero wait in quiet times, exact order, exact bills, and no one fails for another's input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptError, AttemptRecord, CostState, Outcome
from controlplane.contract.snapshot import BatchPolicy, Route, TenantPolicy
from proxy.call import Call, Reply
from proxy.meter import priced
from proxy.refusals import EXHAUSTED, refuse
from proxy.transports.batch import Batch
from tests.proxy.fakes import until
from tests.proxy.state_fakes import DEPLOYMENT, FakeClock, complete_reply, make_call, settle_down

POLICY = BatchPolicy(window_s=60.0, items_max=8)  # real seconds: what the tests wait for is never the window
Tally = Callable[[list[object]], int]


class Provider:
    """An upstream below the batch: it embeds, bills each request by its inputs, refuses `poison`, and waits for its gate."""

    def __init__(self, tally: Tally = len) -> None:
        self.asked: list[list[object]] = []
        self.priorities: list[str] = []
        self.cancelled = 0
        self.billed_tokens = 0
        self.billed_nanousd = 0
        self.gate = asyncio.Event()
        self.tally = tally
        self.failing = False
        self.closed = 0

    async def send(self, call: Call) -> Reply:
        """An answer, and an attempt on the call."""
        wanted = json.loads(call.body)["input"]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        self.asked.append(wanted)
        self.priorities.append(call.priority)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failing:
            call.attempts.append(_attempt(0, AttemptError.STATUS_5XX))
            return refuse(EXHAUSTED, "down")
        if "poison" in wanted:
            call.attempts.append(_attempt(0, AttemptError.REJECTED))
            reply = complete_reply(b'{"error":{"message":"bad input"}}', status=400)
            reply.outcome, reply.error_code = Outcome.UPSTREAM_REFUSED, "upstream_refused"
            return reply
        tokens = self.tally(wanted)
        attempt = _attempt(tokens)
        self.billed_tokens += tokens
        self.billed_nanousd += attempt.cost_nanousd
        call.attempts.append(attempt)
        data = [{"object": "embedding", "index": at, "embedding": f"v:{one}"} for at, one in enumerate(wanted)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = json.dumps({"object": "list", "data": data[::-1], "model": "m", "usage": usage}).encode()
        reply = complete_reply(body)
        reply.finish_reason, reply.tokens = "", Tokens(input=tokens)
        return reply

    async def aclose(self) -> None:
        """Nothing is held."""
        self.closed += 1


def _attempt(tokens: int, error: AttemptError = AttemptError.NONE) -> AttemptRecord:
    cost, state, _ = priced(Tokens(input=tokens), DEPLOYMENT)
    return AttemptRecord(
        "sim/m", "sim", "m", 1, 2, error=error, tokens=Tokens(input=tokens), cost_nanousd=cost, cost_state=state
    )


class Scene:
    """A batch above a provider."""

    def __init__(self, policy: BatchPolicy | None = POLICY, tally: Tally = len) -> None:
        self.clock = FakeClock()
        self.policy = policy
        self.provider = Provider(tally)
        self.batch = Batch(self.provider, monotonic=self.clock.s)

    def call(
        self, wanted: object, *, tenant: str = "acme", headers: dict[bytes, bytes] | None = None, **more: object
    ) -> Call:
        """A call that has come this far."""
        body = json.dumps({"model": "small", "input": wanted} | more).encode()
        return make_call(
            body, operation="embeddings", tenant=TenantPolicy(tenant), headers=headers,
            route=Route("small", (DEPLOYMENT,), batch=self.policy),
        )  # fmt: skip

    def send(self, call: Call, *, after_s: float = 0.001) -> asyncio.Task[Reply]:
        """The call on its way, a moment after the one before."""
        self.clock.advance(after_s)
        return asyncio.create_task(self.batch.send(call))

    async def begin(self, *wanted: object, **more: object) -> tuple[list[Call], list[asyncio.Task[Reply]]]:
        """Calls that come one after the other."""
        calls = [self.call(one, **more) for one in wanted]  # type: ignore[arg-type]
        tasks = []
        for call in calls:
            tasks.append(self.send(call))
            await asyncio.sleep(0)
        return calls, tasks


def _vectors(reply: Reply) -> list[object]:
    data = json.loads(reply.body)["data"]
    assert list(range(len(data))) == sorted(one["index"] for one in data)
    return [one["embedding"] for one in sorted(data, key=_index)]


def _index(item: dict[str, int]) -> int:
    return item["index"]


async def _finish(scene: Scene, tasks: list[asyncio.Task[Reply]]) -> list[Reply]:
    await settle_down()
    scene.provider.gate.set()
    return list(await asyncio.gather(*tasks))


async def test_what_comes_while_a_request_is_under_way_shares_the_next() -> None:
    """The first goes at once and alone; the others leave as one when it has come back, and each gets its own, in its own order."""
    scene = Scene()
    _, tasks = await scene.begin("a", ["b", "c"], "d", ["c", "e"])
    await settle_down()
    assert ([["a"]], 3) == (scene.provider.asked, scene.batch.waiting)
    replies = await _finish(scene, tasks)
    assert [["a"], ["b", "c", "d", "c", "e"]] == scene.provider.asked
    assert [["v:a"], ["v:b", "v:c"], ["v:d"], ["v:c", "v:e"]] == [_vectors(reply) for reply in replies]
    assert [1, 2, 1, 2] == [json.loads(reply.body)["usage"]["total_tokens"] for reply in replies]
    assert (1, 3, 0) == (scene.batch.requests_total, scene.batch.calls_total, scene.batch.waiting)


async def test_a_shared_request_is_as_urgent_as_the_most_urgent_call_of_it() -> None:
    """One of low priority that came first must not have the others refused with it."""
    scene = Scene()
    _, tasks = await scene.begin("a")
    for priority in ("low", "normal", "low"):
        call = scene.call(priority)
        call.priority = priority
        tasks.append(scene.send(call))
        await asyncio.sleep(0)
    await _finish(scene, tasks)
    assert (["", "normal"], ["low", "normal", "low"]) == (scene.provider.priorities, scene.provider.asked[-1])


async def test_in_quiet_times_nobody_waits() -> None:
    """Nothing under way, or calls further apart than the window: each goes at once."""
    scene = Scene()
    scene.provider.gate.set()
    for text in "abc":
        await scene.send(scene.call(text))
    assert [["a"], ["b"], ["c"]] == scene.provider.asked
    scene.provider.gate.clear()
    tasks = []
    for text in "def":
        tasks.append(scene.send(scene.call(text), after_s=61.0))
        await asyncio.sleep(0)
    await settle_down()
    assert 6 == len(scene.provider.asked)
    await _finish(scene, tasks)


async def test_a_full_batch_does_not_wait() -> None:
    """As soon as the inputs are as many as allowed the request leaves, never with more; a call that is a batch by itself goes alone."""
    scene = Scene()
    _, tasks = await scene.begin("a", ["b"] * 5, ["c"] * 5, ["d"] * 3, ["e"] * 8)
    await settle_down()
    replies = await _finish(scene, tasks)
    assert all(len(asked) <= POLICY.items_max for asked in scene.provider.asked)
    assert [["v:a"], ["v:b"] * 5, ["v:c"] * 5, ["v:d"] * 3, ["v:e"] * 8] == [_vectors(reply) for reply in replies]


async def test_the_window_ends_the_wait() -> None:
    """Where the request before does not come back, those that wait leave when their time is over."""
    scene = Scene(BatchPolicy(window_s=0.002, items_max=8))
    _, tasks = await scene.begin("a", "b", "c")
    await until(lambda: len(scene.provider.asked) == 2)
    assert [["a"], ["b", "c"]] == scene.provider.asked
    await _finish(scene, tasks)


async def test_the_window_is_the_shorter_the_faster_calls_come() -> None:
    """Calls so dense that a full batch is near wait for a part of the window, rare ones for all of it."""
    policy = BatchPolicy(window_s=0.2, items_max=8)
    slow, fast = Scene(policy), Scene(policy)
    asked: list[list[object]] = []
    slow.provider.asked = fast.provider.asked = asked
    tasks = []
    for scene, name, gap_s in ((slow, "slow", 0.1), (fast, "fast", 0.001)):  # the slow ones begin first
        for text in (f"{name} 1", f"{name} 2"):
            tasks.append(scene.send(scene.call(text), after_s=gap_s))
            await asyncio.sleep(0)
    await until(lambda: len(asked) == 4)
    assert [["slow 1"], ["fast 1"], ["fast 2"], ["slow 2"]] == asked
    for scene in (slow, fast):
        scene.provider.gate.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"tenant": "other"}),
        ({}, {"dimensions": 3}),
        ({}, {"user": "somebody"}),
        ({}, {"headers": {b"openai-organization": b"org"}}),
        ({"encoding_format": "base64"}, {"encoding_format": "float"}),
    ],
)
async def test_only_calls_that_ask_for_the_same_share(one: dict[str, object], other: dict[str, object]) -> None:
    """Another tenant, another field or header that reaches the upstream: another request."""
    scene = Scene()
    tasks = []
    for text in "xab":
        for more in (one, other):
            tasks.append(scene.send(scene.call(text, **more)))  # type: ignore[arg-type]
            await asyncio.sleep(0)
    await settle_down()
    await _finish(scene, tasks)
    assert [["x"], ["x"], ["a", "b"], ["a", "b"]] == scene.provider.asked


@pytest.mark.parametrize("falls_back", [True, False])
async def test_keys_with_other_models_share_only_what_stays_with_one_model(falls_back: bool) -> None:
    """Where another model could stand in, each list of models has requests of its own; else it does not matter."""
    scene = Scene()
    tasks = []
    for text in "xab":
        for models in (None, frozenset({"small"})):
            call = scene.call(text)
            assert call.identity is not None
            assert call.route is not None
            call.identity = replace(call.identity, models=models)
            call.route = replace(call.route, spares=call.candidates if falls_back else ())
            tasks.append(scene.send(call))
            await asyncio.sleep(0)
    await settle_down()
    await _finish(scene, tasks)
    assert (
        [["x"], ["x"], ["a", "b"], ["a", "b"]] if falls_back else [["x"], ["x", "a", "a", "b", "b"]]
    ) == scene.provider.asked


@pytest.mark.parametrize("how", ["off", "idempotent", "chat"])
async def test_what_is_not_to_share_goes_alone(how: str) -> None:
    """Where the route does not say so, where the client wants one request of its own, and whatever is no embeddings call."""
    scene = Scene(None if how == "off" else POLICY)
    headers = {b"idempotency-key": b"1"} if how == "idempotent" else {}
    calls = [scene.call(text, headers=headers) for text in "abc"]
    for call in calls:
        call.operation = "chat" if how == "chat" else "embeddings"
    tasks = [scene.send(call) for call in calls]
    await settle_down()
    assert 3 == len(scene.provider.asked)
    await _finish(scene, tasks)


async def test_a_poisoned_input_fails_its_own_call_alone() -> None:
    """The batch is halved until the refusal is its owner's; everybody else gets an answer."""
    scene = Scene()
    _, tasks = await scene.begin("first", "a", "b", ["c", "poison"], "d", "e")
    replies = await _finish(scene, tasks)
    assert [200, 200, 200, 400, 200, 200] == [reply.status for reply in replies]
    assert b'{"error":{"message":"bad input"}}' == replies[3].body
    assert ["v:b"] == _vectors(replies[2])
    assert scene.batch.halved_total <= 3


async def test_a_failed_request_fails_all_who_shared_it() -> None:
    """An upstream that is down is down for each of them, and each has its own reply."""
    scene = Scene()
    calls, tasks = await scene.begin("a", "b", "c")
    scene.provider.failing = True
    replies = await _finish(scene, tasks)
    assert [502] * 3 == [reply.status for reply in replies]
    assert 3 == len({id(reply) for reply in replies})
    assert [1] * 3 == [len(call.attempts) for call in calls]


async def test_a_client_that_leaves_pays_an_estimate_and_the_others_the_rest() -> None:
    """What it was asked for is estimated at once; the sum is what the provider billed."""
    scene = Scene(tally=lambda wanted: 10 * len(wanted))
    calls, tasks = await scene.begin("first", "aaaa", "bbbbbbbb", "cccc")
    tasks[0].cancel()
    await settle_down()
    tasks[2].cancel()
    await settle_down()
    assert [(AttemptError.CANCELLED, CostState.ESTIMATED, 2)] == [
        (one.error, one.cost_state, one.tokens.input) for one in calls[2].attempts
    ]
    scene.provider.gate.set()
    await asyncio.gather(tasks[1], tasks[3])
    shared = calls[1:]
    assert scene.provider.billed_tokens == sum(one.tokens.input for call in shared for one in call.attempts)
    assert scene.provider.billed_nanousd == sum(one.cost_nanousd for call in shared for one in call.attempts)


async def test_a_request_that_nobody_waits_for_is_given_up() -> None:
    """When all who share it have left, the upstream's work is cancelled; who leaves before it began pays nothing."""
    scene = Scene()
    calls, tasks = await scene.begin("first", "a", "b")
    await settle_down()
    tasks[1].cancel()
    await settle_down()
    assert ([], 1) == (calls[1].attempts, scene.batch.waiting)
    _, more = await scene.begin(["c"] * 7)
    await settle_down()
    for task in (tasks[2], *more):
        task.cancel()
    await settle_down()
    assert 1 == scene.provider.cancelled
    assert 1 == len(calls[2].attempts)
    await _finish(scene, tasks[:1])
    assert not scene.batch._groups


async def test_a_call_waits_no_longer_than_its_deadline() -> None:
    """Its time is over while it shares a request: it is refused, pays an estimate, and the others go on."""
    scene = Scene()
    _, tasks = await scene.begin("first")
    late, patient = scene.call("a"), scene.call("b")
    late.deadline = scene.clock.s() + 0.01
    patient.deadline = scene.clock.s() + 600
    for call in (late, patient):
        tasks.append(scene.send(call))
        await asyncio.sleep(0)
    reply = await tasks[1]
    assert (504, "timed_out") == (reply.status, reply.error_code)
    replies = await _finish(scene, [tasks[0], tasks[2]])
    assert [200, 200] == [reply.status for reply in replies]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(min_size=1, max_size=9), st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 1000),
)
def test_bills_sum_to_the_provider_s(asks: list[object], tokens: int) -> None:
    """Whatever the inputs and whatever the provider counts: everybody gets their own, and the parts are the whole."""

    async def run() -> None:
        scene = Scene(tally=lambda _: tokens)
        calls, tasks = await scene.begin(*asks)
        replies = await _finish(scene, tasks)
        for wanted, reply in zip(asks, replies, strict=True):
            assert [f"v:{one}" for one in (wanted if isinstance(wanted, list) else [wanted])] == _vectors(reply)
        attempts = [one for call in calls for one in call.attempts]
        assert scene.provider.billed_tokens == sum(one.tokens.total for one in attempts)
        assert scene.provider.billed_nanousd == sum(one.cost_nanousd for one in attempts)
        assert scene.provider.billed_tokens == sum(reply.tokens.total for reply in replies)
        counted = sum(json.loads(reply.body)["usage"]["prompt_tokens"] for reply in replies)
        assert scene.provider.billed_tokens == counted
        assert 0 == scene.batch.waiting

    asyncio.run(run())


async def test_arrays_of_tokens_are_billed_exactly() -> None:
    """Each call pays for the tokens it sent."""
    scene = Scene(tally=lambda wanted: sum(len(one) for one in wanted))  # type: ignore[misc, arg-type]
    calls, tasks = await scene.begin([[1]], [[1, 2, 3]], [[4], [5, 6]], [[7]])
    await _finish(scene, tasks)
    assert [1, 3, 3, 1] == [call.attempts[0].tokens.input for call in calls]


async def test_closing_ends_what_is_shared() -> None:
    """Whoever waits is cancelled, and the transport below is closed."""
    scene = Scene()
    _, tasks = await scene.begin("a", ["b"] * 4, ["c"] * 4)
    await settle_down()
    await scene.batch.aclose()
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in results)
    assert 1 == scene.provider.closed


async def test_a_request_that_has_not_begun_when_the_proxy_stops_ends_its_calls() -> None:
    """A batch that became full in the last turn: its calls are told, and nobody waits for their deadlines."""
    scene = Scene(BatchPolicy(window_s=60.0, items_max=2))
    _, (first, *_) = await scene.begin("first", "second")
    last = scene.send(scene.call("third"))
    await asyncio.sleep(0)
    await scene.batch.aclose()
    await settle_down()
    assert (True, 1, 0) == (last.done(), len(scene.provider.asked), scene.batch.waiting)
    scene.provider.gate.set()
    assert 200 == (await first).status


class Billing(Provider):
    """An upstream that charges for what it had begun when it was told to stop."""

    async def send(self, call: Call) -> Reply:
        """As ever, or what was begun."""
        try:
            return await super().send(call)
        except asyncio.CancelledError:
            attempt = _attempt(len(self.asked[-1]), AttemptError.CANCELLED)
            self.billed_nanousd += attempt.cost_nanousd
            call.attempts.append(attempt)
            raise


@pytest.mark.parametrize("begun", [True, False])
async def test_calls_that_the_end_of_the_proxy_ends_pay_once(*, begun: bool) -> None:
    """What was asked for them, as it was billed; and nothing where nothing was asked."""
    scene = Scene(BatchPolicy(window_s=60.0, items_max=2))
    scene.batch._inner = provider = Billing()
    alone = scene.send(scene.call("alone"))
    await settle_down()
    calls = [scene.call(wanted * 100) for wanted in ("one", "two")]
    tasks = [scene.send(call) for call in calls]
    await (settle_down() if begun else asyncio.sleep(0))
    await scene.batch.aclose()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (len(provider.asked) == 2) is begun
    assert provider.billed_nanousd == sum(attempt.cost_nanousd for call in calls for attempt in call.attempts)
    assert (provider.billed_nanousd > 0) is begun
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)


async def test_nothing_more_is_asked_when_the_proxy_has_stopped() -> None:
    """Calls that wait behind a request which is cancelled are told, too, instead of becoming one."""
    scene = Scene(BatchPolicy(window_s=60.0, items_max=2))
    alone = scene.send(scene.call("alone"))
    await settle_down()
    tasks = [scene.send(scene.call(wanted)) for wanted in ("one", "two", "three")]
    await settle_down()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    assert 2 == len(scene.provider.asked)
    await scene.batch.aclose()
    await settle_down()
    assert ([True] * 3, 2) == ([task.done() for task in tasks], len(scene.provider.asked))

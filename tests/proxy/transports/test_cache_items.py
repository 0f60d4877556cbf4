"""Tests of embeddings stored by input: the upstream is asked for what is not known, and every caller gets exactly its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import CachePolicy, TenantPolicy
from proxy.call import Call, Reply
from proxy.refusals import EXHAUSTED, refuse
from proxy.transports.cache import Cache
from proxy.transports.cache_memory import MemoryTier
from proxy.transports.coalesce import Coalesce
from tests.proxy.state_fakes import FakeClock, FakeInner, complete_reply, make_call, settle_down


def embedded(call: Call) -> Reply:
    """What a provider would say: a vector that names the tenant, the text and the format; three tokens for each input."""
    document = json.loads(call.body)
    wanted = document["input"] if isinstance(document["input"], list) else [document["input"]]
    assert call.identity is not None
    data = [
        {"object": "embedding", "index": at, "embedding": vector(call.identity.tenant.id, one, document)}
        for at, one in enumerate(wanted)
    ]
    usage = {"prompt_tokens": 3 * len(wanted), "total_tokens": 3 * len(wanted)}
    reply = complete_reply(json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode())
    reply.finish_reason, reply.tokens = "", Tokens(input=3 * len(wanted))
    return reply


def vector(tenant: str, item: object, document: dict[str, object]) -> object:
    """Base64 where it was asked for, else floats."""
    text = f"{tenant}/{item}/{document.get('dimensions')}"
    return text if document.get("encoding_format") == "base64" else [float(ord(one)) for one in text]


class Provider(FakeInner):
    """An upstream that embeds."""

    def __init__(self, *, gated: bool = False) -> None:
        super().__init__(gated=gated)
        self.asked: list[object] = []
        self.make: Callable[[Call], Reply] = embedded

    async def send(self, call: Call) -> Reply:
        """The answer to what the call asks now."""
        body = json.loads(call.body)
        reply = self.make(call)
        await super().send(call)
        self.asked.append(body["input"])
        return reply


class Scene:
    """A cache above an upstream that embeds."""

    def __init__(self, *, gated: bool = False) -> None:
        self.clock = FakeClock()
        self.provider = Provider(gated=gated)
        below = Coalesce(self.provider, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7)
        self.cache = Cache(
            below, memory=MemoryTier(bytes_max=10**7), disk=None, entry_bytes_max=10**5, now_us=self.clock.us
        )

    async def ask(
        self,
        wanted: object,
        *,
        tenant: str = "acme",
        headers: dict[bytes, bytes] | None = None,
        more: dict[str, object] | None = None,
    ) -> tuple[Call, Reply]:
        """One call, whose answer must be exactly its own."""
        document = {"model": "small", "input": wanted} | (more or {})
        policy = TenantPolicy(tenant, cache=CachePolicy(ttl_s=100, stale_if_error_s=1000))
        call = make_call(json.dumps(document).encode(), operation="embeddings", tenant=policy, headers=headers)
        body = call.body
        reply = await self.cache.send(call)
        assert body == call.body
        if reply.status == 200:
            items = wanted if isinstance(wanted, list) else [wanted]
            answered = json.loads(reply.body)
            expected = [(at, vector(tenant, item, document)) for at, item in enumerate(items)]
            assert expected == [(one["index"], one["embedding"]) for one in answered["data"]]
            assert 3 * len(items) == answered["usage"]["prompt_tokens"] == answered["usage"]["total_tokens"]
        return call, reply


async def test_nine_known_inputs_of_ten_ask_for_one() -> None:
    """The upstream is asked for the one that is missing; the call says what it saved, and pays for one."""
    scene = Scene()
    known = [f"text {number}" for number in range(9)]
    await scene.ask(known[:5])
    await scene.ask(known[5:])
    call, reply = await scene.ask([*known[:4], "new", *known[4:]])
    assert ["new"] == scene.provider.asked[-1]
    assert (CacheState.MISS, 27, Tokens(input=3)) == (call.cache, call.saved_nanousd, reply.tokens)
    assert (b"x-heph-cache-items", b"9/10") in reply.headers
    again, whole = await scene.ask([*known, "new"])
    assert (CacheState.HIT, 30, Tokens()) == (again.cache, again.saved_nanousd, whole.tokens)
    assert (CacheState.HIT, 3) == ((alone := (await scene.ask("new"))[0]).cache, alone.saved_nanousd)
    assert 3 == len(scene.provider.asked)


async def test_equal_inputs_of_one_request_are_asked_for_once() -> None:
    """Each place gets its vector all the same."""
    scene = Scene()
    await scene.ask(["a", "b", "a", "a"])
    assert [["a", "b"]] == scene.provider.asked


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ({"dimensions": 256}, {"dimensions": 512}),
        ({"encoding_format": "base64"}, {"encoding_format": "float"}),
        ({"invented_later": 1}, {"invented_later": 2}),
        ({}, {"model": "other"}),
    ],
)
async def test_the_rest_of_the_request_is_part_of_the_key(more: dict[str, object], other: dict[str, object]) -> None:
    """Another size, format or unknown field is another vector."""
    scene = Scene()
    await scene.ask(["a"], more=more)
    await scene.ask(["a"], more=other)
    assert 2 == len(scene.provider.asked)
    await scene.ask(["a"], more=more | {"user": "somebody"})
    assert 2 == len(scene.provider.asked)


TEXTS = st.sampled_from(["a", "b", "c", "d", "e"])


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["acme", "other"]),
            st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=6)),
            st.sampled_from([{}, {"encoding_format": "base64"}, {"dimensions": 3}]),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_everybody_always_gets_their_own(asks: list[tuple[str, object, dict[str, object]]]) -> None:
    """Whatever was asked before by whom: order, vectors and counts are those of the request alone, and nothing is asked for twice."""

    async def run() -> None:
        scene = Scene()
        for tenant, wanted, more in asks:
            await scene.ask(wanted, tenant=tenant, more=more)
        distinct = {
            (tenant, one, json.dumps(more))
            for tenant, wanted, more in asks
            for one in ([wanted] if isinstance(wanted, str) else wanted)  # type: ignore[attr-defined]
        }
        assert len(distinct) == sum(len(one) if isinstance(one, list) else 1 for one in scene.provider.asked)

    asyncio.run(run())


async def test_tokens_are_split_so_that_they_sum() -> None:
    """By length where inputs are text, exactly where they are arrays of tokens; no token is lost or made."""
    scene = Scene()
    scene.provider.make = _with_tokens(10)
    await scene.cache.send(_call(["a", "bb", "cccc"]))
    entries = [entry for _, entry in scene.cache.memory.newest_first()]
    assert [1, 3, 6] == sorted(entry.tokens.input for entry in entries)
    assert 10 == sum(entry.nanousd for entry in entries)
    exact = Scene()
    exact.provider.make = _with_tokens(6)
    await exact.cache.send(_call([[1], [1, 2], [1, 2, 3]]))
    assert [1, 2, 3] == sorted(entry.tokens.input for _, entry in exact.cache.memory.newest_first())


def _call(wanted: object) -> Call:
    return make_call(json.dumps({"model": "small", "input": wanted}).encode(), operation="embeddings")


def _with_tokens(count: int) -> Callable[[Call], Reply]:
    def make(call: Call) -> Reply:
        reply = embedded(call)
        document = json.loads(reply.body) | {"usage": {"prompt_tokens": count, "total_tokens": count}}
        reply.body, reply.tokens = json.dumps(document).encode(), Tokens(input=count)
        return reply

    return make


async def test_an_answer_that_does_not_fit_is_passed_on_and_not_stored() -> None:
    """A vector too few belongs to nobody; where only a part was asked for, the whole is asked once more."""
    scene = Scene()
    await scene.ask(["a"])

    def short(call: Call) -> Reply:
        reply = embedded(call)
        document = json.loads(reply.body)
        if document["data"] and json.loads(call.body)["input"] == ["b"]:
            document["data"] = []
        reply.body = json.dumps(document).encode()
        return reply

    scene.provider.make = short
    call, _ = await scene.ask(["a", "b"])
    assert (CacheState.BYPASS, [["a"], ["b"], ["a", "b"]]) == (call.cache, scene.provider.asked)
    assert 1 == len(scene.cache.memory)


@pytest.mark.parametrize("when", ["before the cache", "upstream"])
async def test_vectors_of_a_model_that_stood_in_are_not_mixed_with_others(when: str) -> None:
    """Where another model answers, it is asked for all inputs, and the client never gets a part of what it asked for."""
    scene = Scene()
    await scene.ask(["a"])

    def other(call: Call) -> Reply:
        call.fell_back = "general"
        return embedded(call)

    scene.provider.make = other
    call = make_call(json.dumps({"model": "small", "input": ["a", "b"]}).encode(), operation="embeddings")
    call.fell_back = "budget" if when == "before the cache" else ""
    assert 2 == len(json.loads((await scene.cache.send(call)).body)["data"])
    assert ["a", "b"] == scene.provider.asked[-1]
    assert 1 == len(scene.cache.memory)


def _says(model: str | None) -> Callable[[Call], Reply]:
    """An upstream that calls its model so; None: it does not say."""

    def make(call: Call) -> Reply:
        reply = embedded(call)
        reply.model = f"configured as {model}"
        reply.body = reply.body.replace(b'"model": "m"', b'"model": ' + json.dumps(model).encode())
        return reply

    return make


@pytest.mark.parametrize("second", ["large", None])
async def test_vectors_of_two_models_of_a_route_are_never_in_one_answer(second: str | None) -> None:
    """A route's deployments may serve different models: what another than the last one gave is asked for again."""
    scene = Scene()
    scene.provider.make = _says("small")
    await scene.ask(["a", "b"])
    scene.clock.advance(1)
    scene.provider.make = _says(second)
    call, reply = await scene.ask(["a", "new"])
    assert (CacheState.BYPASS, [["a", "b"], ["new"], ["a", "new"]]) == (call.cache, scene.provider.asked)
    assert second == json.loads(reply.body)["model"]
    call, reply = await scene.ask(["a", "new"])
    assert (["a"], CacheState.MISS, second) == (scene.provider.asked[-1], call.cache, json.loads(reply.body)["model"])
    assert CacheState.HIT == (await scene.ask(["new", "a"]))[0].cache
    assert 4 == len(scene.provider.asked)
    scene.clock.advance(150)
    scene.provider.answer = lambda: refuse(EXHAUSTED, "no")
    scene.provider.make = lambda _: refuse(EXHAUSTED, "no")
    assert [502, 200] == [(await scene.ask(wanted))[1].status for wanted in (["a", "b"], ["a", "new"])]


async def test_a_follower_of_a_model_that_stood_in_does_not_mix_vectors_either() -> None:
    """Who shares the flight knows that another model answered."""
    scene = Scene()
    await scene.ask(["a"])
    scene.provider.gate.clear()
    scene.provider.make = embedded

    def other(call: Call) -> Reply:
        call.fell_back = "general"
        return embedded(call)

    scene.provider.make = other
    asking = [asyncio.create_task(scene.ask(wanted)) for wanted in (["a", "x"], ["x", "a"])]
    await settle_down()
    scene.provider.gate.set()
    await asyncio.gather(*asking)
    assert [["a"], ["x"]] == scene.provider.asked[:2]
    assert 4 == len(scene.provider.asked)
    assert [["x", "a"]] == [asked for asked in scene.provider.asked[2:] if asked != ["a", "x"]]


async def test_requests_that_miss_the_same_inputs_share_one_call() -> None:
    """Two callers with different known inputs join the flight for what both lack; each gets its own whole answer."""
    scene = Scene()
    await scene.ask(["a", "b"])
    scene.provider.gate.clear()
    asking = [asyncio.create_task(scene.ask(wanted)) for wanted in (["a", "x"], ["x", "b"])]
    await settle_down()
    scene.provider.gate.set()
    (leader, _), (follower, _) = await asyncio.gather(*asking)
    assert (CacheState.MISS, CacheState.COALESCED) == (leader.cache, follower.cache)
    assert (3, 6) == (leader.saved_nanousd, follower.saved_nanousd)
    assert [["a", "b"], ["x"]] == scene.provider.asked


async def test_an_outage_is_served_from_stale_inputs() -> None:
    """If all that is missing is there as stale, the whole is served as stale; else the failure reaches the client."""
    scene = Scene()
    await scene.ask(["a", "b"])
    scene.clock.advance(150)
    scene.provider.make = lambda _: refuse(EXHAUSTED, "no")
    scene.provider.answer = lambda: refuse(EXHAUSTED, "no")
    call, reply = await scene.ask(["b", "a"])
    assert (CacheState.STALE, 200, 150.0) == (call.cache, reply.status, reply.age_s)
    assert 502 == (await scene.ask(["b", "new"]))[1].status


async def test_cache_control_holds_for_inputs_too() -> None:
    """`no-cache` asks for all and keeps it, `only-if-cached` never asks, `no-store` leaves no trace."""
    scene = Scene()
    await scene.ask(["a"], headers={b"cache-control": b"no-store"})
    assert 0 == len(scene.cache.memory)
    await scene.ask(["a"])
    call, _ = await scene.ask(["a", "b"], headers={b"cache-control": b"no-cache"})
    assert (CacheState.BYPASS, ["a", "b"]) == (call.cache, scene.provider.asked[-1])
    assert 200 == (await scene.ask(["a", "b"], headers={b"cache-control": b"only-if-cached"}))[1].status
    assert 504 == (await scene.ask(["a", "c"], headers={b"cache-control": b"only-if-cached"}))[1].status
    assert 3 == len(scene.provider.asked)


async def test_inputs_that_others_have_brought_since_the_look_up_are_not_asked_for_again() -> None:
    """A call that was looked up while another asked for an input of it asks for its other input alone."""
    scene = Scene(gated=True)
    first = asyncio.create_task(scene.ask(["known"]))
    await settle_down()
    late = make_call(json.dumps({"model": "small", "input": ["known", "new"]}).encode(), operation="embeddings")
    assert scene.cache.lookup(late) is None
    scene.provider.gate.set()
    await first
    assert 200 == (await scene.cache.send(late)).status
    assert [["known"], ["new"]] == scene.provider.asked

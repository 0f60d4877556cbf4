"""What Anthropic keeps between messages, through the proxy: gone on with where it is, by its tenant alone. Threads are begun anew everywhere else."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from controlplane.contract.snapshot import CachePolicy, TenantPolicy
from tests.proxy.anthropic_fakes import MESSAGE_STOP, message, sent_event, stop, streamed, text_block
from tests.proxy.fakes import KEY, USAGE, Received, ScriptedUpstream, Wire, World, answer

ENDED = {"output_tokens": 3}
HI: Any = [{"role": "user", "content": "hi"}]
OTHER = TenantPolicy(id="other", cache=CachePolicy(enabled=False))
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


class Account:
    """An upstream of Anthropic's that keeps threads: each answer has an id of its own, and can be gone on from once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: set[str] = set()
        self.made = 0

    async def __call__(self, wire: Wire, request: Received) -> None:
        """One request: a tool is called first, and an answer given to its result."""
        asked = request.document
        thread: Any = asked.get("thread") or {}
        before = thread.get("previous_message_id")
        if before is not None and before not in self.kept:
            error = {"type": "not_found_error", "message": "gone", "details": {"error_code": "thread_not_found"}}
            await wire.send(answer(json.dumps({"type": "error", "error": error}).encode(), 404))
            return
        self.kept.discard(before)
        self.made += 1
        name = f"msg_{self.name}_{self.made}"
        if thread:
            self.kept.add(name)
        if asked.get("stream"):
            begun = sent_event("message_start", message=json.loads(message(id=name, content=[])))
            await wire.send(streamed(begun, text_block("Hi"), stop(), MESSAGE_STOP))
        elif before is None and asked.get("tools"):
            use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
            await wire.send(answer(message(id=name, content=[use], stop_reason="tool_use")))
        else:
            await wire.send(answer(message(id=name)))


async def behind(world: World, *names: str, **applied: Any) -> list[ScriptedUpstream]:
    """Accounts of Anthropic's behind one model."""
    upstreams = [await world.upstream(Account(name)) for name in names]
    place(world, upstreams, **applied)
    return upstreams


def place(world: World, upstreams: list[ScriptedUpstream], **applied: Any) -> None:
    """The same accounts with another policy."""
    urls = tuple(f"http://127.0.0.1:{item.port}" for item in upstreams)
    world.apply(urls=urls, upstream={"dialect": "anthropic"}, **applied)


async def send(world: World, thread: object, **more: object) -> httpx.Response:
    """One message in a thread."""
    body = {"model": "gpt", "max_tokens": 9, "messages": HI, "thread": thread, **more}
    return await world.client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})


def going_on(name: str) -> dict[str, str]:
    """A thread that is there."""
    return {"type": "continue", "previous_message_id": name}


def lost(reply: httpx.Response) -> bool:
    """Whether the client is told to send everything."""
    error = reply.json()["error"]
    return reply.status_code == 404 and error["details"] == {"error_code": "thread_not_found"}


def tool() -> Any:
    """A tool of the SDK's."""

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: Its name.
        """
        return f"sun in {city}"

    return weather


async def run(world: World) -> list[str | None]:
    """Why each answer of a tool runner ended."""
    async with anthropic.AsyncAnthropic(base_url=world.url, api_key=KEY, max_retries=0) as client:
        runner = client.beta.messages.tool_runner(model="gpt", max_tokens=50, messages=HI, tools=[tool()])
        return [item.stop_reason async for item in runner]


async def test_a_tool_runner_sends_each_message_once(world: World) -> None:
    """The vendor's own helper opens a thread and goes on with it."""
    (account,) = await behind(world, "a")
    assert ["tool_use", "end_turn"] == await run(world)
    asked = [item.document for item in account.received]
    assert [{"type": "create"}, going_on("msg_a_1")] == [item["thread"] for item in asked]
    assert [1, 1] == [len(item["messages"]) for item in asked]  # type: ignore[arg-type]


async def test_a_tool_runner_at_a_model_of_another_vendor(world: World) -> None:
    """Nothing is kept there, so the helper sends everything again, and no answer is given to a part of a conversation."""

    async def chats(wire: Wire, request: Received) -> None:
        roles = [item["role"] for item in request.document["messages"]]  # type: ignore[attr-defined]
        assert roles[0] == "user"
        said: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        ended = "tool_calls"
        if "tool" in roles:
            said, ended = {"role": "assistant", "content": "sun"}, "stop"
        choice = {"index": 0, "message": said, "finish_reason": ended}
        document = {"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": USAGE}
        await wire.send(answer(json.dumps(document).encode()))

    upstream = await world.upstream(chats)
    world.apply()
    assert ["tool_use", "end_turn"] == await run(world)
    assert 2 == len(upstream.received)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_thread_is_its_tenants_alone(world: World, streams: bool) -> None:
    """Who knows the id of another tenant's message learns no more than who made it up; the tenant itself goes on, once."""
    accounts = await behind(world, "a")
    assert 200 == (await send(world, {"type": "create"}, stream=streams)).status_code
    place(world, accounts, tenant=OTHER)
    theirs, made_up = [await send(world, going_on(name)) for name in ("msg_a_1", "msg_a_9")]
    assert lost(theirs)
    assert lost(made_up)
    assert 1 == len(accounts[0].received)
    place(world, accounts)
    assert 200 == (await send(world, going_on("msg_a_1"), stream=streams)).status_code
    assert lost(await send(world, going_on("msg_a_1")))
    assert 200 == (await send(world, going_on("msg_a_2"))).status_code
    assert 3 == len(accounts[0].received)


async def test_a_thread_goes_on_where_it_is_kept(world: World) -> None:
    """Another account of the same model does not know it."""
    first, second = await behind(world, "a", "b")
    assert 200 == (await send(world, {"type": "create"})).status_code
    place(world, [first, second], deployment={"order": 0, "weight": 1})
    name = "msg_a_1" if first.received else "msg_b_1"
    for turn in range(2, 6):
        assert 200 == (await send(world, going_on(name))).status_code
        name = f"{name[:6]}{turn}"
    assert {0, 5} == {len(first.received), len(second.received)}


async def test_what_a_thread_holds_is_written_down(world: World) -> None:
    """A turn is billed with all that was said before it, so that much is reserved for the next one."""
    await behind(world, "a")
    assert 200 == (await send(world, {"type": "create"})).status_code
    await send(world, going_on("msg_a_1"))
    await world.until_idle()
    owner = (await world.worker.owners.find("acme", ["msg_a_2"]))["msg_a_2"]
    assert world.records()[-1].tokens.total == owner.tokens > 0


async def test_answers_of_threads_are_not_stored(world: World) -> None:
    """A stored answer would name a thread that somebody else goes on with."""
    (account,) = await behind(world, "a", tenant=TenantPolicy(id="acme", cache=CachePolicy(enabled=True)))
    replies = [await send(world, {"type": "create"}) for _ in range(2)]
    assert ["bypass", "bypass"] == [reply.headers["x-heph-cache"] for reply in replies]
    assert ["msg_a_1", "msg_a_2"] == [reply.json()["id"] for reply in replies]
    assert ["miss", "hit"] == [(await send(world, None)).headers["x-heph-cache"] for _ in range(2)]
    assert 3 == len(account.received)


@pytest.mark.parametrize(
    "thread",
    [
        '"thread":{"type":"continue","previous_message_id":"msg_b"},"thread":{"type":"create"}',
        '"thread":{"type":"continue","previous_message_id":"msg_b"},"thread":null',
        '"thread":{"type":"continue","previous_message_id":"msg_b","previous_message_id":"msg_a_1"}',
        '"\\u0074hread":{"type":"create","\\u0074ype":"create"}',
    ],
)
async def test_a_thread_that_is_named_twice_reaches_the_upstream_as_it_was_read(world: World, thread: str) -> None:
    """What another reader would have found is not there any more."""
    (account,) = await behind(world, "a", model="gpt")
    await send(world, {"type": "create"})
    body = f'{{"model":"gpt","max_tokens":9,"messages":[{{"role":"user","content":"hi"}}],{thread}}}'
    assert 200 == (await world.client.post("/v1/messages", content=body)).status_code
    assert b"msg_b" not in account.received[1].body
    assert 1 == account.received[1].body.count(b'"thread"')


@pytest.mark.parametrize(
    "thread",
    [{"type": "fork", "message_id": "msg_a_1"}, {"type": "continue"}, "msg_a_1", {"previous_message_id": "msg_a_1"}],
)
async def test_a_thread_whose_ids_cannot_be_read_goes_nowhere(world: World, thread: object) -> None:
    """It could be somebody else's."""
    (account,) = await behind(world, "a")
    reply = await send(world, thread)
    assert (400, []) == (reply.status_code, account.received)
    assert "thread" in reply.json()["error"]["message"]


CODE: Any = [{"type": "code_execution_20250825", "name": "code_execution"}]
PLACE = {"id": "container_a", "expires_at": "2026-11-20T00:00:00Z"}


async def runs_code(wire: Wire, request: Received) -> None:
    """An upstream of Anthropic's whose answers name the container in which code ran."""
    if request.document.get("stream"):
        begun = sent_event("message_start", message=json.loads(message(id="msg_1", content=[])))
        ended = sent_event("message_delta", delta={"stop_reason": "end_turn", "container": PLACE}, usage=ENDED)
        await wire.send(streamed(begun, text_block('see \\"message_delta\\"'), ended, MESSAGE_STOP))
    else:
        await wire.send(answer(message(container=PLACE)))


@pytest.mark.parametrize("streams", [False, True])
async def test_a_container_is_its_tenants_alone(world: World, streams: bool) -> None:
    """Its files are another tenant's; who made it goes on in it, whatever else runs code there, at the account where it is."""
    elsewhere, account = await world.upstream(Account("b")), await world.upstream(runs_code)
    place(world, [account])
    assert lost_container(await send(world, None, container="container_a"))
    assert 200 == (await send(world, None, tools=CODE, stream=streams)).status_code
    place(world, [account], tenant=OTHER)
    for container in ("container_a", {"id": "container_a", "skills": []}, "container_b"):
        assert lost_container(await send(world, None, container=container))
    assert 1 == len(account.received)
    place(world, [account, elsewhere], deployment={"order": 0})
    assert [200] * 4 == [(await send(world, None, container="container_a")).status_code for _ in range(4)]
    assert 5 == len(account.received)
    assert [] == elsewhere.received
    place(world, [account])
    assert "container_a" == account.received[1].document["container"]
    skills = {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}
    assert 200 == (await send(world, None, container=skills, tools=CODE)).status_code
    assert 6 == len(account.received)


def lost_container(reply: httpx.Response) -> bool:
    """Whether the client is told that there is none."""
    return reply.status_code == 404 and "Container with id" in reply.json()["error"]["message"]

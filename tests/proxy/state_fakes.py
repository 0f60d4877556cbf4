"""Calls, records and stand-ins for what lies beneath the parts that remember."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable

from controlplane.contract.pricing import NO_TOKENS, Price, Tokens
from controlplane.contract.records import CallRecord, Outcome
from controlplane.contract.snapshot import Deployment, KeyEntry, Route, Snapshot, TenantPolicy, Upstream
from proxy.call import Call, ChunkStream, Reply, StreamBroken
from proxy.runtime import Candidate, KeyIdentity, RouteEntry, Runtime
from proxy.view import read_view

BODY = b'{"model":"small","messages":[{"role":"user","content":"hi"}]}'
UPSTREAM = Upstream("sim", "openai", "http://127.0.0.1:1/v1")
PRICE = Price(input=1_000_000, output=2_000_000)  # 1 and 2 nano-USD per token
DEPLOYMENT = Deployment("sim/m", "sim", "m", price=PRICE, max_output_tokens=100)
RUNTIME = Runtime(Snapshot(version=1, created_us=0), {}, {})
NOON_US = 1_763_640_000_000_000  # 2025-11-20T12:00:00Z

_numbers = itertools.count()


class FakeClock:
    """Time that moves when it is told to."""

    def __init__(self, now_us: int = NOON_US) -> None:
        self.now_us = now_us

    def us(self) -> int:
        """The wall clock."""
        return self.now_us

    def s(self) -> float:
        """The monotonic clock."""
        return self.now_us / 1e6

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now_us += int(seconds * 1e6)


def make_call(
    body: bytes = BODY,
    *,
    tenant: TenantPolicy | None = None,
    headers: dict[bytes, bytes] | None = None,
    operation: str = "chat",
    deployments: Iterable[Deployment] = (DEPLOYMENT,),
    route: Route | None = None,
) -> Call:
    """A call as the stages before `reserve` leave it."""
    call = Call(
        RUNTIME,
        operation,
        "/v1/x",
        headers or {},
        body,
        call_id=f"call_{next(_numbers)}",
        started_us=NOON_US,
        started_ns=1,
    )
    policy = tenant or TenantPolicy("acme")
    call.identity = KeyIdentity(policy, KeyEntry("0" * 32, "key_1", policy.id), None)
    call.view = read_view(operation, body)
    call.candidates = tuple(Candidate(deployment, UPSTREAM, None) for deployment in deployments)
    call.route = RouteEntry(route or Route(call.view.model, tuple(deployments)), (call.candidates,))
    return call


def make_record(
    *, tenant: str = "acme", tokens: int = 0, nanousd: int = 0, at_us: int = NOON_US, call_id: str = "call_x"
) -> CallRecord:
    """A record that was settled at a moment."""
    return CallRecord(
        call_id,
        at_us - 1000,
        1000,
        "chat",
        Outcome.OK,
        200,
        tenant=tenant,
        tokens=Tokens(input=tokens),
        cost_nanousd=nanousd,
    )


class FakeStream:
    """A stream whose chunks the test hands out; a chunk that was not returned is returned by the next read."""

    def __init__(self, chunks: Iterable[bytes] = (), *, ended: bool = False) -> None:
        self.chunks = list(chunks)
        self.ended = ended
        self.broken: StreamBroken | None = None
        self.closed = 0
        self.reads_at_once = 0
        self.reply: Reply | None = None
        self.tokens = Tokens(input=10, output=5)
        self._news = asyncio.Event()
        self._reading = 0

    def feed(self, *chunks: bytes) -> None:
        """More has come from the upstream."""
        self.chunks += chunks
        self._news.set()

    def end(self, broken: StreamBroken | None = None) -> None:
        """The upstream is done, or has failed."""
        self.ended = True
        self.broken = broken
        self._news.set()

    async def read(self) -> bytes:
        """The next chunk."""
        self._reading += 1
        self.reads_at_once = max(self.reads_at_once, self._reading)
        try:
            while not self.chunks and not self.ended:
                self._news.clear()
                await self._news.wait()
            if self.chunks:
                return self.chunks.pop(0)
            if self.broken is not None:
                raise self.broken
            if self.reply is not None:
                self.reply.complete = True
                self.reply.finish_reason = "stop"
                self.reply.tokens = self.tokens
                self.reply.usage_known = True
            return b""
        finally:
            self._reading -= 1

    def close(self) -> None:
        """The connection is given up."""
        self.closed += 1


class FakeInner:
    """A transport that answers what it is told, now or when the test opens its gate."""

    def __init__(self, *, gated: bool = False) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.streams: list[FakeStream] = []
        self.streaming = False
        self.answer: Callable[[], Reply] = complete_reply
        self.failure: Exception | None = None
        self.closed = 0
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def send(self, call: Call) -> Reply:
        """The answer."""
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call)
            raise
        if self.failure is not None:
            raise self.failure
        if not self.streaming:
            return self.answer()
        stream = FakeStream()
        self.streams.append(stream)
        reply = stream_reply(stream)
        stream.reply = reply
        return reply

    async def aclose(self) -> None:
        """Nothing is held."""
        self.closed += 1


def complete_reply(
    body: bytes = b'{"answer":1}', *, status: int = 200, finish_reason: str = "stop", complete: bool = True
) -> Reply:
    """A whole answer of the upstream, with headers that belong to its call alone."""
    reply = Reply(status, [(b"content-type", b"application/json"), (b"x-request-id", b"req_secret")], body=body)
    reply.deployment, reply.model = "sim/m", "m"
    reply.complete, reply.finish_reason = complete, finish_reason
    reply.tokens, reply.usage_known = Tokens(input=10, output=5), True
    return reply


def stream_reply(stream: ChunkStream) -> Reply:
    """An answer that streams."""
    reply = Reply(200, [(b"content-type", b"text/event-stream")], stream=stream)
    reply.deployment, reply.model = "sim/m", "m"
    reply.tokens = NO_TOKENS
    return reply


async def read_all(reply: Reply) -> bytes:
    """The whole body of a reply, read as the pipeline does."""
    if reply.stream is None:
        return reply.body
    chunks = []
    try:
        while chunk := await reply.stream.read():
            chunks.append(chunk)
    finally:
        reply.stream.close()
    return b"".join(chunks)


async def settle_down() -> None:
    """Lets every task that can run do so."""
    for _ in range(12):
        await asyncio.sleep(0)

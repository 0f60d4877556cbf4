"""A proxy worker in this process on a real socket, and upstreams whose every byte on the wire is scripted."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import uvicorn

from controlplane.contract.keys import hash_key
from controlplane.contract.pricing import Price
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import CallRecord
from controlplane.contract.routing import Retries
from controlplane.contract.snapshot import (
    BreakerPolicy,
    CachePolicy,
    Deployment,
    KeyEntry,
    Lease,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from controlplane.contract.wire import decode_batch
from proxy.listening import listen, make_server
from proxy.settings import ProxySecrets, Secret
from proxy.worker import Worker

PEPPER = b"\x07" * 32
KEY = "sk-heph-test-key"
PRICE = Price(
    input=1_000_000_000, output=2_000_000_000, cache_read=500_000_000, version="p1"
)  # 1000 and 2000 nano-USD a token
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@dataclass
class Received:
    """One request as an upstream saw it."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, object]:
        """The body as JSON."""
        found: dict[str, object] = json.loads(self.body)
        return found


Script = Callable[["Wire", Received], Awaitable[None]]


@dataclass
class Wire:
    """What a script can do to one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client_left: asyncio.Event

    async def send(self, data: bytes) -> None:
        """Writes bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def hang(self) -> None:
        """Says nothing more until the client closes the connection."""
        await self.reader.read()
        self.client_left.set()

    def abort(self) -> None:
        """Closes the connection with no farewell."""
        self.writer.transport.abort()


class ScriptedUpstream:
    """A server that runs one script for each request, the last one over and over."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.received: list[Received] = []
        self.connections = 0
        self.client_left = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> ScriptedUpstream:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        wire = Wire(reader, writer, self.client_left)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Received(head[0], headers, body)
                self.received.append(request)
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                await script(wire, request)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.client_left.set()
        finally:
            writer.close()


async def until(condition: Callable[[], object]) -> None:
    """Lets everything else run until the condition holds; a minute, long also for a busy machine, is an error."""
    async with asyncio.timeout(60.0):
        while not condition():  # noqa: ASYNC110 - the condition is of the code under test, which has no event for it
            await asyncio.sleep(0)


def completion(text: str = "Hello", usage: dict[str, object] | None = None, **more: object) -> bytes:
    """The body of a chat completion."""
    document: dict[str, object] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": USAGE if usage is None else usage,
    }
    return json.dumps(document | more, separators=(",", ":")).encode()


def answer(body: bytes, status: int = 200, *headers: str) -> bytes:
    """A whole HTTP response with a JSON body."""
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def event(content: str | None = None, **choice: object) -> bytes:
    """One chunk of a stream, with `"usage":null` as OpenAI sends it when usage is asked for."""
    delta = {"role": "assistant", "content": ""} if content is None else {"content": content}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} | choice]
    document = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": None,
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def usage_event(usage: dict[str, object] | None = None) -> bytes:
    """The last chunk, which carries the usage and no choices."""
    document = {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage or USAGE}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole_stream(*texts: str) -> bytes:
    """A stream that ends as it should."""
    events = b"".join(
        (event(), *(event(text) for text in texts), event("", delta={}, finish_reason="stop"), usage_event())
    )
    return STREAM_HEAD + chunk(events + DONE) + STREAM_END


def replies(data: bytes) -> Script:
    """A script that sends these bytes."""

    async def script(wire: Wire, _: Received) -> None:
        await wire.send(data)

    return script


def sends_then_hangs(data: bytes) -> Script:
    """A script that sends these bytes and then nothing, with the connection open."""

    async def script(wire: Wire, _: Received) -> None:
        await wire.send(data)
        await wire.hang()

    return script


def sends_then_aborts(data: bytes) -> Script:
    """A script that sends these bytes and closes the connection."""

    async def script(wire: Wire, _: Received) -> None:
        await wire.send(data)
        wire.writer.close()

    return script


def fails(status: int, code: str = "server_error", *headers: str) -> Script:
    """A script that answers with an error body in OpenAI's shape."""
    body = json.dumps({"error": {"message": "upstream says no", "type": code, "param": None, "code": code}}).encode()
    return replies(answer(body, status, *headers))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def us(self) -> int:
        """The same in microseconds."""
        return int(self.now * 1_000_000)


@dataclass
class World:
    """One worker with its upstreams, and a client."""

    data_dir: Path
    settings: ProxySettings = field(default_factory=ProxySettings)
    worker: Worker = field(init=False)
    server: uvicorn.Server = field(init=False)
    client: httpx.AsyncClient = field(init=False)
    url: str = ""
    upstreams: list[ScriptedUpstream] = field(default_factory=list)
    _serving: asyncio.Task[None] | None = None
    _stop: Callable[[], None] | None = None

    async def start(self, **settings: object) -> World:
        """Serves on a free port, with no control plane in reach."""
        fixed = {
            "data_dir": str(self.data_dir), "port": 0, "control_plane_url": "http://127.0.0.1:9", "first_snapshot_wait_s": 0.0,
        }  # fmt: skip
        self.settings = msgspec.convert(fixed | settings, ProxySettings)
        secrets = ProxySecrets(key_pepper=Secret(PEPPER.hex()), internal_token=Secret("internal"))
        self.worker = Worker(self.settings, secrets, environ={"UP_KEY": "sk-upstream-secret"})
        sock = listen(self.settings)
        server = self.server = make_server(self.worker.app, self.settings, self.worker.metrics)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._serving = asyncio.create_task(server.serve(sockets=[sock]))
        self._stop = lambda: setattr(server, "should_exit", True)
        self.client = httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60.0)
        await until(lambda: server.started)
        return self

    async def upstream(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> ScriptedUpstream:
        """One more upstream, first in line if it is the first."""
        made = await ScriptedUpstream(*scripts).start(tls)
        self.upstreams.append(made)
        return made

    def apply(
        self,
        *,
        tenant: TenantPolicy | None = None,
        keys: tuple[KeyEntry, ...] = (),
        leases: tuple[Lease, ...] = (),
        breaker: BreakerPolicy | None = None,
        model: str = "upstream-model",
        route: dict[str, object] | None = None,
        upstream: dict[str, object] | None = None,
        price: Price | None = PRICE,
        urls: tuple[str, ...] = (),
        label_aliases: bool = True,
        deployment: dict[str, object] | None = None,
        others: dict[str, tuple[int, ...]] | None = None,
        retries: Retries | None = None,
    ) -> None:
        """Takes a snapshot with one alias, `gpt`, and its deployments `u0/m`, `u1/m`... in this order.

        others: more aliases, with the numbers of the upstreams that are theirs and not `gpt`'s.
        """
        found = urls or tuple(f"http://127.0.0.1:{item.port}/v1" for item in self.upstreams)
        knobs: dict[str, object] = {"credential": "env:UP_KEY", "connect_timeout_s": 30.0} | (upstream or {})
        ups = tuple(
            msgspec.convert({"id": f"u{n}", "dialect": "openai", "base_url": url} | knobs, Upstream)
            for n, url in enumerate(found)
        )
        said: dict[str, object] = {"model": model, "price": price} | (deployment or {})
        deployments = tuple(
            msgspec.convert({"id": f"u{n}/m", "upstream": f"u{n}", "order": n} | said, Deployment)
            for n in range(len(ups))
        )
        elsewhere = {n for numbers in (others or {}).values() for n in numbers}
        own = tuple(item for n, item in enumerate(deployments) if n not in elsewhere)
        policy = tenant or TenantPolicy(id="acme", cache=CachePolicy(enabled=False))
        current = self.worker.app.runtime
        self.worker.apply(
            Snapshot(
                version=1 if current is None else current.version + 1,
                created_us=time.time_ns() // 1000,
                tenants=(policy,),
                keys=keys or (KeyEntry(hash=hash_key(KEY.encode(), PEPPER), id="key_1", tenant=policy.id),),
                upstreams=ups,
                routes=(
                    msgspec.convert({"alias": "gpt", "deployments": own} | (route or {}), Route),
                    *(
                        Route(alias=alias, deployments=tuple(deployments[n] for n in numbers))
                        for alias, numbers in (others or {}).items()
                    ),
                ),
                leases=leases,
                breaker=breaker or BreakerPolicy(),
                label_aliases=label_aliases,
                retries=retries or Retries(),
            )
        )

    def dearer(self, snapshot: Snapshot, *, alias: str, factor: int) -> Snapshot:
        """The same a version later, with one alias's deployments so many times as dear."""
        routes = tuple(
            route
            if route.alias != alias
            else msgspec.structs.replace(
                route,
                deployments=tuple(
                    msgspec.structs.replace(
                        item, price=Price(input=PRICE.input * factor, output=PRICE.output * factor, version="p2")
                    )
                    for item in route.deployments
                ),
            )
            for route in snapshot.routes
        )
        return msgspec.structs.replace(snapshot, version=snapshot.version + 1, routes=routes)

    async def chat(self, *, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
        """One chat completion."""
        document = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]} | body
        return await self.client.post("/v1/chat/completions", json=document, headers=headers)

    def records(self) -> list[CallRecord]:
        """Every record in the spool, in order."""
        self.worker.spool.seal()
        return list(self._records())

    def _records(self) -> Iterator[CallRecord]:
        for segment in sorted((self.data_dir / "proxy" / "0").glob("*.seg")):
            yield from decode_batch(segment.read_bytes())

    async def until_idle(self) -> None:
        """Waits until no call is being served."""
        await until(lambda: not self.worker.app.inflight)

    def kept_records(self) -> list[CallRecord]:
        """Every record on disk, also after the worker has stopped."""
        return list(self._records())

    async def shut(self) -> None:
        """Stops the worker as SIGTERM does."""
        if self._stop is not None and self._serving is not None:
            self._stop()
            await self._serving

    async def stop(self) -> None:
        """Closes the client, the worker and the upstreams."""
        await self.client.aclose()
        await self.shut()
        for upstream in self.upstreams:
            await upstream.stop()

"""The same bare gateway on each server and each HTTP client: the measurement behind decision 0009.

It does what every gateway must: look a key up by its hash, read three fields of the body, forward it, read the usage of the answer,
append a record. Nothing else, so that what differs is the server and the client. `python -m benchmarks.prototype --server S --client C`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import httpx
import msgspec
import uvicorn
import uvloop

from controlplane.contract.proxy_settings import ProxySettings
from proxy.exchange import Exchange
from proxy.listening import listen, make_server
from proxy.metrics import ProxyMetrics
from proxy.transports.pool import Pool

SERVERS = ("own", "uvicorn", "granian-asgi", "granian-rsgi")
CLIENTS = ("none", "own", "aiohttp", "pyreqwest", "httpx")
_PEPPER = b"\x07" * 32
_JSON = b"content-type: application/json\r\n"
_CANNED = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3}}'


class _Fields(msgspec.Struct):
    model: str
    messages: msgspec.Raw
    stream: bool = False


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage


class Client(Protocol):
    """One way to call the upstream."""

    async def post(self, body: bytes) -> bytes:
        """The body of the answer."""
        ...


class _None:
    async def post(self, body: bytes) -> bytes:
        del body
        return _CANNED


class _Own:
    def __init__(self, port: int) -> None:
        self._pool = Pool(
            asyncio.get_running_loop(), host="127.0.0.1", port=port, tls=None, connections_max=1024, header_bytes_max=65536,
            high_water_bytes=262144, shown=lambda names: ((False,) * len(names), ()),
        )  # fmt: skip
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            f"host: 127.0.0.1:{port}",
            "content-type: application/json",
            "authorization: Bearer sk-bench",
        )
        self._head = "".join(f"{line}\r\n" for line in lines).encode()

    async def post(self, body: bytes) -> bytes:
        connection = self._pool.take_idle() or await self._pool.acquire(timeout_s=5.0)
        try:
            connection.start(self._head + b"content-length: %d\r\n\r\n" % len(body), body, body_bytes_max=1 << 26)
            connection.expire_at(time.monotonic() + 60.0)
            while not connection.complete:
                await connection.wait()
            return connection.whole_body
        finally:
            self._pool.release(connection)


class _Aiohttp:
    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"content-type": "application/json", "authorization": "Bearer sk-bench"},
        )

    async def post(self, body: bytes) -> bytes:
        async with self._session.post(self._url, data=body) as answer:
            return await answer.read()


class _Httpx:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"content-type": "application/json", "authorization": "Bearer sk-bench"},
        )

    async def post(self, body: bytes) -> bytes:
        return (await self._client.post(self._url, content=body)).content


class _Pyreqwest:
    def __init__(self, url: str) -> None:
        # of the benchmark's own environment, which not every run has
        from pyreqwest.client import ClientBuilder  # type: ignore[import-not-found]  # noqa: PLC0415

        self._url = url
        headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
        self._client = ClientBuilder().default_headers(headers).build()

    async def post(self, body: bytes) -> bytes:
        answer = await self._client.post(self._url).body_bytes(body).build().send()
        return bytes(await answer.bytes())


class Gateway:
    """What does not depend on server and client."""

    def __init__(self, client: str, upstream_port: int) -> None:
        self._name = client
        self._port = upstream_port
        self._client: Client | None = None
        self._keys = {hashlib.blake2b(b"sk-bench", key=_PEPPER, digest_size=16).hexdigest(): "bench"}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._fields = msgspec.json.Decoder(_Fields).decode
        self._answer = msgspec.json.Decoder(_Answer).decode
        self._encode = msgspec.msgpack.Encoder().encode

    async def serve(self, authorization: bytes, body: bytes) -> bytes:
        """One call."""
        started_ns = time.monotonic_ns()
        tenant = self._keys[hashlib.blake2b(authorization[7:], key=_PEPPER, digest_size=16).hexdigest()]
        fields = self._fields(body)
        if self._client is None:
            self._client = self._made()
        answer = await self._client.post(body)
        usage = self._answer(answer).usage
        record = (tenant, fields.model, usage.prompt_tokens, usage.completion_tokens, time.monotonic_ns() - started_ns)
        os.write(self._file.fileno(), self._encode(record))
        return answer

    def _made(self) -> Client:
        url = f"http://127.0.0.1:{self._port}/v1/chat/completions"
        makers: dict[str, Callable[[], Client]] = {
            "none": _None,
            "own": lambda: _Own(self._port),
            "aiohttp": lambda: _Aiohttp(url),
            "httpx": lambda: _Httpx(url),
            "pyreqwest": lambda: _Pyreqwest(url),
        }
        return makers[self._name]()


# ASGI's and RSGI's own types: scopes and messages whose values depend on their kind.
Message = dict[str, Any]


def asgi(gateway: Gateway) -> Callable[..., Awaitable[None]]:
    """The gateway as an ASGI application."""

    async def app(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            raise RuntimeError("http only")
        body = b""
        more_body = True
        while more_body:
            message = await receive()
            body += message.get("body", b"")
            more_body = message.get("more_body", False)
        answer = await gateway.serve(dict(scope["headers"])[b"authorization"], body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


class Rsgi:
    """The gateway as an RSGI application, granian's own interface."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # RSGI's own types
        body = await protocol()
        answer = await self._gateway.serve(scope.headers["authorization"].encode(), body)
        protocol.response_bytes(200, [("content-type", "application/json")], answer)


def _run_own(gateway: Gateway, port: int) -> None:
    class App:
        """What `proxy.server` hands its requests to."""

        def handle(self, exchange: Exchange) -> None:
            exchange.spawn(self._serve(exchange))

        async def _serve(self, exchange: Exchange) -> None:
            exchange.answer(200, _JSON, await gateway.serve(exchange.headers[b"authorization"], exchange.body or b""))

        async def __call__(
            self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
        ) -> None:
            del scope
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    settings = ProxySettings(port=port)
    server = make_server(App(), settings, ProxyMetrics("prototype"))  # type: ignore[arg-type]  # as much of an application as it needs
    uvloop.run(server.serve(sockets=[listen(settings)]))


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS, required=True)
    parser.add_argument("--client", choices=CLIENTS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    given = parser.parse_args()
    gateway = Gateway(given.client, given.upstream_port)
    if given.server == "own":
        _run_own(gateway, given.port)
    elif given.server == "uvicorn":
        uvicorn.run(
            asgi(gateway),
            host="127.0.0.1",
            port=given.port,
            loop="uvloop",
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
        )
    else:
        # of the benchmark's own environment, which not every run has
        from granian.constants import HTTPModes, Interfaces  # type: ignore[import-not-found]  # noqa: PLC0415
        from granian.server.embed import Server  # type: ignore[import-not-found]  # noqa: PLC0415

        plain = given.server == "granian-asgi"
        interface = Interfaces.ASGINL if plain else Interfaces.RSGI
        target = asgi(gateway) if plain else Rsgi(gateway)
        server = Server(
            target, address="127.0.0.1", port=given.port, interface=interface, http=HTTPModes.http1, backlog=1024
        )
        uvloop.run(server.serve())


if __name__ == "__main__":
    main()

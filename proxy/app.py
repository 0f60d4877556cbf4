"""The ASGI callable: hot paths to the pipeline, the rest to ops. It owns the body, the runtime and the watch on the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Protocol

from controlplane.contract.ids import new_id
from controlplane.contract.proxy_settings import ProxySettings
from proxy import refusals
from proxy.call import Call, Reply
from proxy.metrics import ProxyMetrics
from proxy.ops import Ops, models_reply
from proxy.pipeline import Pipeline
from proxy.refusals import refuse
from proxy.runtime import Runtime

# ASGI's own types: scopes and messages are dictionaries whose values depend on their `type`.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OPERATIONS = {
    "/v1/chat/completions": ("chat", "POST"),
    "/chat/completions": ("chat", "POST"),
    "/v1/embeddings": ("embeddings", "POST"),
    "/embeddings": ("embeddings", "POST"),
    "/v1/models": ("models", "GET"),
    "/models": ("models", "GET"),
}
_MODEL_PREFIXES = ("/v1/models/", "/models/")
_MODELS = ("models", "GET")
_STAGES_BEFORE_BODY = 1  # identify: so that the record of a body too large says whose it was
_STAGES_OF_MODELS = 2  # identify and admit


class ClientGone(Exception):
    """The client left before its request was whole."""


class Exchange(Protocol):
    """One request and its response in the server's hands; the server puts it into the scope."""

    body: bytearray
    more_body: bool
    on_gone: Callable[[], None] | None


class Flights(Protocol):
    """Who else waits for a call's answer: the coalescing transport."""

    def leave(self, call: Call) -> bool:
        """The call's client has gone; True when its serving task may be cancelled."""
        ...


class Lifespan(Protocol):
    """What has to run beside the calls."""

    async def start(self) -> None:
        """Starts it, before the first call."""
        ...

    async def stop(self) -> None:
        """Stops it, after the last call."""
        ...


class ProxyApp:
    """One worker's front door."""

    def __init__(
        self,
        settings: ProxySettings,
        pipeline: Pipeline,
        flights: Flights,
        metrics: ProxyMetrics,
        lifespan: Lifespan,
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._flights = flights
        self._metrics = metrics
        self._lifespan = lifespan
        self._ops = Ops(metrics, self._not_ready)
        self.runtime: Runtime | None = None  # swapped by one assignment; a call keeps the one it began with
        self.draining = False
        self.inflight = 0
        self.calls_total = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one request, or the server's lifespan."""
        if scope["type"] == "http":
            path = scope["path"]
            operation = _OPERATIONS.get(path)
            if operation is None and path.startswith(_MODEL_PREFIXES):
                operation = _MODELS
            if operation is None:
                await self._ops.answer(path, scope["method"], send)
            elif scope["method"] != operation[1]:
                message = f"{path} takes {operation[1]}, not {scope['method']}"
                await self._ops.refuse(refusals.METHOD_NOT_ALLOWED, message, send)
            elif self.runtime is None:
                message = (
                    "this worker has no configuration yet: the control plane has not been reached since its first start"
                )
                await self._ops.refuse(refusals.NOT_READY, message, send)
            else:
                self.inflight += 1
                try:
                    await self._call(self.runtime, operation[0], scope, receive, send)
                finally:
                    self.inflight -= 1
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        else:
            raise RuntimeError(f"no {scope['type']} here")

    async def _call(
        self, runtime: Runtime, operation: str, scope: Mapping[str, Any], receive: Receive, send: Send
    ) -> None:
        started_ns = time.monotonic_ns()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            body = await self._read_body(headers, scope["exchange"], receive)
        except ClientGone:
            self._metrics.bound_hit("request_incomplete")
            return
        self.calls_total += 1
        call = Call(
            runtime,
            operation,
            scope["path"],
            headers,
            b"" if body is None else body,
            call_id=new_id("call"),
            started_us=time.time_ns() // 1000,
            started_ns=started_ns,
        )
        reply = self._reply_at_once(call, too_large=body is None)
        if reply is not None:
            await self._pipeline.answer(call, reply, send)
            return
        exchange: Exchange = scope["exchange"]
        exchange.on_gone = partial(self._on_gone, call, asyncio.current_task())
        await self._pipeline.serve(call, send)

    def _on_gone(self, call: Call, task: asyncio.Task[None] | None) -> None:
        """The client has left: unless others wait for its answer, whatever is done for it is cancelled."""
        if task is not None and self._flights.leave(call):
            task.cancel()

    def _reply_at_once(self, call: Call, *, too_large: bool) -> Reply | None:
        """What can be said without waiting: a refusal, the list of models, an answer from memory."""
        pipeline = self._pipeline
        if too_large:
            limit = self._settings.body_bytes_max
            refused = pipeline.enter(call, stages=_STAGES_BEFORE_BODY)
            return refused or refuse(refusals.TOO_LARGE, f"the request's body is larger than {limit} bytes")
        if call.operation == "models":
            return pipeline.enter(call, stages=_STAGES_OF_MODELS) or models_reply(call, call.path)
        return pipeline.enter(call)

    async def _read_body(self, headers: Mapping[bytes, bytes], exchange: Exchange, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large. How long it may take is the server's business (`proxy.server`).

        Raises ClientGone if the client leaves before its end.
        """
        limit = self._settings.body_bytes_max
        declared = headers.get(b"content-length", b"")
        if len(declared) > 18 or (declared.isdigit() and int(declared) > limit):
            self._metrics.bound_hit("body_bytes_max")
            return None
        if not exchange.more_body:  # it has come with the head, as small bodies do
            return bytes(exchange.body) if len(exchange.body) <= limit else None
        parts: list[bytes] = []
        size = 0
        more_body = True
        while more_body:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            parts.append(message.get("body", b""))
            more_body = message.get("more_body", False)
            size += len(parts[-1])
            if size > limit:
                self._metrics.bound_hit("body_bytes_max")
                return None
        return b"".join(parts)

    def _not_ready(self) -> str:
        if self.runtime is None:
            return "no snapshot yet"
        return "draining" if self.draining else ""

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._lifespan.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.draining = True
        await self._lifespan.stop()
        await send({"type": "lifespan.shutdown.complete"})

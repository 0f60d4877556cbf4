"""The front door: hot paths to the pipeline, the rest to ops. It owns the runtime and the watch on the client."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sized
from functools import partial
from typing import Any, Protocol

from controlplane.contract.ids import ALPHABET, PAIRS, ulid
from controlplane.contract.proxy_settings import ProxySettings
from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.operations import OPERATIONS, PASSTHROUGH_PREFIX, Operation, exact_paths, methods_of, resolve
from proxy.exchange import Exchange
from proxy.metrics import ProxyMetrics
from proxy.ops import Ops
from proxy.pipeline import Pipeline
from proxy.refusals import refuse
from proxy.runtime import Runtime

# ASGI's own types, for the lifespan: messages are dictionaries whose values depend on their `type`.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATHS: Mapping[str, Operation] = exact_paths()
_STAGES_BEFORE_BODY = 1  # identify: so that the record of a body too large says whose it was
_ENTROPY_CHARS = 16  # of one id, five bits each
_ENTROPY_DRAWS = 256
_NO_ENTROPY = bytes(10)
_DIGITS = bytes(ALPHABET[byte % 32] for byte in range(256))  # what a random byte is as a digit of base 32


class Flights(Protocol):
    """Who else waits for a call's answer: the coalescing transport."""

    def leave(self, call: Call, task: asyncio.Task[None]) -> bool:
        """The call's client has gone; True when the task that serves it may be cancelled."""
        ...


class Doorman(Protocol):
    """Who may come in with a large body: the stage that identifies."""

    def knows(self, runtime: Runtime, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the key in these headers is one of ours."""
        ...


class Lifespan(Protocol):
    """What has to run beside the calls."""

    async def start(self) -> None:
        """Starts it, before the first call."""
        ...

    async def stop(self) -> None:
        """Stops it, after the last call."""
        ...


class CallIds:
    """Ids of calls, as `controlplane.contract.ids.new_id` makes them; the time is written once a second, the randomness of many drawn at once."""

    __slots__ = ("_at", "_drawn", "_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1  # of 1024 milliseconds, which are the last two digits of the time
        self._prefix = ""
        self._drawn = ""
        self._at = 0

    def new(self, now_us: int) -> str:
        """A fresh id, unique across processes. now_us: the wall clock, Unix microseconds."""
        now_ms = now_us // 1000
        if now_ms >> 10 != self._second:
            self._second = now_ms >> 10
            self._prefix = "call_" + ulid(now_ms=now_ms, entropy=_NO_ENTROPY)[: -_ENTROPY_CHARS - 2]
        at = self._at
        if at >= len(self._drawn):
            self._drawn = os.urandom(_ENTROPY_CHARS * _ENTROPY_DRAWS).translate(_DIGITS).decode()
            at = 0
        self._at = end = at + _ENTROPY_CHARS
        return self._prefix + PAIRS[now_ms & 1023] + self._drawn[at:end]


class ProxyApp:
    """One worker's front door."""

    def __init__(
        self,
        settings: ProxySettings,
        pipeline: Pipeline,
        passthrough: Pipeline,
        unrouted: Pipeline,
        flights: Flights,
        metrics: ProxyMetrics,
        lifespan: Lifespan,
        doorman: Doorman,
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._passthrough = passthrough  # of calls that no operation covers
        self._unrouted = unrouted  # of calls that go to no model: lists of models, and what upstreams keep
        self._flights = flights
        self._lifespan = lifespan
        self._doorman = doorman
        self.degraded: Callable[[], str] = lambda: ""  # what this worker does without now, for `/readyz`
        self.sick: Collection[str] = ()  # deployments whose breaker is not closed, for `/readyz`
        self._ops = Ops(metrics, self._not_ready, self._lacks, lambda: self.sick)
        self._call_ids = CallIds()
        self.runtime: Runtime | None = None  # swapped by one assignment; a call keeps the one it began with
        self.on_started: Callable[[], None] = lambda: None  # called when calls can be served
        self.draining = False
        self.serving: Sized = ()  # the server's tasks that serve calls
        self.calls_total = 0

    @property
    def inflight(self) -> int:
        """Calls that are being served now."""
        return len(self.serving)

    def takes_body(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a body that is not small is worth keeping until it is whole: only that of somebody we know."""
        return self.runtime is not None and self._doorman.knows(self.runtime, headers)

    def handle(self, exchange: Exchange) -> None:
        """Answers one request, at once or in a task of its own."""
        path, method, runtime = exchange.path, exchange.method, self.runtime
        operation = PATHS.get(path)
        if operation is None or method != operation.method:
            operation = resolve(path, method)
        elif runtime is not None:  # nearly all
            self._call(runtime, operation, exchange)
            return
        if operation is None and exchange.target.startswith(PASSTHROUGH_PREFIX):
            operation, method = OPERATIONS["passthrough"], b""
        if operation is None:
            self._ops.answer(path, method.decode(), exchange)
        elif method != operation.method:
            allowed = methods_of(path)
            message = f"{path[:128]} takes {' or '.join(allowed)}, not {method.decode()}"
            self._ops.refuse(refusals.METHOD_NOT_ALLOWED, message, exchange, operation=operation.name, allow=allowed)
        elif runtime is None:
            message = (
                "this worker has no configuration yet: the control plane has not been reached since its first start"
            )
            self._ops.refuse(refusals.NOT_READY, message, exchange, operation=operation.name)
        else:
            self._call(runtime, operation, exchange)

    def _call(self, runtime: Runtime, operation: Operation, exchange: Exchange) -> None:
        self.calls_total += 1
        body = exchange.body
        now_us = time.time_ns() // 1000
        call = Call(
            runtime,
            operation.name,
            exchange.path,
            exchange.headers,
            b"" if body is None else body,
            call_id=self._call_ids.new(now_us),
            started_us=now_us,
            started_ns=time.monotonic_ns(),
        )
        call.peer = exchange.peer
        if b"?" in exchange.target:
            call.query = exchange.target.partition(b"?")[2]
        pipeline = self._pipeline
        if not operation.method:
            pipeline = self._passthrough
            call.request_line = (exchange.method, exchange.target)
        elif operation.local or operation.named:
            pipeline = self._unrouted
        reply = self._too_large(call, pipeline) if body is None else pipeline.enter(call)
        if reply is not None and reply.stream is None and call.shortage is None:
            pipeline.answer(call, reply, exchange)
            return
        task = exchange.spawn(pipeline.serve(call, reply, exchange))
        exchange.on_gone = partial(self._on_gone, call, task)

    def _on_gone(self, call: Call, task: asyncio.Task[None]) -> None:
        """The client has left: unless others wait for its answer, whatever is done for it is cancelled."""
        if self._flights.leave(call, task):
            task.cancel()

    def _too_large(self, call: Call, pipeline: Pipeline) -> Reply:
        """The refusal of a body that was thrown away, or of who sent it."""
        refused = pipeline.enter(call, stages=_STAGES_BEFORE_BODY)
        limit = self._settings.body_bytes_max
        return refused or refuse(refusals.TOO_LARGE, f"the request's body is larger than {limit} bytes")

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """The server's lifespan, in ASGI's words; requests come to `handle`."""
        if scope["type"] != "lifespan":
            raise RuntimeError(f"no {scope['type']} here")
        await receive()
        try:
            await self._lifespan.start()
            self.on_started()
        except Exception:
            await self._lifespan.stop()  # what it opened would keep the process from ending
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.draining = True
        await self._lifespan.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _lacks(self) -> str:
        return self.degraded()

    def _not_ready(self) -> str:
        if self.runtime is None:
            return "no snapshot yet"
        return "draining" if self.draining else ""

"""The long tail of providers, spoken by litellm: Bedrock, Vertex and Gemini, Azure, Cohere, Ollama and many more.

The library costs seconds and more than 100 MiB to import, so it is imported only in a worker whose snapshot has such an upstream, and in a
thread. It only speaks: retries, fallbacks, caching, callbacks and logging are ours, and are switched off there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

import structlog

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from proxy import meter
from proxy.call import Reply
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.hosted_tools import used_in
from proxy.dialects.operations import dialect_of
from proxy.dialects.service_class import service_class_of
from proxy.metrics import ProxyMetrics
from proxy.refusals import MALFORMED, refuse
from proxy.runtime import Foreign
from proxy.transports.attempt import Attempt, AttemptFailed, bounded
from proxy.transports.litellm_errors import as_failed
from proxy.transports.litellm_request import chat_arguments, embedding_arguments, floats_as_asked
from proxy.transports.litellm_stream import ForeignStream
from proxy.wires import Wire

_JSON = (b"content-type", b"application/json")
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
_CLOSE_S = 1.0

log = structlog.get_logger("proxy.litellm")


class Answer(Protocol):
    """What litellm answers with: a pydantic model."""

    def model_dump_json(self, *, exclude_none: bool, warnings: bool) -> str:
        """The document."""
        ...


class Library(Protocol):
    """As much of litellm as we use."""

    async def acompletion(self, **arguments: object) -> Answer | AsyncIterator[Answer]:
        """A chat completion, whole or streamed."""
        ...

    async def aembedding(self, **arguments: object) -> Answer:
        """Embeddings."""
        ...

    async def close_litellm_async_clients(self) -> None:
        """Closes its connections."""
        ...


def import_litellm() -> Library:
    """The library, imported so that it fetches nothing, reads no `.env` file, and says nothing. Takes seconds; call it in a thread."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads its price table when it is imported
    os.environ["LITELLM_MODE"] = "PRODUCTION"  # else it reads `.env` files
    import litellm  # noqa: PLC0415 - see above

    litellm.suppress_debug_info = True
    litellm.set_verbose = False
    litellm.turn_off_message_logging = True
    litellm.cache = None
    litellm.num_retries = None
    for callbacks in (
        "callbacks",
        "success_callback",
        "failure_callback",
        "_async_success_callback",
        "_async_failure_callback",
    ):
        setattr(litellm, callbacks, [])
    for name in _LOGGERS:  # they repeat prompts and addresses
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
    return cast("Library", litellm)


class LitellmTransport:
    """Makes tries through litellm. Costs nothing until an upstream asks for it."""

    def __init__(
        self, settings: ProxySettings, metrics: ProxyMetrics, *, load: Callable[[], Library] = import_litellm
    ) -> None:
        """load: brings the library; called once, in a thread of its own."""
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._library: concurrent.futures.Future[Library] | None = None
        self._inflight: Counter[str] = Counter()  # tries by upstream
        self._closing: set[asyncio.Task[None]] = (
            set()
        )  # streams given up, bounded by the connections of their upstreams

    def prepare(self) -> None:
        """Begins to import the library in a thread, so that it is there when the first call comes; only the first time counts."""
        if self._library is not None:
            return
        loading: concurrent.futures.Future[Library] = concurrent.futures.Future()
        self._library = loading

        def work() -> None:
            try:
                loading.set_result(self._load())
            except BaseException as error:  # each try that wants it is told
                log.exception("litellm cannot be imported; its deployments refuse calls")
                loading.set_exception(error)

        threading.Thread(target=work, name="import-litellm", daemon=True).start()

    async def send(self, attempt: Attempt) -> Reply:
        """A complete reply, or a stream whose first content has come. Raises AttemptFailed."""
        upstream, endpoint = attempt.candidate.upstream, attempt.candidate.endpoint
        foreign = None if endpoint is None else endpoint.foreign
        wire = None if endpoint is None else endpoint.wires.get(attempt.call.operation)
        view = attempt.call.view
        if endpoint is None or foreign is None or endpoint.missing or wire is None or view is None:
            reason = "it does not serve this operation" if endpoint is None else endpoint.missing
            detail = f"upstream {upstream.id} has no credential: {reason}"
            raise AttemptFailed(AttemptError.AUTH, f"upstream {upstream.id} is not configured", detail=detail)
        if self._inflight[upstream.id] >= upstream.connections_max:
            self._metrics.bound_hit("upstream_connections_max")
            raise AttemptFailed(
                AttemptError.CONNECT, f"every connection to upstream {upstream.id} is busy", unsent=True
            )
        arguments = self._arguments(attempt, wire, view, foreign)
        expires = min(attempt.call.deadline, time.monotonic() + attempt.first_byte_timeout_s)
        began_ns = time.monotonic_ns()
        self._inflight[upstream.id] += 1
        try:
            library = await self._loaded(upstream.id, expires)
            arguments["timeout"] = max(expires - time.monotonic(), 0.001)
            return await self._answer(library, attempt, wire, view, arguments, foreign, expires)
        finally:
            attempt.call.waited_ns += time.monotonic_ns() - began_ns
            if attempt.reply is None or attempt.reply.stream is None:  # else it gives the place back, opened or not
                self._leave(upstream.id)

    async def aclose(self) -> None:
        """Gives up streams and connections; safe to call twice."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        loading = self._library
        if loading is not None and loading.done() and loading.exception() is None:
            with contextlib.suppress(Exception):  # of a library that is being left anyway
                async with asyncio.timeout(_CLOSE_S):
                    await loading.result().close_litellm_async_clients()

    async def _loaded(self, upstream: str, expires: float) -> Library:
        """The library, as soon as it is there. Raises AttemptFailed."""
        self.prepare()
        loading = self._library
        if loading is None:
            raise RuntimeError("nothing is being imported")
        if not loading.done():
            waiting = asyncio.wrap_future(loading)
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # its error is read below
            await asyncio.wait([waiting], timeout=max(expires - time.monotonic(), 0.0))
        if not loading.done():
            message = f"upstream {upstream} is still being prepared; try again"
            raise AttemptFailed(AttemptError.CONNECT, message, unsent=True)
        error = loading.exception()
        if error is not None:
            detail = f"litellm cannot be imported: {error}"
            raise AttemptFailed(AttemptError.CONNECT, f"upstream {upstream} is not available", detail=detail)
        return loading.result()

    def _arguments(self, attempt: Attempt, wire: Wire, view: RequestView, foreign: Foreign) -> dict[str, object]:
        """What litellm is called with. Raises AttemptFailed for a request that cannot be said there."""
        call, model = attempt.call, attempt.candidate.deployment.model
        body, ceiling = call.body, call.output_ceiling
        try:
            if wire.translation is not None:
                view, ceiling = bounded(view, ceiling, attempt.candidate.deployment)
                body = wire.translation.request(body, view=view, model=model, output_ceiling=ceiling)
            chat = wire.dialect.name == "chat"
            said = chat_arguments(body, output_ceiling=ceiling) if chat else embedding_arguments(body)
        except Malformed as error:
            reply = refuse(MALFORMED, str(error), param=error.param)
            raise AttemptFailed(AttemptError.REJECTED, str(error), reply=reply) from error
        if chat:
            said["_skip_mcp_handler"] = (
                True  # else every call with tools asks for a package that we do not have, nor want
            )
        if view.stream and chat:
            said |= {"stream": True, "stream_options": {"include_usage": True}}
        ours = {
            "model": model,
            "api_key": foreign.api_key or None,
            "api_base": foreign.api_base or None,
            "num_retries": 0,
            "max_retries": 0,
        }
        return {**said, **foreign.options, **ours}

    async def _answer(
        self,
        library: Library,
        attempt: Attempt,
        wire: Wire,
        view: RequestView,
        arguments: dict[str, object],
        foreign: Foreign,
        expires: float,
    ) -> Reply:
        """One exchange. Raises AttemptFailed."""
        ask = library.acompletion if wire.dialect.name == "chat" else library.aembedding
        try:
            async with asyncio.timeout_at(_loop_time(expires)):
                answer = await ask(**arguments)
        except Exception as error:
            raise as_failed(error, attempt, wire, foreign) from error
        reply = Reply(200, [_JSON])
        reply.deployment, reply.model = attempt.candidate.deployment.id, attempt.candidate.deployment.model
        attempt.status = 200
        if "stream" in arguments:
            chunks = cast("AsyncIterator[Answer]", answer)
            reply.headers = [(b"content-type", b"text/event-stream")]
            attempt.reply = reply
            stream = self._stream(attempt, wire, view, foreign, chunks)
            reply.stream = stream
            await stream.open(expires)
            return reply
        self._complete(reply, attempt, wire, cast("Answer", answer))
        return reply

    def _stream(
        self, attempt: Attempt, wire: Wire, view: RequestView, foreign: Foreign, chunks: AsyncIterator[Answer]
    ) -> ForeignStream:
        reader = wire.dialect if wire.translation is None else wire.translation
        upstream = attempt.candidate.upstream
        bound = self._settings.stream_event_bytes_max
        return ForeignStream(
            attempt,
            (_document(chunk) async for chunk in chunks),
            reader.scanner(view=view, event_bytes_max=bound),
            as_failed=lambda error: as_failed(error, attempt, wire, foreign),
            timeout_s_max=self._settings.timeout_s_max,
            beginning_bytes_max=bound,
            given_up=lambda: self._give_up(upstream.id, chunks),
        )

    def _complete(self, reply: Reply, attempt: Attempt, wire: Wire, answer: Answer) -> None:
        """Fills in a reply that is all there. Raises AttemptFailed if it makes no sense."""
        call = attempt.call
        body = _document(answer)
        if len(body) > self._settings.reply_bytes_max:
            self._metrics.bound_hit("reply_bytes_max")
            raise AttemptFailed(AttemptError.MALFORMED, "the upstream's reply is too large")
        try:
            attempt.tokens, reply.finish_reason = wire.dialect.read_reply(body)
            attempt.service_class, attempt.used = service_class_of(body), used_in(body)
            if wire.translation is not None:
                body = wire.translation.reply(body, alias="" if call.view is None else call.view.model)
                _, reply.finish_reason = dialect_of(call.operation).read_reply(body)
            elif wire.dialect.name == "embeddings":
                body = floats_as_asked(body, call.body)
        except Malformed as error:
            raise AttemptFailed(AttemptError.MALFORMED, str(error)) from error
        reply.body = body
        if attempt.tokens is None:
            attempt.events = len(body) // meter.BYTES_PER_TOKEN
        reply.complete = True
        attempt.reply = reply
        attempt.finish(AttemptError.NONE)

    def _give_up(self, upstream: str, chunks: AsyncIterator[Answer]) -> None:
        """A stream is over: its place is free, and its connection is closed as soon as that can be awaited."""
        self._leave(upstream)
        task = asyncio.get_running_loop().create_task(_closed(chunks), name="litellm-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _leave(self, upstream: str) -> None:
        self._inflight[upstream] -= 1
        if not self._inflight[upstream]:
            del self._inflight[upstream]


def _document(answer: Answer) -> bytes:
    """The answer as JSON, in OpenAI's words."""
    return answer.model_dump_json(exclude_none=True, warnings=False).encode()


async def _closed(chunks: AsyncIterator[Answer]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):  # nobody reads it any more
            async with asyncio.timeout(_CLOSE_S):
                await close()


def _loop_time(expires: float) -> float:
    """A monotonic time as the event loop counts it."""
    return asyncio.get_running_loop().time() + max(expires - time.monotonic(), 0.0)

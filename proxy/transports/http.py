"""One try over HTTP/1.1: the request as the upstream wants it, its answer whole or as a stream that has begun."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import compress

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import Upstream
from proxy import meter
from proxy.call import Call, Headers, Reply
from proxy.dialects.dialect import Malformed, RequestView, Scanner
from proxy.dialects.hosted_tools import used_in
from proxy.dialects.openai import is_ambiguous
from proxy.dialects.openai_media import drawn_in, heard_us
from proxy.dialects.openai_media_stream import SoundScanner
from proxy.dialects.operations import OPERATIONS, dialect_of
from proxy.dialects.reported_cost import reported_nanousd
from proxy.dialects.service_class import service_class_of
from proxy.metrics import ProxyMetrics
from proxy.refusals import MALFORMED, refuse
from proxy.runtime import Candidate, Endpoint
from proxy.transports.attempt import Attempt, AttemptFailed, bounded, error_of, failed_by
from proxy.transports.connection import Connection, ConnectionFailed, Failure
from proxy.transports.encodings import decoded
from proxy.transports.pool import Pool, PoolExhausted
from proxy.transports.reported_cost import CostReader
from proxy.transports.retry_after import asked_s, with_whole_seconds
from proxy.transports.upstream_stream import UpstreamStream
from proxy.view import label
from proxy.wires import Wire

# An upstream's headers that the client may see.
_RETURNED = frozenset(
    (
        b"content-type",
        b"content-encoding",
        b"x-request-id",
        b"request-id",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
    )
)
_RETURNED_PREFIXES = (b"openai-", b"x-ratelimit-", b"anthropic-")
_JSON = b"application/json"
_STALE_S = 1.0  # a kept connection that turns out to be closed says so at once; later the upstream may have worked on the request
_TELLING = frozenset(
    ("messages", "passthrough", "responses")
)  # languages in which an upstream says what its own tools did


class HttpTransport:
    """Makes tries over pooled connections, one pool for each host and port; pools outlive snapshots."""

    def __init__(self, settings: ProxySettings, metrics: ProxyMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pools: dict[tuple[str, int, bool], Pool] = {}
        self._tls: ssl.SSLContext | None = None
        self.stale_s = _STALE_S

    async def send(self, attempt: Attempt) -> Reply:
        """A complete reply, or a stream whose first content has come. Raises AttemptFailed."""
        candidate = attempt.candidate
        endpoint = candidate.endpoint
        if endpoint is None or endpoint.missing:
            reason = "no endpoint" if endpoint is None else endpoint.missing
            name = candidate.upstream.id
            detail = f"upstream {name} has no credential: {reason}"
            raise AttemptFailed(AttemptError.AUTH, f"upstream {name} is not configured", detail=detail)
        wire = endpoint.wires[attempt.call.operation]
        head, body = _request_of(attempt.call, candidate, wire)
        pool = self._pool(endpoint, candidate.upstream)
        began_ns = sent_ns = time.monotonic_ns()
        connection, fresh = pool.take_idle(), False
        try:
            while True:
                if connection is None:
                    connection = await self._connect(attempt, pool, fresh=fresh)
                    sent_ns = time.monotonic_ns()
                kept = connection.uses and not fresh
                try:
                    return await self._answer(attempt, wire, pool, connection, head, body)
                except ConnectionFailed as failure:  # once more over a fresh one if a kept one turned out to be closed
                    late = time.monotonic_ns() - sent_ns > self.stale_s * 1e9
                    if not kept or failure.failure is not Failure.CLOSED or failure.answered or late:
                        raise _as_failed(failure, attempt) from failure
                connection, fresh = None, True
        finally:
            attempt.call.waited_ns += time.monotonic_ns() - began_ns

    def pools(self) -> tuple[Pool, ...]:
        """The pools, for their figures."""
        return tuple(self._pools.values())

    async def aclose(self) -> None:
        """Closes every connection; safe to call twice."""
        for pool in self._pools.values():
            pool.abort()

    async def _connect(self, attempt: Attempt, pool: Pool, *, fresh: bool) -> Connection:
        upstream = attempt.candidate.upstream
        left_s = attempt.call.deadline - time.monotonic()
        allowed_s = min(upstream.connect_timeout_s, attempt.first_byte_timeout_s)
        try:
            return await pool.acquire(timeout_s=min(allowed_s, left_s), fresh=fresh)
        except PoolExhausted as error:
            self._metrics.bound_hit("upstream_connections_max")
            message = f"every connection to upstream {upstream.id} is busy"
            raise AttemptFailed(AttemptError.CONNECT, message, detail=str(error), unsent=True) from error
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            expired = isinstance(error, TimeoutError) and left_s < allowed_s
            kind = AttemptError.DEADLINE if expired else AttemptError.CONNECT
            reason = "timed out" if isinstance(error, TimeoutError) else str(error)
            detail = f"cannot connect to upstream {upstream.id}: {reason}"
            raise AttemptFailed(kind, f"upstream {upstream.id} cannot be reached", detail=detail) from error

    async def _answer(
        self, attempt: Attempt, wire: Wire, pool: Pool, connection: Connection, head: bytes, body: bytes
    ) -> Reply:
        """One exchange; the connection goes back to its pool, to the stream, or is closed. Raises ConnectionFailed."""
        call, upstream = attempt.call, attempt.candidate.upstream
        streaming = False
        try:
            if connection.closed:
                raise ConnectionFailed(Failure.CLOSED, "the upstream closed the connection", answered=False)
            connection.start(head, body, body_bytes_max=self._settings.reply_bytes_max)
            connection.expire_at(min(call.deadline, time.monotonic() + attempt.first_byte_timeout_s))
            while not connection.head_done:
                await connection.wait()
            attempt.status = connection.status
            headers = connection.headers
            of_type, of_encoding = _content_places(connection.names)
            content_type = headers[of_type][1] if of_type >= 0 else b""
            encoding = headers[of_encoding][1] if of_encoding >= 0 else b""
            view = call.view
            if connection.status == 200 and view is not None and content_type[:17].lower() == b"text/event-stream":
                if encoding:
                    _check_plain(attempt, encoding)
                streaming = True
                reply = await self._open_stream(attempt, wire, view, pool, connection, headers)
            elif (
                wire.raw and connection.status == 200 and view is not None and (view.free or not _is_json(content_type))
            ):
                if encoding:
                    _check_plain(attempt, encoding)
                streaming = True
                reply = await self._open_stream(attempt, wire, view, pool, connection, headers, raw=True)
            else:
                while not connection.complete:  # some send blank lines for minutes, to say that they live
                    connection.expire_at(min(call.deadline, time.monotonic() + upstream.idle_timeout_s))
                    await connection.wait()
                body = connection.whole_body
                if encoding:
                    headers, body = self._plain(attempt, headers, encoding, body)
                reply = self._complete(attempt, wire, headers, body)
            return reply
        finally:
            if not streaming:
                pool.release(connection)

    async def _open_stream(
        self,
        attempt: Attempt,
        wire: Wire,
        view: RequestView,
        pool: Pool,
        connection: Connection,
        headers: Headers,
        *,
        raw: bool = False,
    ) -> Reply:
        reader = wire.dialect if wire.translation is None else wire.translation
        event_bytes_max = self._settings.stream_event_bytes_max
        scanner: Scanner = (
            SoundScanner(free=view.free) if raw else reader.scanner(view=view, event_bytes_max=event_bytes_max)
        )
        download = raw and view.free  # a file, whose size nobody knows before
        if wire.reports_cost:
            scanner = CostReader(scanner, attempt)
            attempt.reported_ratio_max = self._settings.reported_cost_ratio_max
        connection.stream_body()
        stream = UpstreamStream(
            attempt,
            pool,
            connection,
            scanner,
            self._metrics,
            timeout_s_max=self._settings.download_s_max if download else self._settings.timeout_s_max,
            bound="download_s_max" if download else "timeout_s_max",
            beginning_bytes_max=self._settings.stream_event_bytes_max,
            hold_s_max=self._settings.stream_hold_s_max,
        )
        reply = Reply(200, headers, stream=stream)
        reply.raw = raw
        reply.deployment = attempt.candidate.deployment.id
        reply.model = attempt.candidate.deployment.model
        attempt.reply = reply
        await stream.open()
        return reply

    def _plain(self, attempt: Attempt, headers: Headers, encoding: bytes, body: bytes) -> tuple[Headers, bytes]:
        """Headers and body without an encoding that nobody asked for; an error that cannot be read goes on as it came."""
        plain = decoded(body, encoding, bytes_max=self._settings.reply_bytes_max)
        if plain is not None:
            return [header for header in headers if header[0] != b"content-encoding"], plain
        if 200 <= attempt.status < 300:
            raise _encoded(attempt, encoding)
        return headers, body

    def _complete(self, attempt: Attempt, wire: Wire, headers: Headers, body: bytes) -> Reply:
        """A reply that is all there. Raises AttemptFailed if it is an error or makes no sense."""
        status = attempt.status
        reply = Reply(status, headers, body=body)
        reply.deployment = attempt.candidate.deployment.id
        reply.model = attempt.candidate.deployment.model
        translation = wire.translation
        if not 200 <= status < 300:
            code, said = wire.dialect.read_error(body)
            error = error_of(status, code)
            message = f"upstream {attempt.candidate.upstream.id} answered with status {status}"
            if translation is not None:
                reply.status, reply.body = translation.error(status, body)
            reply.headers = with_whole_seconds(headers)
            raise failed_by(error, message, said=said, reply=reply, retry_after_s=asked_s(headers))
        try:
            attempt.tokens, reply.finish_reason = wire.dialect.read_reply(body)
            price = attempt.candidate.deployment.price
            if price is not None and price.service:
                attempt.service_class = service_class_of(body)
            if wire.dialect.name in _TELLING:
                attempt.used = used_in(body)
            if translation is not None:
                reply.body = translation.reply(body, alias=attempt.call.view.model if attempt.call.view else "")
                _, reply.finish_reason = dialect_of(attempt.call.operation).read_reply(reply.body)
        except Malformed as error:
            raise AttemptFailed(AttemptError.MALFORMED, str(error)) from error
        if wire.reports_cost:
            attempt.reported_nanousd = reported_nanousd(body)
            attempt.reported_ratio_max = self._settings.reported_cost_ratio_max
        if attempt.tokens is None:
            attempt.events = len(body) // meter.BYTES_PER_TOKEN  # of a stream these would be tokens
            unit = OPERATIONS[attempt.call.operation].unit
            attempt.heard_us = heard_us(body) if unit == "second" else None
            attempt.drawn = drawn_in(body) if unit == "picture" else None
        reply.complete = True
        attempt.reply = reply
        attempt.finish(AttemptError.NONE)
        return reply

    def _pool(self, endpoint: Endpoint, upstream: Upstream) -> Pool:
        key = (endpoint.host, endpoint.port, endpoint.tls)
        pool = self._pools.get(key)
        if pool is None:
            if endpoint.tls and self._tls is None:
                self._tls = ssl.create_default_context()
            pool = self._pools[key] = Pool(
                asyncio.get_running_loop(),
                host=endpoint.host,
                port=endpoint.port,
                tls=self._tls if endpoint.tls else None,
                connections_max=upstream.connections_max,
                header_bytes_max=self._settings.header_bytes_max,
                high_water_bytes=self._settings.stream_buffer_bytes,
                shown=_shown,
            )
        pool.connections_max = upstream.connections_max  # a newer snapshot may say otherwise
        return pool


def _request_of(call: Call, candidate: Candidate, wire: Wire) -> tuple[bytes, bytes]:
    """Head and body of the upstream's request; the body is the client's own unless it must say something else.

    Raises AttemptFailed for a request that this upstream's language cannot express.
    """
    view, body, model = call.view, call.body, candidate.deployment.model
    if view is not None:
        ceiling = call.output_ceiling
        if wire.translation is not None:
            try:
                ceiling = candidate.deployment.max_output_tokens if ceiling is None else ceiling
                view, ceiling = bounded(view, ceiling, candidate.deployment)
                body = wire.translation.request(body, view=view, model=model, output_ceiling=ceiling)
            except Malformed as error:
                reply = refuse(MALFORMED, str(error), param=error.param)
                raise AttemptFailed(AttemptError.REJECTED, str(error), reply=reply) from error
        elif (
            view.model != model
            or (view.stream and not view.include_usage)
            or ceiling is not None
            or (is_ambiguous(body, ceiling=True, n=True) if view.ambiguous is None else view.ambiguous)
        ):
            body = wire.dialect.rewritten(body, view=view, model=model, output_ceiling=ceiling)
    extra = b""
    headers = call.headers
    if wire.prefix or wire.default is not None or not wire.forwarded.isdisjoint(headers):
        extra = _extra_lines(wire, headers)
    head = _with_query(wire, call.query) if call.query and wire.queried else wire.head
    if call.target:
        head = b"%b%b HTTP/1.1\r\n%b" % (wire.base, call.target, wire.lines)
    return b"%b%bcontent-length: %d\r\n\r\n" % (head, extra, len(body)), body


def _is_json(content_type: bytes) -> bool:
    """Whether an answer is one JSON document, and not lines of them."""
    return content_type.partition(b";")[0].strip().lower() == _JSON


def _extra_lines(wire: Wire, headers: Mapping[bytes, bytes]) -> bytes:
    """The client's own headers that this upstream may see, and what it must see whoever asks."""
    forwarded, prefix = wire.forwarded, wire.prefix
    lines = [
        b"%b: %b\r\n" % item
        for item in headers.items()
        if item[0] in forwarded or (prefix and item[0].startswith(prefix))
    ]
    if wire.default is not None and (not prefix or wire.default[0] not in headers):
        lines.append(b"%b: %b\r\n" % wire.default)
    return b"".join(lines)


def _with_query(wire: Wire, query: bytes) -> bytes:
    """The head for a request whose path has a query: the upstream gets it as it came."""
    line, _, version = wire.head[: len(wire.head) - len(wire.lines)].rpartition(b" ")
    return b"%b?%b %b%b" % (line, query, version, wire.lines)


@lru_cache(maxsize=256)
def _content_places(names: tuple[bytes, ...]) -> tuple[int, int]:
    """Which headers of an answer say the type and the encoding of its body; -1: none does. Of equal names the last."""
    last = {name: place for place, name in enumerate(names)}
    return last.get(b"content-type", -1), last.get(b"content-encoding", -1)


def _check_plain(attempt: Attempt, encoding: bytes) -> None:
    """Raises AttemptFailed for a stream in an encoding: it must be read as it comes."""
    if encoding.strip().lower() != b"identity":
        raise _encoded(attempt, encoding)


def _encoded(attempt: Attempt, encoding: bytes) -> AttemptFailed:
    said = label(encoding.decode("latin-1"), 40)
    message = f"upstream {attempt.candidate.upstream.id} answered in the encoding `{said}`, which was not asked for"
    return AttemptFailed(AttemptError.MALFORMED, message)


@lru_cache(maxsize=256)
def _shown(names: tuple[bytes, ...]) -> tuple[tuple[bool, ...], tuple[bytes, ...]]:
    """Which headers of an answer the client may see, one by one, and their names in lower case; an upstream nearly always sends the same ones."""
    names = tuple([name.lower() for name in names])
    shown = tuple([name in _RETURNED or name.startswith(_RETURNED_PREFIXES) for name in names])
    return shown, tuple(compress(names, shown))


def _as_failed(failure: ConnectionFailed, attempt: Attempt) -> AttemptFailed:
    """An exchange that could not go on, in the words of a try."""
    name = attempt.candidate.upstream.id
    if failure.failure is Failure.TIMED_OUT:
        if time.monotonic() >= attempt.call.deadline - 0.002:
            return AttemptFailed(AttemptError.DEADLINE, f"upstream {name} did not answer before the call's deadline")
        kind = AttemptError.IDLE_TIMEOUT if failure.answered else AttemptError.FIRST_BYTE_TIMEOUT
        return AttemptFailed(kind, f"upstream {name} did not answer in time")
    if failure.failure is Failure.MALFORMED:
        return AttemptFailed(AttemptError.MALFORMED, f"upstream {name}: {failure}")
    kind = AttemptError.TRUNCATED if failure.answered else AttemptError.CONNECT
    return AttemptFailed(kind, f"upstream {name} closed the connection")

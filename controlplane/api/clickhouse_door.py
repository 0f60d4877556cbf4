"""The ClickHouse HTTP protocol, read-only, on the embedded store: what Grafana's data source, `clickhouse-connect` and `curl` speak.

A raw ASGI application, mounted at `/clickhouse`. It decides who may ask, and translates between the protocol and `store.readonly`, where
queries are checked and bounded. With a ClickHouse server as the store the door is closed: ask the server itself.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from controlplane.api.auth import is_loopback
from controlplane.contract.ids import new_id
from controlplane.errors import TooMany
from controlplane.metrics import DoorMetrics
from controlplane.secrets import Secret
from controlplane.settings import DoorSettings
from controlplane.store.client import QueryFailed, Store
from controlplane.store.embedded import DATABASE
from controlplane.store.guard import Checked, Refused
from controlplane.store.native import CUSTOM_SERIALIZATION_VERSION, UnknownLayout, with_block_headers
from controlplane.store.readonly import ReadLimits, ReadOnlyHandles

Scope = MutableMapping[str, Any]  # ASGI's own types: nothing more can be said about the values
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

PARAMETERS_MAX = 200
COMPRESS_FROM_BYTES = 1024
_CHUNK_BYTES = 256 * 1024

# ClickHouse's numbers for what this file itself refuses.
NOT_IMPLEMENTED, UNKNOWN_DATABASE, READONLY, TIMED_OUT, TOO_MANY_QUERIES, ACCESS_DENIED, WRONG_PASSWORD = (
    48, 81, 164, 159, 202, 497, 516,
)  # fmt: skip
_STATUS = {
    WRONG_PASSWORD: 403, ACCESS_DENIED: 403, READONLY: 403, TIMED_OUT: 408, TOO_MANY_QUERIES: 503, NOT_IMPLEMENTED: 501,
    60: 404, UNKNOWN_DATABASE: 404, 46: 404, 47: 404, 115: 404,
    62: 400, 36: 400, 42: 400, 43: 400, 53: 400, 72: 400, 73: 400, 386: 400, 456: 400, 457: 400,
}  # fmt: skip

TOLERATED = frozenset({
    "query_id", "session_id", "session_timeout", "session_check", "quota_key", "stacktrace", "buffer_size", "wait_end_of_query",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms", "http_zlib_compression_level", "add_http_cors_header",
    "cancel_http_readonly_queries_on_client_close", "http_write_exception_in_output_format", "readonly", "max_execution_time",
    "max_result_rows", "max_result_bytes", "result_overflow_mode", "max_block_size", "max_threads", "log_comment", "log_queries",
    "date_time_input_format", "cast_string_to_dynamic_use_inference", "decompress", "compress", "enable_http_compression",
    "client_protocol_version", "default_format", "database", "user", "password", "query",
})  # fmt: skip
"""Parameters that clients send of their own accord. Bounds among them are taken note of and stay what the settings say."""

_CONTENT_TYPES = (
    ("JSONEachRow", "application/x-ndjson; charset=UTF-8"), ("JSONLines", "application/x-ndjson; charset=UTF-8"),
    ("NDJSON", "application/x-ndjson; charset=UTF-8"), ("JSON", "application/json; charset=UTF-8"), ("CSV", "text/csv; charset=UTF-8"),
    ("TabSeparated", "text/tab-separated-values; charset=UTF-8"), ("TSV", "text/tab-separated-values; charset=UTF-8"),
    ("Native", "application/octet-stream"), ("RowBinary", "application/octet-stream"), ("Arrow", "application/vnd.apache.arrow.stream"),
    ("Parquet", "application/octet-stream"), ("MsgPack", "application/octet-stream"), ("RawBLOB", "application/octet-stream"),
)  # fmt: skip


class Request(msgspec.Struct, frozen=True):
    """A query as it came over HTTP."""

    sql: str
    default_format: str
    query_id: str
    values: dict[str, str]
    protocol_version: int = 0
    gzip: bool = False


class Denied(Exception):
    """The caller may not ask. ask_again: a browser should ask its user for a name and a password."""

    def __init__(self, message: str, *, ask_again: bool) -> None:
        super().__init__(message)
        self.ask_again = ask_again


class ClickHouseDoor:
    """The door as an ASGI application."""

    def __init__(
        self, store: Store, *, settings: DoorSettings, metrics: DoorMetrics, password: Secret | None = None
    ) -> None:
        """password: what `settings.password` refers to; without one only the loopback address may ask."""
        self._settings = settings
        self._metrics = metrics
        self._password = password
        self._handles: ReadOnlyHandles | None = None
        if settings.enabled and store.embedded:
            self._handles = ReadOnlyHandles(
                store,
                ReadLimits(
                    execution_s_max=settings.max_execution_s,
                    result_rows_max=settings.max_result_rows,
                    result_bytes_max=settings.max_result_bytes,
                    memory_bytes_max=settings.max_memory_bytes,
                    handles=settings.concurrency,
                    query_bytes_max=settings.query_bytes_max,
                ),
            )
        self._executor = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="door")
        self._inside = 0

    def close(self) -> None:
        """Waits for running queries, then gives the sessions up; safe to call twice. Before the store is closed."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._handles is not None:
            self._handles.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] == "http":
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = scope["path"].rstrip("/").rsplit("/", 1)[-1]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if place == "ping" and scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, b"Ok.\n", [(b"content-type", b"text/html; charset=UTF-8")])
        elif place not in ("", "clickhouse"):
            await _answer(send, 404, b"There is nothing here. Use /clickhouse/?query=... or /clickhouse/ping\n", [])
        elif scope["method"] not in ("GET", "POST"):
            await _answer(send, 405, b"Only GET and POST\n", [(b"allow", b"GET, POST")])
        else:
            await self._query(scope, headers, receive, send)

    async def _query(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """One query, or the reason why not."""
        try:
            self._let_in(scope, headers)
            bytes_max = self._settings.query_bytes_max
            body = await asyncio.wait_for(_read_body(receive, bytes_max), self._settings.body_timeout_s)
            request = read_request(scope["query_string"], headers, body, bytes_max=bytes_max)
            await self._serve(request, send)
        except Denied as denied:
            self._metrics.queries.labels("denied").inc()
            await self._fail(send, WRONG_PASSWORD, str(denied), status=401 if denied.ask_again else 403)
        except Refused as refused:
            self._metrics.queries.labels("refused").inc()
            await self._fail(send, refused.number, refused.message)
        except TooMany as error:
            self._metrics.queries.labels("refused").inc()
            await self._fail(send, TOO_MANY_QUERIES, error.message)
        except TimeoutError:
            self._metrics.queries.labels("timed_out").inc()
            await self._fail(send, TIMED_OUT, "the request's body did not come in time")
        except QueryFailed as failed:
            self._metrics.queries.labels("timed_out" if failed.number == TIMED_OUT else "failed").inc()
            await self._fail(send, failed.number, failed.message)

    def _let_in(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises Denied unless the caller showed the password or, when there is none, is a program on this machine."""
        if self._password is not None:
            user, password = _credentials(scope["query_string"], headers)
            if user != self._settings.user or not self._password.matches(password):
                raise Denied(
                    f"{self._settings.user}: Authentication failed: password is incorrect, or there is no such user",
                    ask_again=not password,
                )
            return
        client = scope.get("client")
        relayed = any(name in headers for name in ("x-forwarded-for", "forwarded", "x-real-ip"))
        here = client is not None and is_loopback(client[0]) and is_loopback(_host_name(headers.get("host", "")))
        if relayed or not here:
            raise Denied("only this machine may ask until `server.door.password` is set", ask_again=False)

    async def _serve(self, request: Request, send: Send) -> None:
        """Runs the query on one of the door's threads and sends the result."""
        handles = self._handles
        if handles is None:
            raise Refused(
                "this door is closed: the telemetry is on a ClickHouse server, or `server.door.enabled` is false",
                number=ACCESS_DENIED,
            )
        checked = handles.guard.check(request.sql, default_format=request.default_format)
        if self._inside >= self._settings.concurrency + self._settings.waiting_max:
            raise TooMany("Too many simultaneous queries; ask again later")
        self._inside += 1
        self._show()
        try:
            work = asyncio.get_running_loop().run_in_executor(self._executor, _run, handles, checked, request)
            work.add_done_callback(self._left)
        except BaseException:
            self._left(None)
            raise
        body, seconds = await work
        self._metrics.seconds.observe(seconds)
        self._metrics.queries.labels("ok").inc()
        summary = {"result_bytes": str(len(body)), "elapsed_ns": str(round(seconds * 1e9))}
        more = [
            (b"content-type", _content_type(checked.format)),
            (b"x-clickhouse-format", checked.format.encode()),
            (b"x-clickhouse-query-id", request.query_id.encode("latin-1", "replace")),
            (b"x-clickhouse-timezone", handles.timezone.encode()),
            (b"x-clickhouse-server-display-name", handles.display_name.encode("latin-1", "replace")),
            (b"x-clickhouse-summary", msgspec.json.encode(summary)),
        ]
        if request.gzip and len(body) >= COMPRESS_FROM_BYTES:
            body = await asyncio.to_thread(_gzip, body)
            more += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
        await _answer(send, 200, body, more)

    def _left(self, _: object) -> None:
        self._inside -= 1
        self._show()

    def _show(self) -> None:
        self._metrics.running.set(min(self._inside, self._settings.concurrency))
        self._metrics.waiting.set(max(0, self._inside - self._settings.concurrency))

    async def _fail(self, send: Send, number: int, message: str, *, status: int = 0) -> None:
        """An error as a ClickHouse server sends it."""
        version = f" (version {self._handles.version})" if self._handles else ""
        text = message if message.startswith("Code: ") else f"Code: {number}. DB::Exception: {message}"
        headers = [
            (b"content-type", b"text/plain; charset=UTF-8"),
            (b"x-clickhouse-exception-code", str(number).encode()),
        ]
        if status == 401:
            headers.append((b"www-authenticate", b'Basic realm="ClickHouse server HTTP API"'))
        await _answer(send, status or _STATUS.get(number, 500), f"{text}{version}\n".encode(), headers)


def read_request(query_string: bytes, headers: Mapping[str, str], body: bytes, *, bytes_max: int) -> Request:
    """The query and all that belongs to it. Raises Refused for what is not understood or not allowed."""
    pairs = _pairs(query_string)
    values = {name[6:]: value for name, value in pairs.items() if name.startswith("param_")}
    for name in pairs:
        if name not in TOLERATED and not name.startswith("param_"):
            number = ACCESS_DENIED if name == "role" else READONLY
            raise Refused(f"Cannot modify '{name[:64]}' setting in readonly mode", number=number)
    if pairs.get("compress", "0") not in ("0", "false") or pairs.get("decompress", "0") not in ("0", "false"):
        raise Refused("compress=1 is not supported here; use HTTP compression (gzip)", number=NOT_IMPLEMENTED)
    database = pairs.get("database") or headers.get("x-clickhouse-database") or DATABASE
    if database not in (DATABASE, "default"):
        raise Refused(f"Database {database[:64]} does not exist; there is only {DATABASE}", number=UNKNOWN_DATABASE)
    try:
        text = _inflated(body, headers.get("content-encoding", ""), bytes_max).decode()
    except UnicodeDecodeError:
        raise Refused("Syntax error: a query is UTF-8 text", number=62) from None
    version = pairs.get("client_protocol_version", "")
    return Request(
        sql="\n".join(part for part in (pairs.get("query", ""), text) if part),
        default_format=pairs.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated",
        query_id=_printable(pairs.get("query_id", "")) or new_id("query"),
        values=values,
        protocol_version=int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0,
        gzip=pairs.get("enable_http_compression", "0") not in ("0", "false")
        and "gzip" in headers.get("accept-encoding", ""),
    )


def _run(handles: ReadOnlyHandles, checked: Checked, request: Request) -> tuple[bytes, float]:
    """Blocking: the result as this client reads it, and how long it took."""
    answer = handles.run(checked, request.values)
    if checked.format != "Native" or request.protocol_version < CUSTOM_SERIALIZATION_VERSION:
        return answer.body, answer.seconds
    try:
        return with_block_headers(answer.body), answer.seconds
    except UnknownLayout as error:
        raise QueryFailed(str(error), number=NOT_IMPLEMENTED) from error


def _pairs(query_string: bytes) -> dict[str, str]:
    """The parameters of the address. Raises Refused when there are too many or they are no UTF-8."""
    try:
        text = query_string.decode("ascii")
        found = parse_qsl(
            text, keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=PARAMETERS_MAX
        )
    except ValueError as error:
        raise Refused(f"the parameters of the address cannot be read: {error}", number=62) from None
    return dict(found)


def _credentials(query_string: bytes, headers: Mapping[str, str]) -> tuple[str, str]:
    """User and password by any of the three ways of the protocol; empty where none is shown."""
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    pairs = _pairs(query_string)
    return pairs.get("user", ""), pairs.get("password", "")


async def _read_body(receive: Receive, bytes_max: int) -> bytes:
    """The body of the request. Raises Refused when it is longer than a query may be."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise TooMany("the client left before its query was read")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise Refused(f"Syntax error: a query has at most {bytes_max} bytes", number=62)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _inflated(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """The body without its HTTP compression, no longer than a query may be."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refused(f"Content-Encoding {encoding[:32]} is not supported here; use gzip", number=NOT_IMPLEMENTED)
    inflate = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        text = inflate.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise Refused(f"the compressed body cannot be read: {error}", number=62) from None
    if len(text) > bytes_max or not inflate.eof:
        raise Refused(f"Syntax error: a query has at most {bytes_max} bytes", number=62)
    return text


def _gzip(body: bytes) -> bytes:
    deflate = zlib.compressobj(level=3, wbits=31)
    return deflate.compress(body) + deflate.flush()


def _content_type(format_name: str) -> bytes:
    return next(
        (kind for prefix, kind in _CONTENT_TYPES if format_name.startswith(prefix)), "text/plain; charset=UTF-8"
    ).encode()


def _printable(text: str) -> str:
    """A query id that is safe in a header, or nothing."""
    return text if len(text) <= 128 and text.isascii() and text.isprintable() else ""


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty when it makes no sense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _answer(send: Send, status: int, body: bytes, headers: list[Header]) -> None:
    """A whole response, its body in pieces so that a slow reader holds no second copy."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    view = memoryview(body)
    for start in range(0, max(1, len(body)), _CHUNK_BYTES):
        piece = bytes(view[start : start + _CHUNK_BYTES])
        await send({"type": "http.response.body", "body": piece, "more_body": start + _CHUNK_BYTES < len(body)})

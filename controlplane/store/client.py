"""The one way to the telemetry store: an embedded engine (`chdb:///path`) or a ClickHouse server (`clickhouse://user@host:8123/db`).

Both are driven by the same client library and the same SQL. A handle serves one query at a time; the store owns one for writing and a
bounded pool for reading, and a bounded executor so that the event loop never waits for a query.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, DataError, OperationalError
from prometheus_client import CollectorRegistry

from controlplane.errors import ConfigError, HephaestusError, StoreUnavailable, TooMany
from controlplane.metrics import StoreMetrics
from controlplane.settings import StoreSettings
from controlplane.store.embedded import DATABASE, EngineLimits, write_config
from controlplane.store.schema import Table

P = ParamSpec("P")
T = TypeVar("T")
Value = str | int | float | bool | Sequence[str] | Sequence[int]
Parameters = Mapping[str, Value]

_TIMED_OUT = 159
# Time (159, 160), too many queries (202) or parts (252), network (209, 210), memory (241), read-only (242), disk (243), unknown (319).
_TRANSIENT_CODES = frozenset({_TIMED_OUT, 160, 202, 209, 210, 241, 242, 243, 252, 319})


class StoreLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the store as this process uses it."""

    readers: int = 2  # queries of ours that may run at once
    waiting_max: int = 64  # queries that may wait for one of those
    wait_s_max: float = 30.0
    query_s_max: float = 30.0
    insert_s_max: float = 60.0
    query_memory_bytes_max: int = 1024 * 1024 * 1024
    engine: EngineLimits = EngineLimits()

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreLimits:
        """The bounds that the settings give."""
        return cls(
            readers=settings.readers,
            waiting_max=settings.waiting_max,
            wait_s_max=settings.wait_s_max,
            query_s_max=settings.query_s_max,
            insert_s_max=settings.insert_s_max,
            query_memory_bytes_max=settings.query_memory_bytes_max,
            engine=EngineLimits(memory_bytes_max=settings.memory_bytes_max, mark_cache_bytes=settings.mark_cache_bytes),
        )


class QueryFailed(HephaestusError):
    """The engine refused a query; carries ClickHouse's own number and text."""

    code = "query_failed"
    status = 500

    def __init__(self, message: str, *, number: int) -> None:
        super().__init__(message)
        self.number = number


class UnfitValue(HephaestusError):
    """A value that its column cannot hold; the row will not fit however often it is sent."""

    code = "unfit_value"
    status = 422


class StoreAddress(msgspec.Struct, frozen=True):
    """Where the store is. path: of the embedded engine; empty for a server."""

    path: str = ""
    host: str = ""
    port: int = 8123
    user: str = "default"
    database: str = DATABASE
    secure: bool = False

    @classmethod
    def parse(cls, dsn: str) -> StoreAddress:
        """Reads `chdb:///path` or `clickhouse://user@host:port/database?secure=1`. Raises ConfigError."""
        parts = urlsplit(dsn)
        if parts.scheme == "chdb" and not parts.netloc and parts.path.strip("/"):
            return cls(path="/" + unquote(parts.path).lstrip("/"))
        database = parts.path.strip("/") or DATABASE
        if parts.scheme == "clickhouse" and parts.hostname and _has_good_port(parts) and database.isidentifier():
            if parts.password is not None:
                raise ConfigError.at("server.telemetry", "holds a password", hint="use `telemetry_password: env:NAME`")
            return cls(
                host=parts.hostname,
                port=parts.port or 8123,
                user=unquote(parts.username or "default"),
                database=database,
                secure=parse_qs(parts.query).get("secure") == ["1"],
            )
        raise ConfigError.at(
            "server.telemetry",
            f"{dsn!r} is not the address of a store",
            hint="use chdb:///path/to/folder or clickhouse://user@host:8123/database",
        )


class Store:
    """An open telemetry store; safe to use from any thread. Blocking, except for `run`."""

    def __init__(
        self, connect: Callable[[], Client], address: StoreAddress, limits: StoreLimits, metrics: StoreMetrics
    ) -> None:
        self.address = address
        self.limits = limits
        self._metrics = metrics
        self._connect = connect
        self._writer = connect()
        self._writer.set_client_setting("max_execution_time", limits.insert_s_max)
        self._writer.set_client_setting(
            "max_partitions_per_insert_block", 0
        )  # a proxy back after weeks sends many days
        self._write_lock = threading.Lock()
        self._readers: queue.LifoQueue[Client | None] = queue.LifoQueue()
        for _ in range(limits.readers):
            self._readers.put(None)  # opened when first needed
        self._executor = ThreadPoolExecutor(limits.readers + 1, thread_name_prefix="store")
        self._waiting = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        dsn: str,
        *,
        data_dir: Path,
        limits: StoreLimits | None = None,
        metrics: StoreMetrics | None = None,
        password: str = "",
    ) -> Store:
        """Opens the store and makes its database when it is missing; blocking. `migrate` makes the tables.

        data_dir: where the embedded engine's configuration is written.
        Raises ConfigError for a bad address, StoreUnavailable when it cannot be opened.
        """
        limits = limits or StoreLimits()
        address = StoreAddress.parse(dsn)
        try:
            connect = _connector(address, data_dir=data_dir, limits=limits, password=password)
            store = cls(connect, address, limits, metrics or StoreMetrics(CollectorRegistry()))
        except (ClickHouseError, OSError) as error:
            raise StoreUnavailable(_why_not_open(address, error)) from error
        store.prepare()
        return store

    def prepare(self) -> None:
        """Makes the database when it is missing and points the writing handle at it."""
        with self._write_lock, self._watched():
            self._writer.command(f"CREATE DATABASE IF NOT EXISTS {self.address.database}", use_database=False)
            self._writer.database = self.address.database

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return bool(self.address.path)

    def rows(self, sql: str, parameters: Parameters | None = None) -> list[Sequence[object]]:
        """The result of a query, row by row. Values only ever go in as parameters, written `{name:Type}` in the SQL."""
        with self.reader() as client, self._watched():
            return list(client.query(sql, parameters=dict(parameters or {})).result_rows)

    def columns(self, sql: str, parameters: Parameters | None = None) -> list[Sequence[object]]:
        """The result of a query, column by column; an empty list when there are no rows."""
        with self.reader() as client, self._watched():
            result = client.query(sql, parameters=dict(parameters or {}), column_oriented=True)
            return list(result.result_columns)

    def mappings(
        self, sql: str, parameters: Parameters | None = None, *, text_as_bytes: bool = False
    ) -> list[dict[str, object]]:
        """The result of a query, each row by column name. text_as_bytes: text columns hold what is no text."""
        formats = {"String": "bytes"} if text_as_bytes else None
        with self.reader() as client, self._watched():
            result = client.query(sql, parameters=dict(parameters or {}), query_formats=formats)
            names = result.column_names
            return [dict(zip(names, row, strict=True)) for row in result.result_rows]

    def structs(self, into: type[T], sql: str, parameters: Parameters | None = None) -> list[T]:
        """The result of a query as values of a struct whose fields are named like the columns."""
        rows = self.mappings(sql, parameters)
        return msgspec.convert(rows, list[into])  # type: ignore[valid-type]

    def insert(self, table: Table, columns: Sequence[Sequence[object]], *, token: str = "") -> None:
        """Writes rows, given as one sequence for each column of the table's `written` ones.

        token: rows that were written under the same token before are not written again, nor counted again in any roll-up.
        Raises UnfitValue for values that never fit; StoreUnavailable for what may work later.
        """
        settings: dict[str, str | int] = {}
        if token:
            settings = {"insert_deduplication_token": token, "deduplicate_blocks_in_dependent_materialized_views": 1}
        with self._write_lock, self._watched():
            self._writer.insert(
                table.name,
                list(columns),
                column_names=[column.name for column in table.written],
                column_type_names=[column.type for column in table.written],
                database=self.address.database,
                column_oriented=True,
                settings=settings,
            )

    def command(self, sql: str, parameters: Parameters | None = None) -> None:
        """Runs a statement that has no result."""
        with self._write_lock, self._watched():
            self._writer.command(sql, parameters=dict(parameters or {}))

    @contextmanager
    def reader(self) -> Iterator[Client]:
        """A handle for one query; given back at the end. Raises TooMany when none gets free in time."""
        if self._closed:
            raise StoreUnavailable("the store was closed")
        try:
            client = self._readers.get(timeout=self.limits.wait_s_max)
        except queue.Empty:
            raise TooMany("all handles of the store are busy; ask again later") from None
        try:
            if client is None:
                with self._watched():
                    client = self.new_handle()
            yield client
        finally:
            self._readers.put(client)

    def new_handle(self) -> Client:
        """A further handle with the bounds of a query, for who must own one; the caller closes it."""
        client = self._connect()
        client.database = self.address.database
        client.set_client_setting("max_execution_time", self.limits.query_s_max)
        client.set_client_setting("max_memory_usage", self.limits.query_memory_bytes_max)
        return client

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking work on the store's own threads. Raises TooMany when too much is waiting already.

        When the caller is cancelled the work still ends by itself, within its own bounds.
        """
        if self._closed:
            raise StoreUnavailable("the store was closed")
        if self._waiting >= self.limits.waiting_max + self.limits.readers:
            raise TooMany("too many queries wait for the store; ask again later")
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        future = asyncio.get_running_loop().run_in_executor(self._executor, lambda: work(*args, **kwargs))
        future.add_done_callback(self._left)
        return await future

    def _left(self, _: asyncio.Future[T]) -> None:
        self._waiting -= 1
        self._metrics.waiting.set(self._waiting)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Times a query, counts how it ended, and turns the driver's exceptions into ours."""
        where = self.address.path or self.address.host
        began = time.monotonic()
        result = "failed"
        try:
            yield
            result = "ok"
        except DataError as error:
            raise UnfitValue(f"a value does not fit its column: {error}") from error
        except DatabaseError as error:
            number = error.code or 0
            result = "timed_out" if number == _TIMED_OUT else "failed"
            if number in _TRANSIENT_CODES or (number == 0 and isinstance(error, OperationalError)):
                raise StoreUnavailable(f"the store at {where} cannot do this now: {error}") from error
            raise QueryFailed(str(error), number=number) from error
        except (ClickHouseError, OSError) as error:
            raise StoreUnavailable(f"the store at {where} does not answer: {error}") from error
        finally:
            self._metrics.queries.labels(result).inc()
            self._metrics.seconds.observe(time.monotonic() - began)

    def close(self) -> None:
        """Waits for what runs, then gives the engine up; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._write_lock:
            self._writer.close()
        for _ in range(self.limits.readers):
            try:
                client = self._readers.get(timeout=self.limits.query_s_max)
            except queue.Empty:
                break
            if client is not None:
                client.close()


def _has_good_port(parts: SplitResult) -> bool:
    """Whether the port, if there is one, is a number that a port can be."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _connector(address: StoreAddress, *, data_dir: Path, limits: StoreLimits, password: str) -> Callable[[], Client]:
    """What opens one more handle."""
    if address.path:
        config = write_config(data_dir, limits.engine)
        Path(address.path).mkdir(parents=True, exist_ok=True)
        return lambda: clickhouse_connect.get_client(
            interface="chdb", path=address.path, chdb_options={"config-file": str(config)}
        )
    return lambda: clickhouse_connect.get_client(
        host=address.host,
        port=address.port,
        username=address.user,
        password=password,
        secure=address.secure,
        connect_timeout=10,
        send_receive_timeout=int(limits.query_s_max) + 10,
        autogenerate_session_id=False,
    )


def _why_not_open(address: StoreAddress, error: Exception) -> str:
    """One sentence for the operator."""
    if address.path:
        return (
            f"the embedded store at {address.path} cannot be opened; most likely another process has it open "
            f"(only one can), otherwise check the folder's owner and the free disk space: {error}"
        )
    return f"the ClickHouse server at {address.host}:{address.port} does not answer: {error}"

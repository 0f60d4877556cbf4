"""Handles for strangers: a bounded pool of sessions on the embedded store that can only read the telemetry, within limits."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from controlplane.errors import TooMany
from controlplane.store.client import QueryFailed, Store
from controlplane.store.embedded import DATABASE
from controlplane.store.guard import SAFE_CATEGORIES, SAFE_OTHERS, Checked, Guard
from controlplane.store.schema import TABLES

TOO_LARGE = 396  # TOO_MANY_ROWS_OR_BYTES


class ReadLimits(msgspec.Struct, frozen=True):
    """Bounds of one query, and of how many there are at once."""

    execution_s_max: float = 15.0
    result_rows_max: int = 1_000_000
    result_bytes_max: int = 256 * 1024 * 1024
    memory_bytes_max: int = 1024 * 1024 * 1024
    handles: int = 4
    query_bytes_max: int = 256 * 1024


class Answer(msgspec.Struct, frozen=True):
    """A result in the format asked for."""

    body: bytes
    seconds: float


class _Escaped:
    """A parameter's value that is escaped already; the driver takes it as it is, where it would escape a text again."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


class ReadOnlyHandles:
    """Sessions that gave up their role and were set read-only; opened when needed, used by one query at a time.

    Only for the embedded store: a server has users of its own.
    """

    def __init__(self, store: Store, limits: ReadLimits | None = None) -> None:
        if not store.embedded:
            raise ValueError(
                "read-only handles are for the embedded store; give a server's readers a user of the server"
            )
        self.limits = limits or ReadLimits()
        self._store = store
        self._free: queue.LifoQueue[Client | None] = queue.LifoQueue()
        for _ in range(self.limits.handles):
            self._free.put(None)
        self._closed = False
        version, timezone, name = store.rows("SELECT version(), timezone(), displayName()")[0]
        self.version, self.timezone, self.display_name = str(version), str(timezone), str(name)
        self.guard = read_guard(store, query_bytes_max=self.limits.query_bytes_max)

    def run(self, checked: Checked, parameters: Mapping[str, str]) -> Answer:
        """Runs a query that the guard let through; blocking.

        parameters: values as the HTTP protocol has them, escaped. Raises QueryFailed with the engine's number, TooMany when no handle gets
        free within the time that a query may take.
        """
        began = time.monotonic()
        if self._closed:
            raise TooMany("the store is being closed")
        try:
            client = self._free.get(timeout=self.limits.execution_s_max)
        except queue.Empty:
            raise TooMany("too many queries at once; ask again later") from None
        try:
            client = client or self._open()
            # Only what the query names: given any other parameter, the driver would paste it into the text where that says `%(x)s`.
            named = {name: _Escaped(value) for name, value in parameters.items() if name in checked.parameters}
            body = client.raw_query(checked.sql, parameters=named)
        except DatabaseError as error:
            raise QueryFailed(str(error), number=error.code or 0) from error
        except ClickHouseError as error:
            raise QueryFailed(str(error), number=0) from error
        finally:
            self._give_back(client)
        if len(body) > self.limits.result_bytes_max:
            raise QueryFailed(
                f"Code: {TOO_LARGE}. DB::Exception: Limit for result exceeded, max bytes: {self.limits.result_bytes_max}. "
                "(TOO_MANY_ROWS_OR_BYTES)",
                number=TOO_LARGE,
            )
        return Answer(body, time.monotonic() - began)

    def _open(self) -> Client:
        """A fresh session, with its rights given up. The order matters: read-only is last, as nothing can be set after it."""
        client = self._store.new_handle()
        limits = self.limits
        try:
            client.database = None  # the driver must not say USE again
            client.command(f"USE {DATABASE}")
            client.command(
                f"SET max_execution_time = {limits.execution_s_max}, max_result_rows = {limits.result_rows_max}, "
                f"max_result_bytes = {limits.result_bytes_max}, result_overflow_mode = 'throw', "
                f"max_memory_usage = {limits.memory_bytes_max}, max_temporary_data_on_disk_size_for_query = {limits.memory_bytes_max}, "
                "max_query_size = 1048576, max_ast_elements = 50000, max_subquery_depth = 100, "
                "output_format_json_quote_64bit_integers = 0, log_queries = 0, allow_ddl = 0, allow_introspection_functions = 0"
            )
            client.command("SET ROLE NONE")
            client.command("SET readonly = 1")
        except BaseException:
            client.close()
            raise
        return client

    def _give_back(self, client: Client | None) -> None:
        if self._closed and client is not None:
            client.close()
            client = None
        self._free.put(client)

    def close(self) -> None:
        """Closes every session, waiting for those in use as long as a query may take; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + self.limits.execution_s_max
        for _ in range(self.limits.handles):
            with suppress(queue.Empty):
                client = self._free.get(timeout=max(0.0, deadline - time.monotonic()))
                if client is not None:
                    client.close()


def read_guard(store: Store, *, query_bytes_max: int = 256 * 1024) -> Guard:
    """The guard for the functions that this engine has: one that is not known to be harmless is forbidden."""
    rows = [
        (str(name), str(alias_to), str(category), bool(is_aggregate))
        for name, alias_to, category, is_aggregate in store.rows(
            "SELECT name, alias_to, categories, is_aggregate FROM system.functions"
        )
    ]
    safe = {
        name.lower()
        for name, _, category, is_aggregate in rows
        if is_aggregate or category in SAFE_CATEGORIES or name.lower() in SAFE_OTHERS
    }
    safe |= {name.lower() for name, alias_to, _, _ in rows if alias_to.lower() in safe}
    safe |= {column.name for table in TABLES for column in table.columns}
    table_functions = [str(name) for (name,) in store.rows("SELECT name FROM system.table_functions")]
    return Guard(
        forbidden={name.lower() for name, _, _, _ in rows} - safe,
        table_functions=table_functions,
        query_bytes_max=query_bytes_max,
    )

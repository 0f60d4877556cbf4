"""Keep-alive connections to one upstream: reused last in first out, bounded in number, with a bounded wait."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from proxy.outbox import Outbox
from proxy.transports.connection import Connection

IDLE_S_MAX = 55.0  # providers close idle connections after a minute or more
_SWEEP_S = 15.0


class PoolExhausted(Exception):
    """No connection became free in time."""


class Pool:
    """The connections to one host and port.

    connections_max: open at any moment; who finds them all busy waits, at most as many again, and not beyond the time given.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        connections_max: int,
        header_bytes_max: int,
        high_water_bytes: int,
        shown: Callable[[tuple[bytes, ...]], tuple[tuple[bool, ...], tuple[bytes, ...]]],
    ) -> None:
        self._loop = loop
        self._host = host
        self._port = port
        self._tls = tls
        self.connections_max = connections_max
        self._make = partial(
            Connection,
            loop,
            header_bytes_max=header_bytes_max,
            high_water_bytes=high_water_bytes,
            shown=shown,
            on_closed=self._on_closed,
            outbox=Outbox(),
        )
        self._open: set[Connection] = set()
        self._connecting = 0
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._shut = False

    @property
    def open_count(self) -> int:
        """Connections that are open or being opened."""
        return len(self._open) + self._connecting

    @property
    def idle_count(self) -> int:
        """Connections that carry no exchange now."""
        return len(self._idle)

    def take_idle(self) -> Connection | None:
        """The connection that was used last, if one is idle."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def acquire(self, *, timeout_s: float, fresh: bool = False) -> Connection:
        """A connection that carries no exchange.

        fresh: not one that was idle, which the upstream may have closed already.
        Raises PoolExhausted, TimeoutError or OSError (DNS, refused, TLS).
        """
        connection = None if fresh else self.take_idle()
        if connection is not None:
            return connection
        expires = time.monotonic() + timeout_s
        while self.open_count >= self.connections_max:
            stale = self.take_idle()
            if stale is not None:  # only when a fresh one is wanted: make room for it
                stale.abort()
                self._open.discard(stale)
                continue
            handed = await self._wait(expires - time.monotonic())
            if handed is not None:
                return handed
        return await self._connect(expires - time.monotonic())

    def release(self, connection: Connection) -> None:
        """Gives a connection back; one that cannot be used again is closed."""
        if not connection.finish() or self._shut:
            connection.abort()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """Closes the idle connections now, the others as they come back."""
        self._shut = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def abort(self) -> None:
        """Closes every connection, whatever it carries."""
        self.close()
        for connection in tuple(self._open):
            connection.abort()

    async def _connect(self, timeout_s: float) -> Connection:
        self._connecting += 1
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                _, connection = await self._loop.create_connection(
                    self._make,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
        except BaseException:
            self._connecting -= 1
            self._wake_one()
            raise
        self._connecting -= 1
        if not connection.closed:
            self._open.add(connection)
        return connection

    async def _wait(self, timeout_s: float) -> Connection | None:
        """A connection handed over, or None when there is room for a new one. Raises PoolExhausted."""
        if len(self._waiters) >= self.connections_max or timeout_s <= 0:
            raise PoolExhausted(f"all {self.connections_max} connections to {self._host}:{self._port} are busy")
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # handed over in the same moment
                handed = waiter.result()
                if handed is not None:
                    self.release(handed)
                else:
                    self._wake_one()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise PoolExhausted(
                    f"all {self.connections_max} connections to {self._host}:{self._port} stayed busy"
                ) from error
            raise

    def _on_closed(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._wake_one()
        if connection in self._idle:
            self._idle.remove(connection)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _sweep(self) -> None:
        """Closes what has been idle for too long; the list is ordered by age, oldest first."""
        self._sweeper = None
        oldest = time.monotonic() - IDLE_S_MAX
        for connection in [item for item in self._idle if item.idle_since < oldest]:
            self._idle.remove(connection)
            connection.abort()
        if self._idle and not self._shut:
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

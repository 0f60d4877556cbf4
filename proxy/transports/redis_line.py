"""One connection to Redis on which many commands may be under way at once; answers come in the order of the questions.

Nobody waits for a connection, and one who stops waiting leaves it usable: the answer that comes too late is thrown away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any  # redis-py's connections take their arguments by name and without types

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError, ResponseError

from controlplane.contract.redis_address import RedisAddress

# What a server can do to us: refuse, vanish, or say something that is not Redis.
LINE_TROUBLE = (RedisError, OSError, ValueError, EOFError, RecursionError)

Answer = bytes | int | None


class LineLost(Exception):
    """The connection is gone, and what was asked on it stays unanswered."""


class RedisLine:
    """An open connection. Made by `open_line`; it belongs to the event loop that made it."""

    def __init__(self, connection: AbstractConnection, *, on_lost: Callable[[], None]) -> None:
        """on_lost: called at most once, when the connection is gone though nobody closed it."""
        self._connection = connection
        self._on_lost = on_lost
        self._asked: deque[asyncio.Future[Answer | Exception]] = deque()
        self._lost = False
        self._closing = False
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="redis-line")

    @property
    def waiting(self) -> int:
        """Questions without an answer yet, those included for whose answer nobody waits any more."""
        return len(self._asked)

    async def ask(self, *command: bytes | str | int) -> Answer:
        """The server's answer to one command; may be cancelled.

        Raises LineLost, and redis-py's ResponseError when the server refuses the command. Has no deadline of its own.
        """
        if self._lost or not self._connection.is_connected:
            raise LineLost
        future: asyncio.Future[Answer | Exception] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        try:
            # redis-py writes before it first waits, so questions leave in the order of `_asked`
            await self._connection.send_packed_command(self._connection.pack_command(*command), check_health=False)
        except LINE_TROUBLE as error:
            self._lost = True
            raise LineLost from error
        except asyncio.CancelledError:
            self._lost = True  # half a command may have been sent
            raise
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Closes at once; safe to call twice."""
        self._closing = True
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._connection.disconnect(nowait=True)
        self._give_up()

    async def _read(self) -> None:
        try:
            while True:
                answer: Answer | Exception
                try:
                    answer = await self._connection.read_response(disable_decoding=True)
                except ResponseError as error:
                    answer = error
                future = self._asked.popleft()
                if not future.done():
                    future.set_result(answer)
        except (*LINE_TROUBLE, IndexError):  # IndexError: an answer that nobody asked for
            await self._connection.disconnect(nowait=True)
        finally:
            self._give_up()
            if not self._closing:
                self._on_lost()

    def _give_up(self) -> None:
        self._lost = True
        while self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_result(LineLost())


async def open_line(
    address: RedisAddress, *, password: str | None, timeout_s: float, on_lost: Callable[[], None]
) -> RedisLine:
    """A connection that is made, encrypted if the address says so, and logged in.

    Raises one of LINE_TROUBLE; TimeoutError, which is an OSError, is among them.
    """
    connection = _connection(address, password=password, timeout_s=timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has no type for it
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return RedisLine(connection, on_lost=on_lost)


def _connection(address: RedisAddress, *, password: str | None, timeout_s: float) -> AbstractConnection:
    """One of redis-py's connections, which handles login, TLS and the protocol; it never retries anything by itself."""
    common: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": password,
        "socket_timeout": None,  # deadlines are ours
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
    }
    if address.path:
        return UnixDomainSocketConnection(path=address.path, **common)
    kind = SSLConnection if address.tls else Connection
    return kind(host=address.host, port=address.port, **common)

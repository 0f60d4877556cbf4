"""A way to a real Redis that a test can make worse."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Self

from tests.proxy.redis_server import RedisServer


class RedisWay:
    """Passes bytes on between proxies and a server; what happens to them on the way is its subclass's to say."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """As the settings want it."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> Self:
        """Listens on a free port."""
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Cuts everything off."""
        if self._listener is not None:
            self._listener.close()
        for pump in self._running:
            pump.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def pumps(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> tuple[Coroutine[object, object, None], Coroutine[object, object, None]]:
        """What carries one connection's bytes there, and back."""
        raise AssertionError("a way says how it carries")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection("127.0.0.1", self._server.port)
        for pump in self.pumps((reader, writer), server):
            task = asyncio.create_task(pump)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

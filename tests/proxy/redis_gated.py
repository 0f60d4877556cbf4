"""A way to a real Redis on which single commands, or their answers, wait until the test lets them go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from tests.proxy.redis_server import RedisServer
from tests.proxy.redis_way import RedisWay


class GatedWay(RedisWay):
    """What is held waits, and all behind it on the same connection.

    requests, answers: commands that contain these bytes wait, or what is said to them; b"": none. held: how many did so far.
    """

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.requests = self.answers = b""
        self.held = 0
        self.gate = asyncio.Event()

    def pumps(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> tuple[Coroutine[object, object, None], Coroutine[object, object, None]]:
        """Each waits at the gate for what it is to hold."""
        asked = asyncio.Event()  # something was, whose answer waits
        return self._ask(client[0], server[1], asked), self._answer(server[0], client[1], asked)

    async def _ask(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(sink):
            while data := await source.read(65536):
                if self.requests and self.requests in data:
                    self.held += 1
                    await self.gate.wait()
                elif self.answers and self.answers in data:
                    asked.set()
                sink.write(data)

    async def _answer(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(sink):
            while data := await source.read(65536):
                if asked.is_set():
                    self.held += 1
                    await self.gate.wait()
                sink.write(data)

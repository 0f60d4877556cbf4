"""A way to a real Redis on which single commands, or their answers, wait until the test lets them go on."""

from __future__ import annotations

import asyncio
import contextlib

from tests.proxy.redis_server import RedisServer


class GatedWay:
    """Passes bytes on between a proxy and a server; what is held waits, and all behind it on the same connection.

    requests, answers: commands that contain these bytes wait, or what is said to them; b"": none. held: how many did so far.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self.requests = self.answers = b""
        self.held = 0
        self.gate = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """As the settings want it."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> GatedWay:
        """Listens on a free port."""
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Cuts everything off."""
        if self._listener is not None:
            self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        asked = asyncio.Event()  # something was, whose answer waits
        for pump in (self._ask(reader, to_server, asked), self._answer(from_server, writer, asked)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

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

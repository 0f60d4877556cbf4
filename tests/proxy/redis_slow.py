"""A way to a real Redis on which answers can be made to come late."""

from __future__ import annotations

import asyncio
import contextlib

from tests.proxy.redis_server import RedisServer


class SlowWay:
    """Passes bytes on between proxies and a server, in order; what the server says comes `delay_s` later."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        """As the settings want it."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> SlowWay:
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
        for source, sink, late in ((reader, to_server, False), (from_server, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, late=late))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, late: bool) -> None:
        loop = asyncio.get_running_loop()
        due_s = 0.0
        try:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    due_s = max(
                        due_s + 1e-6, loop.time() + self.delay_s * late
                    )  # never two at one moment: they could change places
                    loop.call_at(due_s, _deliver, sink, data)
        finally:
            sink.close()


def _deliver(sink: asyncio.StreamWriter, data: bytes) -> None:
    if not sink.is_closing():
        sink.write(data)

"""A way to a real Redis on which answers can be made to come late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from tests.proxy.redis_server import RedisServer
from tests.proxy.redis_way import RedisWay


class SlowWay(RedisWay):
    """Everything stays in order; what the server says comes `delay_s` later."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.delay_s = 0.0

    def pumps(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> tuple[Coroutine[object, object, None], Coroutine[object, object, None]]:
        """Only the way back is slow."""
        return self._pump(client[0], server[1], late=False), self._pump(server[0], client[1], late=True)

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

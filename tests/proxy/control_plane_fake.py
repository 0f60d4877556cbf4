"""A control plane of few words on a real socket: it remembers what was asked and answers what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, bytes]


class FakeControlPlane:
    """Answers each request with `answer(asked)`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer] = lambda asked: (200, b"")
        self.url = ""
        self.inflight = 0
        self.inflight_max = 0
        self._news = asyncio.Event()

    async def heard(self, count: int) -> None:
        """Waits until so many requests have come."""
        async with asyncio.timeout(60):
            while len(self.asked) < count:
                self._news.clear()
                await self._news.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._one(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        self.inflight += 1
        self.inflight_max = max(self.inflight_max, self.inflight)
        await asyncio.sleep(0)
        asked = Asked(method, path, query, headers, body)
        self.asked.append(asked)
        self._news.set()
        status, content = self.answer(asked)
        self.inflight -= 1
        if status == 0:  # hang up
            writer.close()
            return
        length = b"" if status == 304 else b"content-length: %d\r\n" % len(content)
        writer.write(b"HTTP/1.1 %d X\r\n%s\r\n%s" % (status, length, b"" if status == 304 else content))
        await writer.drain()


@asynccontextmanager
async def control_plane() -> AsyncIterator[FakeControlPlane]:
    """A running one on a port of its own."""
    fake = FakeControlPlane()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake

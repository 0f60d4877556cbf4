"""A real HTTP receiver of webhooks on 127.0.0.1, which answers as a test tells it and keeps what it got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Got(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers each request with `status`; keeps them in `got`."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.status = 200
        self.extra = ""
        self.answer = b"{}"
        self.hang = False
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook?team=a"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.got.append(Got(first.split(" ")[1], headers, body))
            if self.hang:
                await reader.read()
                return
            answer = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.answer)}\r\nconnection: close\r\n{self.extra}\r\n"
            writer.write(answer.encode() + self.answer)
            await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()

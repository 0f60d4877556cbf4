"""What the tests of the demo share: a raw HTTP client that shows every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping


class RawClient:
    """One TCP connection on which a test writes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> RawClient:
        """A connection to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 26))

    async def send(self, data: bytes) -> None:
        """Writes bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer, names in lower case."""
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = raw.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in headers.items()}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The whole next answer, its chunks put together."""
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, b"".join(await self.chunks())
        return status, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def chunks(self) -> list[bytes]:
        """The chunks of a chunked body, without the empty one that ends it."""
        chunks = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            chunks.append(await self.reader.readexactly(size))
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return chunks

    async def close(self) -> None:
        """Closes the connection."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def post(
    body: object,
    *,
    path: str = "/v1/chat/completions",
    key: str | None = "sk-test",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a POST; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: provider",
        "content-type: application/json",
        f"content-length: {len(data)}",
    ]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def question(text: str = "How do I reset my password?", **fields: object) -> dict[str, object]:
    """The body of a chat completion with one user message."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}

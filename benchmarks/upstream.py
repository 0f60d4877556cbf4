"""An upstream that costs next to nothing: one fixed completion, or one fixed stream, whatever is asked.

The simulated provider counts tokens and makes up an answer for each prompt, so it would be the slowest part of a comparison of gateways; and a
gateway that waits for its upstream wakes up for each answer by itself, which costs the cheapest gateway most. `python -m benchmarks.upstream --port P`
"""

from __future__ import annotations

import argparse
import asyncio
import resource
from typing import cast

import httptools
import msgspec
import uvloop

EVENTS = 100
_BACKLOG = 4096
_encode = msgspec.json.encode
_TEXT = "The deployment failed because a configuration value was wrong, which was noticed late. " * 4
_COMPLETION = {
    "id": "chatcmpl-benchmark",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "gpt-4o-mini",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": _TEXT}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 120, "completion_tokens": 80, "total_tokens": 200},
    "system_fingerprint": "fp_benchmark",
}
_HEADERS = (
    "x-request-id: req_benchmark",
    "openai-organization: benchmark",
    "openai-processing-ms: 12",
    "openai-version: 2020-10-01",
    "x-ratelimit-limit-requests: 10000",
    "x-ratelimit-remaining-requests: 9999",
    "x-ratelimit-reset-requests: 6ms",
    "x-ratelimit-limit-tokens: 1000000",
    "x-ratelimit-remaining-tokens: 999999",
    "x-ratelimit-reset-tokens: 6ms",
)


def _head(*headers: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *headers, *_HEADERS, "")).encode()


def _answer() -> bytes:
    body = _encode(_COMPLETION)
    return _head("content-type: application/json", f"content-length: {len(body)}") + body


def _chunks() -> list[bytes]:
    """The stream as its upstream writes it, event by event, each a chunk of its own."""

    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        document = {**_COMPLETION, "object": "chat.completion.chunk", "choices": [choice], "usage": None}
        return b"data: " + _encode(document) + b"\n\n"

    usage = {**_COMPLETION, "object": "chat.completion.chunk", "choices": []}
    events = [
        event({"role": "assistant", "content": ""}),
        *(event({"content": f"word{number} "}) for number in range(EVENTS)),
        event({}, "stop"),
        b"data: " + _encode(usage) + b"\n\n",
        b"data: [DONE]\n\n",
    ]
    head = _head("content-type: text/event-stream", "transfer-encoding: chunked")
    chunks = [b"%x\r\n%b\r\n" % (len(item), item) for item in events]
    return [head + chunks[0], *chunks[1:], b"0\r\n\r\n"]


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, answer: bytes, chunks: list[bytes], pace_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._chunks = chunks
        self._pace_s = pace_s
        self._parser = httptools.HttpRequestParser(self)
        self._stream = False
        self._at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A gateway connects."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own kind

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Whether a stream is asked for; bodies are small enough to come in one piece."""
        self._stream = self._stream or b'"stream":true' in body or b'"stream": true' in body

    def on_message_complete(self) -> None:
        """Answers."""
        if self._stream:
            self._stream = False
            self._at = 0
            self._step()
        else:
            self._transport.write(self._answer)

    def _step(self) -> None:
        """One event at a time: each a write of its own."""
        self._transport.write(self._chunks[self._at])
        self._at += 1
        if self._at < len(self._chunks) and not self._transport.is_closing():
            if self._pace_s:
                self._loop.call_later(self._pace_s, self._step)
            else:
                self._loop.call_soon(self._step)


async def _serve(port: int, pace_s: float) -> None:
    answer, chunks = _answer(), _chunks()
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(answer, chunks, pace_s), "127.0.0.1", port, backlog=_BACKLOG, reuse_port=True
    )
    await server.serve_forever()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between the events of a stream; 0: none")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(_serve(given.port, given.pace))


if __name__ == "__main__":
    main()

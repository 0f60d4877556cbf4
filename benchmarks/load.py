"""A closed-loop load generator: N keep-alive connections, each sends its next call when the last answer is complete.

It runs as a process of its own (`python -m benchmarks.load ...`) and prints one JSON line, so that its own CPU time is never counted
as the gateway's. Written on asyncio.Protocol and httptools because a generator that is slower than the gateway measures itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

CRLF = "\r\n"
PROMPT = "Summarize the incident report of the last deployment in three sentences for an engineer on call, plainly."


@dataclass(slots=True)
class Plan:
    """What to send, how often and for how long."""

    host: str
    port: int
    path: str
    key: str
    connections: int
    seconds: float
    stream: bool
    unique: bool
    model: str
    rate: float = 0.0  # calls per second over all connections; 0: closed loop
    calls: int = 0  # stop after this many; 0: by time
    header: list[str] = field(default_factory=list)  # more headers, `name: value`
    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    errors: int = 0
    sent: int = 0
    events: int = 0  # of streams
    active: int = 0  # answers that have begun and not ended
    active_max: int = 0
    stop_at: float = 0.0
    run: str = field(default_factory=lambda: secrets.token_hex(4))  # so that no run repeats the prompts of another

    def request(self) -> bytes:
        """The next request; with `unique` no two have the same prompt, so that no cache can answer."""
        self.sent += 1
        prompt = f"{PROMPT} (case {self.run}-{self.sent:08d})" if self.unique else f"{PROMPT} (case 00000000-00000000)"
        document = {
            "model": self.model,
            "messages": [
                {
                    "role": "system",
                    "content": "You are a careful assistant that answers in the language of the question. " * 3,
                },
                {"role": "user", "content": prompt},
            ],
            "temperature": 0.2,
            "max_tokens": 100,
        }
        if self.stream:
            document["stream"] = True
        body = json.dumps(document).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\nx-heph-agent: bench\r\n"
            f"{''.join(f'{line}{CRLF}' for line in self.header)}content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection of the closed loop."""

    def __init__(self, plan: Plan, done: asyncio.Future[None]) -> None:
        self.plan = plan
        self.done = done
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.started = 0.0
        self.due = 0.0  # of the next call, where calls are paced
        self.first = 0.0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first call."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own kind
        self._next()

    def _next(self) -> None:
        assert self.transport is not None
        plan = self.plan
        now = time.perf_counter()
        if now >= plan.stop_at or (plan.calls and plan.sent >= plan.calls):
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        if plan.rate:
            every_s = plan.connections / plan.rate
            # by its own clock and with chance, or calls that were once late together would come together for ever
            self.due = self.due + every_s * random.uniform(0.5, 1.5) if self.due else now + random.uniform(0, every_s)
            pause = self.due - now
            if pause > 0:
                asyncio.get_running_loop().call_later(pause, self._send)
                return
        self._send()

    def _send(self) -> None:
        assert self.transport is not None
        self.started = time.perf_counter()
        self.first = 0.0
        self.tail = b""
        self.transport.write(self.plan.request())

    def data_received(self, data: bytes) -> None:
        """Feeds the parser."""
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Notes the first byte and keeps the tail, to see whether a stream is whole."""
        if not self.first:
            self.first = time.perf_counter()
            self.plan.active += 1
            self.plan.active_max = max(self.plan.active_max, self.plan.active)
        self.plan.events += body.count(b"\n\n") if self.plan.stream else 0
        self.tail = body[-64:] if len(body) >= 64 else (self.tail + body)[-64:]

    def on_message_complete(self) -> None:
        """Counts the answer and sends the next call."""
        now = time.perf_counter()
        plan = self.plan
        plan.active -= bool(self.first)
        whole = b"[DONE]" in self.tail if plan.stream else True
        if self.parser.get_status_code() == 200 and whole:
            plan.latencies.append(now - self.started)
            plan.first_bytes.append(self.first - self.started)
        else:
            plan.errors += 1
        self.parser = httptools.HttpResponseParser(self)
        asyncio.get_running_loop().call_soon(self._next)

    def connection_lost(self, error: Exception | None) -> None:
        """A connection that breaks before its time is an error."""
        if not self.done.done():
            self.plan.errors += 1
            self.done.set_result(None)
        del error


def _quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


async def run(plan: Plan) -> dict[str, float]:
    """Runs the plan; latencies in milliseconds."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    plan.stop_at = started + plan.seconds
    waits = []
    for _ in range(plan.connections):
        done: asyncio.Future[None] = loop.create_future()
        waits.append(done)
        await loop.create_connection(lambda d=done: Connection(plan, d), plan.host, plan.port)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*waits), plan.seconds + 60)
    elapsed = time.perf_counter() - started
    latencies, first = sorted(plan.latencies), sorted(plan.first_bytes)
    return {
        "calls": len(latencies),
        "errors": plan.errors,
        "events": plan.events,
        "active_max": plan.active_max,
        "seconds": elapsed,
        "calls_per_s": len(latencies) / elapsed,
        "p50_ms": _quantile(latencies, 0.5) * 1e3,
        "p99_ms": _quantile(latencies, 0.99) * 1e3,
        "first_byte_p50_ms": _quantile(first, 0.5) * 1e3,
        "first_byte_p99_ms": _quantile(first, 0.99) * 1e3,
    }


def main() -> None:
    """Reads the plan from the command line and prints the result as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--key", default="sk-bench")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--unique", action="store_true")
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--header", action="append", default=[], help="one more header, `name: value`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    plan = Plan(**vars(parser.parse_args()))
    print(json.dumps(uvloop.run(run(plan))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A closed-loop load generator: N keep-alive connections, each sends its next call when the last answer is complete.

It runs as a process of its own (`python -m benchmarks.load ...`) and prints one JSON line, so that its own CPU time is never counted
as the gateway's. Written on asyncio.Protocol and httptools because a generator that is slower than the gateway measures itself.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import heapq
import json
import os
import random
import resource
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

CRLF = "\r\n"
PROMPT = "Summarize the incident report of the last deployment in three sentences for an engineer on call, plainly."


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Pacer:
    """Calls functions at moments that are right to some microseconds.

    The timers of an event loop are right to a millisecond, and all that is due in one would go out at once: the calls that are measured
    would wait for each other, as those of independent clients do not. A timer of the kernel (`timerfd_create(2)`) wakes the loop instead.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        loop.add_reader(self._fd, self._on_time)

    def call_at(self, due: float, work: Callable[[], None]) -> None:
        """due: by `time.perf_counter`, which is the monotonic clock on Linux."""
        self._number += 1
        heapq.heappush(self._due, (due, self._number, work))
        if self._due[0][1] == self._number:
            self._arm()

    def _arm(self) -> None:
        due_ns = max(1, int(self._due[0][0] * 1e9))
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(due_ns // 10**9, due_ns % 10**9))
        self._libc.timerfd_settime(self._fd, 1, ctypes.byref(spec), None)  # 1: TFD_TIMER_ABSTIME

    def _on_time(self) -> None:
        os.read(self._fd, 8)
        while self._due and self._due[0][0] <= time.perf_counter():
            heapq.heappop(self._due)[2]()
        if self._due:
            self._arm()


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
    pacer: Pacer | None = None  # where calls are paced
    parts: tuple[bytes, bytes] | None = None  # made at the first request
    run: str = field(default_factory=lambda: secrets.token_hex(4))  # so that no run repeats the prompts of another

    def request(self) -> bytes:
        """The next request; with `unique` no two have the same prompt, so that no cache can answer."""
        self.sent += 1
        if self.parts is None:
            self.parts = self._parts()
        before, after = self.parts
        return b"%b%b-%08d%b" % (before, self.run.encode(), self.sent, after) if self.unique else before + after

    def _parts(self) -> tuple[bytes, bytes]:
        """A request up to its number and from there on, so that the generator has little to do between two calls."""
        number = f"{self.run}-{0:08d}"
        document = {
            "model": self.model,
            "messages": [
                {
                    "role": "system",
                    "content": "You are a careful assistant that answers in the language of the question. " * 3,
                },
                {"role": "user", "content": f"{PROMPT} (case {number})"},
            ],
            "temperature": 0.2,
            "max_tokens": 100,
        }
        if self.stream:
            document["stream"] = True
        body = json.dumps(document)
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\nx-heph-agent: bench\r\n"
            f"{''.join(f'{line}{CRLF}' for line in self.header)}content-length: {len(body)}\r\n\r\n"
        )
        before, _, after = (head + body).rpartition(number)
        return (before if self.unique else before + "00000000-00000000").encode(), after.encode()


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
            if self.due > now and plan.pacer is not None:
                plan.pacer.call_at(self.due, self._send)
                return
        self._send()

    def _send(self) -> None:
        assert self.transport is not None
        if self.transport.is_closing():  # the gateway has closed it, which is counted there
            return
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
    plan.pacer = Pacer(loop) if plan.rate else None
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

"""Calls that no client waits for: a stored answer that has gone stale is asked anew, as a call of the tenant that got it.

Such a call goes through every stage and transport, so it counts against the tenant's limits, is booked on its ledger and leaves a
record; the record's channel is `cache-refresh`. Nothing is sent to anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

from controlplane.contract.ids import new_id
from controlplane.contract.records import Outcome
from proxy.call import Call
from proxy.exchange import Exchange
from proxy.pipeline import Pipeline
from proxy.runtime import Runtime

CHANNEL = b"cache-refresh"
_LEFT_OUT = (b"idempotency-key",)  # an upstream would give the old answer again


class Silence:
    """A client's connection without a client."""

    write_paused = False
    date_line = b""

    def write(self, data: bytes) -> None:
        """Nobody hears it."""

    async def drain(self) -> None:
        """Never needed."""

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Whoever made the call runs it."""
        work.close()
        raise RuntimeError("a background call runs in the task that made it")

    def abort(self) -> None:
        """There is no connection."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """There is no next one."""


class Background:
    """Makes background calls."""

    def __init__(self, pipeline: Pipeline, runtime: Callable[[], Runtime | None]) -> None:
        """runtime: what is in force now; a background call does not run under the policy of a call long ago."""
        self._pipeline = pipeline
        self._runtime = runtime

    async def ask_again(self, call: Call) -> bool:
        """Asks what a call asked, anew; whether a good answer came, which the cache then has if it is one to keep."""
        runtime = self._runtime()
        if runtime is None:
            return False
        headers = {name: value for name, value in call.headers.items() if name not in _LEFT_OUT}
        headers |= {b"cache-control": b"no-cache", b"x-heph-channel": CHANNEL}
        again = Call(
            runtime,
            call.operation,
            call.path,
            headers,
            call.body,
            call_id=new_id("call"),
            started_us=time.time_ns() // 1000,
            started_ns=time.monotonic_ns(),
        )
        again.query = call.query
        again.peer = call.peer
        exchange = Exchange(Silence(), b"POST", call.path, headers, call.body, keep_alive=True, chunked=True)
        reply = self._pipeline.enter(again)
        await self._pipeline.serve(again, reply, exchange)
        return again.outcome is Outcome.OK

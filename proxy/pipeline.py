"""The life of a call; the only control flow. Stages decide, transports wait, and every call leaves exactly one record.

docs/explanation/life-of-a-call.md tells the same in prose.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from controlplane.contract.records import CallRecord, Outcome
from proxy import meter, refusals
from proxy.call import Call, ChunkStream, Reply, Stage, StreamBroken, TakingStage, Transport, tap
from proxy.dialects.openai_stream import DONE
from proxy.dialects.operations import Protocol as ClientProtocol
from proxy.dialects.operations import protocol_of
from proxy.exchange import Exchange
from proxy.headers import closing_comment, response_lines
from proxy.metrics import ProxyMetrics
from proxy.refusals import Refused, error_event, refuse, shape

_CLIENT_CLOSED_STATUS = 499

log = structlog.get_logger("proxy.pipeline")


class Records(Protocol):
    """Where settled calls go: the spool."""

    def append(self, record: CallRecord) -> bool:
        """Keeps the record; False when it had to be dropped, which is counted there."""
        ...


class MemoryCache(Protocol):
    """What can answer a call without waiting."""

    def lookup(self, call: Call) -> Reply | None:
        """A stored answer, at once, or None."""
        ...


class Pipeline:
    """Takes calls through stages and transports, out to the client, and into the spool.

    Every method that ends a call settles it first: costs summed, stages left in reverse, record stored. Only then do the
    last bytes go out, so that a client that saw a complete answer has its record on disk.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        transport: Transport,
        cache: MemoryCache,
        records: Records,
        metrics: ProxyMetrics,
        *,
        local: Mapping[str, Transport] | None = None,
    ) -> None:
        """local: what answers operations that never reach an upstream, by their name."""
        self._stages = tuple(stages)
        takers = [(at, stage) for at, stage in enumerate(stages) if isinstance(stage, TakingStage)]
        self._takers = tuple(reversed(takers))  # with their places among the stages
        self._transport = transport
        self._local = local or {}
        self._cache = cache
        self._records = records
        self._metrics = metrics

    def enter(self, call: Call, *, stages: int | None = None) -> Reply | None:
        """Runs the stages, and looks into the cache's memory; a Reply ends the call, None: it has to wait for `serve`.

        stages: only so many of them, for operations that need no route. Whatever happens, `answer` or `serve` must follow.
        """
        entered = call.entered
        try:
            for stage in self._stages[entered:stages]:
                reply = stage.enter(call)
                if reply is not None:
                    if stages is not None:
                        call.shortage = None  # what is answered here does not wait
                    return reply
                entered += 1
            return None if stages is not None else self._cache.lookup(call)
        except Exception as error:  # noqa: BLE001 - the one place that catches
            return self._internal(call, "a stage failed", error)
        finally:
            call.entered = entered

    def answer(self, call: Call, reply: Reply, exchange: Exchange) -> None:
        """Settles a call, and sends its complete reply."""
        if reply.refusal is not None:
            shape(reply, _protocol_of(call), call.call_id)
        call.reply = reply
        call.status = reply.status
        call.outcome = reply.outcome
        call.error_code = reply.error_code
        if call.client_gone:  # it left, but others waited for this answer
            call.outcome, call.status = Outcome.CLIENT_CLOSED, _CLIENT_CLOSED_STATUS
        else:
            call.response_bytes = len(reply.body)
        self._settle(call)
        lines = response_lines(call, reply, stream=False)
        call.responding = call.answered = True
        exchange.answer(reply.status, lines, reply.body)

    async def serve(self, call: Call, reply: Reply | None, exchange: Exchange) -> None:
        """Gets the reply from the transports, unless it is there already, and sends it at the client's pace.

        A client that left, a bug of ours and a server that stops all still end in a record; nothing is raised.
        """
        try:
            if call.shortage is not None:
                reply = await self._once_more(call)
            if reply is None:
                reply = await self._local.get(call.operation, self._transport).send(call)
            if reply.stream is None:
                self.answer(call, reply, exchange)
            else:
                await self._pump(call, reply, reply.stream, exchange)
        except asyncio.CancelledError:
            if call.client_gone:
                self._abandon(call)
            else:  # the server's time to drain is over
                self._end(call, refuse(refusals.NOT_READY, "the proxy is shutting down; try again"), exchange)
        except Exception as error:  # noqa: BLE001 - the one place that catches
            self._end(call, self._internal(call, "serving failed", error), exchange)

    async def _once_more(self, call: Call) -> Reply | None:
        """Asks for more of a limit that workers share, and takes the call up where it was refused; each limit is waited for once."""
        reply = None
        while call.shortage is not None:
            shortage, call.shortage = call.shortage, None
            await shortage()
            reply = self.enter(call)
        return reply

    def _end(self, call: Call, refusal: Reply, exchange: Exchange) -> None:
        """Ends a call that cannot go on: with the refusal, or inside a stream that has begun with an error event."""
        if not call.responding:
            self.answer(call, refusal, exchange)
            return
        call.outcome, call.error_code = refusal.outcome, refusal.error_code
        self._settle(call)
        if call.reply is not None and call.reply.stream is not None and not call.answered:
            call.answered = True
            if call.reply.raw:
                exchange.abort()
                return
            refused = refusal.refusal
            assert isinstance(refused, Refused), "only refusals end a call"  # noqa: S101
            exchange.end(error_event(refused.refusal, refused.message, _protocol_of(call), call.call_id))

    async def _pump(self, call: Call, reply: Reply, stream: ChunkStream, exchange: Exchange) -> None:
        """Chunks out as they come, at the client's pace; then the settlement; then the end."""
        call.reply = reply
        call.status = reply.status
        try:
            lines = response_lines(call, reply, stream=True)
            began_ns = _now_ns()
            keep = self._keeps_payload(call)
            call.responding = True
            if keep:
                call.response_kept = bytearray()
            exchange.begin(reply.status, lines)
            last = await self._copy(call, stream, exchange, keep=keep)
            if keep and not last:
                call.response_kept += reply.ending
            if exchange.blocked:
                await exchange.drain()
            call.waited_ns += _now_ns() - began_ns
        finally:
            stream.close()
        if call.client_gone:
            call.outcome = Outcome.CLIENT_CLOSED
        self._settle(call)
        if last:
            call.response_bytes += len(last)
        call.answered = True
        if not reply.raw:
            exchange.end(closing_comment(call) + (last or reply.ending or DONE))
        elif last:
            exchange.abort()
        else:
            exchange.end(b"")

    async def _copy(self, call: Call, stream: ChunkStream, exchange: Exchange, *, keep: bool) -> bytes:
        """Copies the stream to the client; b"" when it ended well, else the error event to end with."""
        read, send = stream.read, exchange.send

        def take(chunk: bytes) -> bool:
            """The usual chunk of a running stream, in the callback of the upstream's socket."""
            if call.client_gone or exchange.blocked or not call.first_token_us:
                return False
            call.response_bytes += len(chunk)
            send(chunk)
            return True

        if not keep:
            tap(stream, take)
        try:
            while True:
                chunk = await read()
                if not chunk:
                    call.outcome = Outcome.OK
                    return b""
                if not call.first_token_us:
                    call.first_token_us = (_now_ns() - call.started_ns) // 1000
                if keep and len(call.response_kept) < meter.PAYLOAD_BYTES_MAX:
                    call.response_kept += chunk
                if call.client_gone:
                    continue
                call.response_bytes += len(chunk)
                if exchange.blocked:
                    await exchange.drain()
                send(chunk)
        except StreamBroken as broken:
            refusal = refusals.TIMED_OUT if broken.outcome is Outcome.TIMED_OUT else refusals.BROKEN_STREAM
            call.outcome = broken.outcome
            call.error_code = refusal.code
            return broken.event or error_event(refusal, str(broken), _protocol_of(call), call.call_id)

    def _abandon(self, call: Call) -> None:
        """The client left and nobody else wants the answer: the upstream's work is cancelled already."""
        call.client_gone = True
        call.outcome, call.status = Outcome.CLIENT_CLOSED, _CLIENT_CLOSED_STATUS
        self._settle(call)

    def _internal(self, call: Call, what: str, error: Exception) -> Reply:
        """A bug of ours, in the one place that catches: logged with the call's id, counted, answered with a clear 500."""
        log.error(what, call_id=call.call_id, operation=call.operation, exc_info=error)
        return refuse(refusals.INTERNAL, f"the proxy failed; its operator finds the reason under {call.call_id}")

    def _settle(self, call: Call) -> None:
        """Ends the accounting of a call, once: costs, stages in reverse, record, metrics. Nothing else runs in between."""
        if call.settled:
            return
        call.settled = True
        meter.sum_up(call)
        entered, call.entered = call.entered, 0
        for at, stage in self._takers:
            if at < entered:
                try:
                    stage.leave(call)
                except Exception as error:  # noqa: BLE001 - the other stages must be left all the same
                    self._failed(call, f"leaving {stage.name} failed", error)
        try:
            record = meter.record_of(call)
            self._records.append(record)
            self._metrics.call_settled(record)
        except Exception as error:  # noqa: BLE001 - the client has its answer coming
            self._failed(call, "the record of a call could not be kept", error)

    def _failed(self, call: Call, what: str, error: Exception) -> None:
        self._metrics.bound_hit("settlement_failed")
        log.error(what, call_id=call.call_id, exc_info=error)

    @staticmethod
    def _keeps_payload(call: Call) -> bool:
        return call.identity is not None and call.identity.tenant.payloads.store


def _protocol_of(call: Call) -> ClientProtocol:
    """Whose client this is."""
    return protocol_of(call.operation, call.headers)


def _now_ns() -> int:
    return time.monotonic_ns()

"""What a batch has used, booked once: its results are read line by line when it has ended, and a record is made for each of its models.

The id of such a record follows from the batch and the model, and the ledger knows the ids that it has booked for as long as it knows the
amounts (`Ledger.has_booked`): both come from the same record in the spool. So whoever is killed between the results and the booking, or between
the booking and the note that it is done, reads the results again and books what is not there yet. One worker of a host does this.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import msgspec
import structlog

from controlplane.contract.ids import new_id, ulid
from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptRecord, CallRecord, Outcome
from proxy.background import Silence
from proxy.batch_sums import Bill, Used
from proxy.call import Call
from proxy.dialects.filed import Filed, decode_filed
from proxy.exchange import Exchange
from proxy.ledger import BATCH_USAGE, Ledger
from proxy.metrics import ProxyMetrics
from proxy.pipeline import Pipeline, Records
from proxy.runtime import KeyIdentity, Runtime
from proxy.transports.batches import SETTLEMENT
from proxy.transports.owners import BatchModel, Owners, Promised, Unsettled
from proxy.transports.promises import Promises

_OK, _GONE = 200, 404
_REQUESTS_TAG, _BATCH_TAG = "heph-batch-requests", "heph-batch"

log = structlog.get_logger("proxy.batch_bills")


class BatchBills:
    """Asks for batches as their tenants, reads what they have left, and books it."""

    def __init__(
        self,
        pipeline: Pipeline,
        records: Records,
        ledger: Ledger,
        owners: Owners,
        promises: Promises,
        settings: ProxySettings,
        metrics: ProxyMetrics,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """records: where the records go that are booked; the ledger must be theirs."""
        self._pipeline = pipeline
        self._records = records
        self._ledger = ledger
        self._owners = owners
        self._promises = promises
        self._settings = settings
        self._metrics = metrics
        self._now_us = now_us
        self.booked_total = 0  # batches whose usage was booked, those that used nothing included
        self.given_up_total = 0  # batches whose usage nobody can learn any more
        self.unknown_total = 0  # lines that were answered and whose usage could not be read

    async def look(self, runtime: Runtime, identity: KeyIdentity, item: Unsettled, batch: Promised) -> None:
        """Books a batch if it has ended; safe to call again, and at once with another. Raises OwnersUnavailable.

        One whose usage cannot be learned within `batch_settle_s_max` is given up.
        """
        waited_s = self._now_us() / 1e6 - batch.made_ms / 1e3
        if not await self._settle(runtime, identity, item, batch) and waited_s > self._settings.batch_settle_s_max:
            await self._give_up(item)

    async def _settle(self, runtime: Runtime, identity: KeyIdentity, item: Unsettled, batch: Promised) -> bool:
        """Whether there is nothing more to learn of a batch."""
        base = "/v1/messages/batches" if batch.of_anthropic else "/v1/batches"
        get = "messages_batches_get" if batch.of_anthropic else "batches_get"
        told = await self._ask(runtime, identity, get, f"{base}/{item.name}")
        if told.status == _GONE and told.asked:
            await self._give_up(item)
            return True
        said = _said(told.body)
        if told.status != _OK or said is None or not said.ended:
            return False
        bill = Bill(batch, self._settings.batch_line_bytes_max)
        if batch.of_anthropic or said.output_file_id:  # what failed cost nothing
            operation, path = (
                ("messages_batches_results", f"{base}/{item.name}/results")
                if batch.of_anthropic
                else ("files_content", f"/v1/files/{said.output_file_id}/content")
            )
            heard = await self._ask(runtime, identity, operation, path, bill)
            if heard.status == _GONE and heard.asked:
                self.given_up_total += not bill.add_summary(said)
            elif heard.status != _OK or not heard.whole:
                return False  # again later, from the beginning
        self._book(runtime, item, batch, bill)
        await self._owners.give_up(item)
        self._promises.settled(item)
        return True

    def _book(self, runtime: Runtime, item: Unsettled, batch: Promised, bill: Bill) -> None:
        """A record for each model, unless it is there. Nothing else runs in between."""
        self.unknown_total += bill.unknown
        if bill.left_out:
            self._metrics.bound_hit("batch_line_bytes_max")
        for used in bill.used.values():
            record = self._record(runtime, item, batch, used)
            if self._ledger.has_booked(record.call_id):
                continue
            self._records.append(record)
            self._metrics.call_settled(record)
            for attempt in record.attempts:
                self._metrics.attempt_finished(attempt)
                self._metrics.items_found(attempt.items)
        self.booked_total += 1

    def _record(self, runtime: Runtime, item: Unsettled, batch: Promised, used: Used) -> CallRecord:
        now_us, model = self._now_us(), used.model
        attempt = AttemptRecord(
            deployment=model.deployment,
            upstream=batch.upstream,
            model=model.model,
            started_us=now_us,
            latency_us=0,
            status=_OK,
            tokens=used.tokens,
            cost_nanousd=used.nanousd,
            cost_state=used.state,
            price_version=used.price_version,
            items=tuple(used.items.values()),
        )
        return CallRecord(
            call_id=_call_id(item, batch, model),
            started_us=now_us,
            latency_us=0,
            operation=BATCH_USAGE,
            outcome=Outcome.OK,
            status=_OK,
            tenant=item.tenant,
            key_id=item.key_id,
            agent=batch.agent,
            session=batch.session,
            user=batch.user,
            tags=dict(batch.tags) | {_BATCH_TAG: item.name, _REQUESTS_TAG: str(used.requests)},
            channel=SETTLEMENT,
            alias=model.alias,
            model=model.model,
            deployment=model.deployment,
            tokens=used.tokens,
            cost_nanousd=used.nanousd,
            cost_state=used.state,
            price_version=used.price_version,
            snapshot_version=runtime.version,
            attempts=(attempt,),
        )

    async def _give_up(self, item: Unsettled) -> None:
        self.given_up_total += 1
        log.warning("a batch is given up before its usage could be read", batch=item.name, tenant=item.tenant)
        await self._owners.give_up(item)
        self._promises.settled(item)

    async def _ask(
        self, runtime: Runtime, identity: KeyIdentity, operation: str, path: str, bill: Bill | None = None
    ) -> Heard:
        """One call of the tenant, whose answer nobody hears but us."""
        call = Call(
            runtime,
            operation,
            path,
            {},
            b"",
            call_id=new_id("call"),
            started_us=time.time_ns() // 1000,
            started_ns=time.monotonic_ns(),
        )
        call.identity, call.channel = identity, SETTLEMENT
        heard = Heard(path, bill)
        await self._pipeline.serve(call, None, heard)
        heard.asked = bool(call.attempts)
        return heard


class Heard(Exchange):
    """An answer that goes to a bill instead of a client."""

    __slots__ = ("asked", "bill", "status", "whole")

    def __init__(self, path: str, bill: Bill | None) -> None:
        super().__init__(Silence(), b"GET", path, {}, b"", keep_alive=True, chunked=True)
        self.bill = bill
        self.asked = False  # an upstream; else it is we who have refused, and may know better later
        self.status = 0
        self.whole = False  # its end was seen

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """A whole answer."""
        del lines
        self.status, self.body, self.whole = status, body, True
        if self.bill is not None and status == _OK:
            self.bill.feed(body)
            self.bill.finish()

    def begin(self, status: int, lines: bytes) -> None:
        """An answer in pieces."""
        del lines
        self.status, self.started = status, True

    def send(self, chunk: bytes) -> None:
        """A piece of it."""
        if self.bill is not None:
            self.bill.feed(chunk)

    def end(self, last: bytes) -> None:
        """Its end."""
        self.send(last)
        self.whole = self.ended = True
        if self.bill is not None:
            self.bill.finish()

    def abort(self) -> None:
        """It broke off."""
        self.gone = True


def _call_id(item: Unsettled, batch: Promised, model: BatchModel) -> str:
    """The same for the same batch and model, whoever asks and when."""
    text = f"{item.tenant}\0{item.name}\0{model.alias}".encode()
    return f"call_{ulid(now_ms=batch.made_ms, entropy=hashlib.blake2b(text, digest_size=10).digest())}"


def _said(body: bytes | None) -> Filed | None:
    try:
        return decode_filed(body or b"")
    except (msgspec.DecodeError, RecursionError):
        return None

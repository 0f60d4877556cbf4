"""Books what responses in the background and batches used, whether or not anybody comes back for them.

Such a response is answered before its usage is known. It is written down with its owner as unsettled; whoever first sees it finished books it:
its client, or this loop, which asks for it as a call of its tenant in the channel `settlement`. So a response that is made and never
read is not free. One worker of a host does this for all of them, and it alone books batches (`proxy.batch_bills`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from controlplane.contract.ids import new_id
from proxy.background import Silence
from proxy.batch_bills import BatchBills
from proxy.call import Call
from proxy.exchange import Exchange
from proxy.pipeline import Pipeline
from proxy.runtime import KeyIdentity, Runtime
from proxy.transports.batches import SETTLEMENT, Batches
from proxy.transports.kept import Kept
from proxy.transports.owners import Owners, OwnersUnavailable, Unsettled

CHANNEL = SETTLEMENT
LOOK_S_MAX = 60.0  # between two looks at the same response
BATCH_LOOK_S_MAX = 300.0  # and at the same batch, which may take a day
ASIDE_AFTER_S = 2.0  # a look that takes longer, such as at large results, keeps no other waiting
ASIDE_MAX = 4  # such looks at once, one of them never at a batch
_GONE = 404
_Name = tuple[str, str]  # tenant and id
_Place = tuple[str, str, bool]  # tenant, id, and whether it is known to have ended

log = structlog.get_logger("proxy.settlement")


class Settlement:
    """Looks at unsettled responses until they are settled or given up."""

    def __init__(
        self,
        pipeline: Pipeline,
        owners: Owners,
        runtime: Callable[[], Runtime | None],
        *,
        every_s: float,
        bills: BatchBills | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        aside_after_s: float = ASIDE_AFTER_S,
    ) -> None:
        """every_s: how soon a new one is looked at; the pause doubles with each look that finds it unfinished. bills: None: batches are left alone.

        aside_after_s: a look that takes longer goes on beside the others.
        """
        self._pipeline = pipeline
        self._owners = owners
        self._runtime = runtime
        self._every_s = every_s
        self._bills = bills
        self._monotonic = monotonic
        self._aside_after_s = aside_after_s
        self._aside: dict[_Name, asyncio.Task[None]] = {}  # looks under way
        self._next: dict[_Place, tuple[float, float]] = {}  # when to look again, and the pause after that
        self.looks_total = 0
        self.given_up_total = 0  # responses whose usage nobody can learn any more

    @property
    def waiting(self) -> int:
        """Unsettled responses, as of the last round."""
        return len(self._next)

    @property
    def aside(self) -> int:
        """Looks that are under way."""
        return len(self._aside)

    async def run(self) -> None:
        """Looks, round after round, until it is cancelled; then the looks that are under way end, too."""
        try:
            while True:
                await asyncio.sleep(self._every_s)
                try:
                    await self.look_at_all()
                except OwnersUnavailable as error:
                    log.warning("unsettled responses cannot be listed", reason=str(error))
                except (
                    Exception
                ):  # a bug of ours, with one of them: whatever else is unsettled must be booked all the same
                    log.exception("an unsettled response could not be looked at")
        finally:
            for task in self._aside.values():
                task.cancel()
            await asyncio.gather(*self._aside.values(), return_exceptions=True)

    async def look_at_all(self) -> None:
        """One round: every response that is due. Raises OwnersUnavailable."""
        for name, task in list(self._aside.items()):
            if task.done():
                self._aside.pop(name).result()
        open_now = {_place_of(item): item for item in await self._owners.unsettled() if item.claim is None}
        self._next = {place: self._next.get(place, (self._monotonic(), self._every_s)) for place in open_now}
        for place, item in open_now.items():
            due, pause_s = self._next[place]
            if self._monotonic() < due or (item.tenant, item.name) in self._aside:
                continue
            if not self._has_room(item):
                continue
            most_s = LOOK_S_MAX if item.batch is None else BATCH_LOOK_S_MAX
            self._next[place] = (self._monotonic() + pause_s, min(2 * pause_s, most_s))
            await self.look_soon(item)

    async def look_soon(self, item: Unsettled) -> None:
        """Looks at one, unless somebody does or too many are looked at; one that takes long goes on when this returns. Raises OwnersUnavailable."""
        name = item.tenant, item.name
        task = self._aside.get(name)
        if task is None:
            if not self._has_room(item):
                return
            task = self._aside[name] = asyncio.create_task(self.look(item), name="settlement-look")
        await asyncio.wait([task], timeout=self._aside_after_s)
        if task.done() and self._aside.get(name) is task:
            self._aside.pop(name).result()

    def _has_room(self, item: Unsettled) -> bool:
        """Whether it may be looked at beside those that are; the results of batches, which may take hours, leave room for a response."""
        return len(self._aside) < ASIDE_MAX - (item.batch is not None)

    async def look(self, item: Unsettled) -> None:
        """Asks for one as its tenant; it is booked on the way if it is finished. Raises OwnersUnavailable."""
        runtime = self._runtime()
        identity = None if runtime is None else _identity(runtime, item)
        if runtime is None or identity is None:
            return  # its tenant may come back with another snapshot
        self.looks_total += 1
        if item.batch is not None:
            if self._bills is not None:
                await self._bills.look(runtime, identity, item, item.batch)
            return
        call = Call(
            runtime,
            "responses_get",
            f"/v1/responses/{item.name}",
            {},
            b"",
            call_id=new_id("call"),
            started_us=time.time_ns() // 1000,
            started_ns=time.monotonic_ns(),
        )
        call.identity, call.channel = identity, CHANNEL
        await self._pipeline.serve(
            call, None, Exchange(Silence(), b"GET", call.path, {}, b"", keep_alive=True, chunked=True)
        )
        if call.status == _GONE:
            self.given_up_total += not call.tokens.total
            await self._owners.give_up(item)


def _place_of(item: Unsettled) -> _Place:
    """A batch of which is known that it has ended is another one: it is looked at at once."""
    return item.tenant, item.name, item.batch is not None and item.batch.ended


def _identity(runtime: Runtime, item: Unsettled) -> KeyIdentity | None:
    """The key that made it, else any other of its tenant."""
    found: KeyIdentity | None = None
    for identity in runtime.keys.values():
        if identity.tenant.id == item.tenant:
            found = identity
            if identity.key.id == item.key_id:
                break
    return found


def watch_kept(
    watch: Callable[[str, str, Callable[[], float]], None],
    owners: Owners,
    kept: Kept,
    settlement: Settlement,
    batches: Batches,
    bills: BatchBills,
) -> None:
    """Shows the figures of what upstreams keep."""
    disk = owners.disk
    watch(
        "owners",
        "Things kept at upstreams whose owner this host knows, as of this worker's last write.",
        lambda: disk.entries,
    )
    watch("owners_bytes", "Size of the file of owners, as of this worker's last write.", lambda: disk.bytes_used)
    watch("owners_evicted_total", "Owners forgotten to make room.", lambda: disk.evicted_total)
    watch("owners_lost_total", "Owners that could not be written down.", lambda: owners.lost_total)
    watch(
        "owners_unavailable_total",
        "Look-ups and writes of owners that failed or took too long.",
        lambda: owners.unavailable_total,
    )
    watch("owners_forged_total", "Owners that were found and that we did not write.", lambda: owners.forged_total)
    watch(
        "owners_refused_total",
        "Ids that the asking tenant did not make.",
        lambda: kept.refused_total + batches.refused_total,
    )
    watch(
        "owners_unsettled",
        "Responses in the background and batches whose usage is not known yet.",
        lambda: settlement.waiting,
    )
    watch(
        "owners_held",
        "Responses in the background and batches whose cost this worker holds against budgets.",
        lambda: kept.promises.held,
    )
    watch("owners_unsettled_looks_total", "Looks at those.", lambda: settlement.looks_total)
    watch(
        "owners_unsettled_looks",
        "Looks at those that are under way: long ones, at large results, go on beside the others.",
        lambda: settlement.aside,
    )
    watch(
        "owners_claims_released_total",
        "Responses in the background that were about to be booked when a worker was killed, and are looked at again.",
        lambda: kept.promises.released_total,
    )
    watch(
        "owners_estimated_total",
        "Responses in the background booked at an estimate, because their upstream does not tell what they used.",
        lambda: kept.estimated_total,
    )
    watch(
        "owners_given_up_total",
        "Responses in the background and batches whose usage was never learned.",
        lambda: settlement.given_up_total + bills.given_up_total + owners.unsettled_disk.evicted_total,
    )


def watch_batches(watch: Callable[[str, str, Callable[[], float]], None], batches: Batches, bills: BatchBills) -> None:
    """Shows the figures of batches."""
    watch(
        "batches_doubtful_total",
        "Batches that an upstream may have made without saying so: look there for some that nobody here knows.",
        lambda: batches.doubtful_total,
    )
    watch("batches_booked_total", "Batches that have ended and whose usage was booked.", lambda: bills.booked_total)
    watch(
        "batches_unknown_total",
        "Gaps in the results of booked batches: lines without usage that could be read. Their cost is an estimate.",
        lambda: bills.unknown_total,
    )

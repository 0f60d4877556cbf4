"""What responses in the background and batches may cost at worst: held against their tenants' budgets until their usage is booked.

They are answered before they are made. If a reservation ended with the answer, a tenant could begin any number of them on one budget. So the
reservation stays, in the worker that began it, until somebody has settled it: this worker, or any of its host, of which the file
of what is unsettled tells. A restart forgets what is held for responses, which take minutes; what is held for batches, which take a day, is
found in that file, and held again by the same worker. What was used is booked all the same.

Of a batch its money is held, and none of its tokens: most limits of tokens are rates, and a rate that is held for a day lets nobody else by.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from controlplane.contract.snapshot import TenantPolicy
from proxy.call import Call, Reply
from proxy.ledger import Ledger, Refused, Reservation
from proxy.quotas.account import Account, Line
from proxy.quotas.plan import Who
from proxy.transports.owners import Owners, OwnersUnavailable, Unsettled

Refill = Callable[[tuple[tuple[Line, int], ...]], Awaitable[None]]
Refuse = Callable[[TenantPolicy, Refused, int], Reply]
PolicyOf = Callable[[str], TenantPolicy | None]


class Promises:
    """The reservations of one worker's responses in the background and batches."""

    def __init__(
        self,
        owners: Owners,
        ledger: Ledger,
        *,
        unsettled_max: int,
        every_s: float,
        worker: str = "0",
        workers: int = 1,
        policy_of: PolicyOf = lambda tenant: None,  # noqa: ARG005 - no tenants yet
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """unsettled_max: of this host; more are refused. every_s: between two looks. worker: its name among its siblings.

        workers: how many there are; what those beyond them had begun is the first one's.
        """
        self._owners = owners
        self._ledger = ledger
        self._unsettled_max = unsettled_max
        self._every_s = every_s
        self._policy_of = policy_of
        self._now_us = now_us
        self._held: dict[tuple[str, str], Reservation] = {}  # by tenant and id
        self._unsettled = 0  # of this host, as far as is known
        self._restored = False
        self.worker = worker
        self.life = time.time_ns()
        self.released_total = 0  # claims of calls that were killed before their record was in the spool
        self._workers = workers
        self._recovered = False
        self.refill: Refill | None = None  # asks Redis for larger leases; None: there is no Redis

    @property
    def held(self) -> int:
        """Responses and batches whose cost is held."""
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether one more could push out one that is not settled, which would then be free."""
        return max(len(self._held), self._unsettled) >= self._unsettled_max

    async def reserve(self, call: Call, nanousd: int, *, aliases: Sequence[str]) -> Refused | None:
        """Has the call hold what a batch may cost at worst; or says which ceiling is in its way.

        Asks for larger leases once, where there are any. aliases: of all its models; what limits one of them holds the whole.
        """
        assert call.identity is not None, "identify comes first"  # noqa: S101
        policy = call.identity.tenant
        if self._ledger.plan(policy, now_us=self._now_us()).free:
            return None
        key, tags = call.identity.key.id, call.tags
        everybody = [Who(key, call.agent, call.user, call.session, alias, tags) for alias in aliases]
        for last in (False, True):
            now_us = self._now_us()
            accounts, lines = self._meets(policy, everybody, now_us)
            held = self._ledger.hold(accounts, lines, tokens=0, nanousd=nanousd, now_us=now_us)
            if isinstance(held, Reservation):
                call.reservation = held
                if held.warnings:
                    call.quota_warning = f"soft {', '.join(dict.fromkeys(one.scope for one in held.warnings))}"
                return None
            if last or self.refill is None or not self._ledger.short:
                return held
            await self.refill(self._ledger.short)
        return None

    def let_go(self, call: Call) -> None:
        """Nothing came of it: gives back what the call holds, if it does."""
        held, call.reservation = call.reservation, None
        if isinstance(held, Reservation):
            self._ledger.release(held)

    def hold(self, call: Call, item: Unsettled) -> None:
        """The call's reservation outlives it."""
        self._unsettled = max(self._unsettled, self._owners.unsettled_disk.entries)
        if isinstance(call.reservation, Reservation):
            reservation, call.reservation = call.reservation, None
            self._ledger.outlive(reservation)
            self.settled(item)  # held already, if it was found in the file before this
            self._held[item.tenant, item.name] = reservation

    def settled(self, item: Unsettled) -> None:
        """What it has used is on a record that is about to be booked, or just was."""
        held = self._held.pop((item.tenant, item.name), None)
        if held is not None:
            self._ledger.release(held)

    async def look(self) -> None:
        """Gives back what is held for what others have settled, or given up. Raises OwnersUnavailable."""
        if self._restored and self._recovered and not (self._held or self.full):
            return
        before = list(self._held)
        unsettled = await self._owners.unsettled()
        self._unsettled = len(unsettled)
        if not self._recovered:
            for item in unsettled:
                await self._recover(item)
            self._recovered = True
        if not self._restored:
            lacking = [item for item in unsettled if not self._restore(item)]
            self._restored = not lacking
        names = {(item.tenant, item.name) for item in unsettled}
        for key in before:
            if key not in names and key in self._held:
                self._ledger.release(self._held.pop(key))

    async def run(self) -> None:
        """Looks for ever; cancel it to stop."""
        while True:
            with contextlib.suppress(OwnersUnavailable):  # they stay held, and it is counted there
                await self.look()
            await asyncio.sleep(self._every_s)

    async def _recover(self, item: Unsettled) -> None:
        """Ends a claim of an earlier life: the ledger knows whether its record is in the spool. Raises OwnersUnavailable."""
        claim = item.claim
        if claim is None or claim.life == self.life:
            return
        if not self._succeeds(claim.worker):
            return
        if self._ledger.has_booked(claim.call_id):
            await self._owners.confirm(item)
        else:
            await self._owners.release(item)
            self.released_total += 1

    def _meets(
        self, policy: TenantPolicy, everybody: Sequence[Who], now_us: int
    ) -> tuple[tuple[Account, ...], tuple[Line, ...]]:
        """What any of these moves and meets, each once."""
        met = [self._ledger.meets(policy, who, now_us=now_us) for who in everybody]
        accounts = {id(account): account for found, _ in met for account in found}
        lines = {id(line): line for _, found in met for line in found}
        return tuple(accounts.values()), tuple(lines.values())

    def _succeeds(self, worker: str) -> bool:
        """Whether what a worker had begun is this one's now: its own, and for the first one that of workers that there are no more."""
        return worker == self.worker or (self.worker == "0" and worker.isdigit() and int(worker) >= self._workers)

    def _restore(self, item: Unsettled) -> bool:
        """Holds again what an earlier life of this worker held; False if its tenant is not known yet."""
        batch = item.batch
        if batch is None or not self._succeeds(batch.worker) or (item.tenant, item.name) in self._held:
            return True
        policy = self._policy_of(item.tenant)
        if policy is None:
            return False
        tags = dict(batch.tags)
        everybody = [
            Who(item.key_id, batch.agent, batch.user, batch.session, model.alias, tags)
            for model in batch.batched.models
        ]
        accounts, _ = self._meets(policy, everybody, self._now_us())
        held = self._ledger.hold(accounts, (), tokens=0, nanousd=batch.batched.nanousd, now_us=self._now_us())
        if isinstance(held, Reservation):
            self._ledger.outlive(held)
            self._held[item.tenant, item.name] = held
        return True

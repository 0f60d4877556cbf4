"""What responses in the background may cost at worst: held against their tenants' budgets until their usage is booked.

Such a response is answered before it is made. If its reservation ended with the answer, a tenant could begin any number of them on one budget. So the
reservation stays, in the worker that began the response, until somebody has settled it: this worker, or any of its host, of which the file
of what is unsettled tells. A restart forgets what is held; what was used is booked all the same.
"""

from __future__ import annotations

import asyncio

from proxy.call import Call
from proxy.ledger import Ledger, Reservation
from proxy.transports.owners import Owners, OwnersUnavailable, Unsettled


class Promises:
    """The reservations of one worker's responses in the background."""

    def __init__(self, owners: Owners, ledger: Ledger, *, unsettled_max: int, every_s: float) -> None:
        """unsettled_max: responses of this host; more are refused. every_s: between two looks."""
        self._owners = owners
        self._ledger = ledger
        self._unsettled_max = unsettled_max
        self._every_s = every_s
        self._held: dict[tuple[str, str], Reservation] = {}  # by tenant and id
        self._unsettled = 0  # of this host, as far as is known

    @property
    def held(self) -> int:
        """Responses whose cost is held."""
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether one more could push out one that is not settled, which would then be free."""
        return max(len(self._held), self._unsettled) >= self._unsettled_max

    def hold(self, call: Call, item: Unsettled) -> None:
        """The call's reservation outlives it."""
        self._unsettled = max(self._unsettled, self._owners.unsettled_disk.entries)
        if isinstance(call.reservation, Reservation):
            reservation, call.reservation = call.reservation, None
            self._ledger.outlive(reservation)
            self._held[item.tenant, item.name] = reservation

    def settled(self, item: Unsettled) -> None:
        """What it has used is on a record that is about to be booked."""
        held = self._held.pop((item.tenant, item.name), None)
        if held is not None:
            self._ledger.release(held)

    async def look(self) -> None:
        """Gives back what is held for responses that others have settled, or given up. Raises OwnersUnavailable."""
        if not (self._held or self.full):
            return
        before = list(self._held)
        unsettled = await self._owners.unsettled()
        self._unsettled = len(unsettled)
        names = {(item.tenant, item.name) for item in unsettled}
        for key in before:
            if key not in names and key in self._held:
                self._ledger.release(self._held.pop(key))

    async def run(self) -> None:
        """Looks for ever; cancel it to stop."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except OwnersUnavailable:
                continue  # they stay held, and it is counted there

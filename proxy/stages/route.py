"""Where to: the alias's deployments in the order in which they are to be tried, and until when."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import ClassVar

from controlplane.contract.records import Outcome
from proxy import refusals
from proxy.balance import Balancer
from proxy.call import Call, Reply
from proxy.refusals import refuse


class RouteStage:
    """Finds the route, fixes the deadline, and has the balancer put the candidates in order.

    copy: sends an answered call once more, to its route's shadow and to deployments that are to be probed; sick: deployments whose
    breaker is not closed.
    """

    name: ClassVar[str] = "route"

    def __init__(
        self,
        balancer: Balancer,
        *,
        timeout_s_max: float,
        copy: Callable[[Call], None] = lambda _: None,
        sick: Collection[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._balancer = balancer
        self._timeout_s_max = timeout_s_max
        self._copy = copy
        self._sick = sick
        self._monotonic = monotonic

    def enter(self, call: Call) -> Reply | None:
        """Refuses an alias that has no route, and a timeout that is no number."""
        assert call.view is not None, "decode comes first"  # noqa: S101
        entry = call.runtime.routes.get(call.view.model)
        if entry is None or not entry.groups:
            message = f"there is no model `{call.view.model[:128]}`; GET /v1/models lists those that are there"
            return refuse(refusals.NO_ROUTE, message, param="model")
        if call.operation not in entry.serves:
            narrowed = entry.narrowed.get(call.operation)
            if narrowed is None:
                message = f"model `{call.view.model[:128]}` does not serve {call.operation}: none of its upstreams does"
                return refuse(refusals.NO_ROUTE, message, param="model")
            entry = narrowed
        timeout_s = entry.route.timeout_s
        if timeout_s > self._timeout_s_max:
            timeout_s = self._timeout_s_max
        asked = call.headers.get(b"x-heph-timeout-ms")
        if asked is not None:
            if not asked.isdigit() or len(asked) > 9 or int(asked) == 0:
                return refuse(refusals.MALFORMED, "x-heph-timeout-ms must be a positive number of milliseconds")
            call.patience = min(1.0, int(asked) / 1000 / timeout_s)
            timeout_s = min(timeout_s, int(asked) / 1000)
        call.deadline = self._monotonic() + timeout_s
        call.route = entry
        call.candidates = entry.plain if entry.plain is not None else self._balancer.order(call, entry)
        return None

    def leave(self, call: Call) -> None:
        """Remembers where the conversation is at home, and copies the call, where its route asks for that."""
        entry, reply = call.route, call.reply
        if entry is None or reply is None or call.outcome is not Outcome.OK:
            return
        if entry.route.affinity is not None and call.attempts and not call.fell_back:
            self._balancer.served(call, reply.deployment)
        if entry.shadow is not None or self._sick:
            self._copy(call)

"""A bound on how long a client may take to send its body, for every route at once."""

from __future__ import annotations

import asyncio

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage, WebSocketReceiveMessage

from controlplane.api.counters import ApiCounters
from controlplane.errors import HephaestusError


class SlowBody(HephaestusError):
    """The request's body did not arrive in time."""

    code = "slow_body"
    status = 408


class BodyDeadline:
    """ASGI middleware: the body must be there `timeout_s` after the request's head; what comes after it may take any time."""

    def __init__(self, app: ASGIApp, *, timeout_s: float, counters: ApiCounters) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app with a `receive` that gives up."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        complete = False

        async def receive_in_time() -> HTTPReceiveMessage | WebSocketReceiveMessage:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                self._counters.slow_bodies.inc()
                raise SlowBody(f"the request's body did not arrive within {self._timeout_s:g} seconds") from None
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)

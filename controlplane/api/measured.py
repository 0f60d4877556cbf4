"""Counts and times every request by its route; a route is a template, so a client cannot make new ones."""

from __future__ import annotations

import time

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.metrics import ApiMetrics


class Measured:
    """ASGI middleware around every routed request."""

    def __init__(self, app: ASGIApp, *, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app and notes how it answered."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = str(scope.get("path_template", "")) or "mounted"
            self._metrics.requests.labels(route, f"{status // 100}xx" if status else "none").inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

"""Everything that is no call: liveness, readiness, metrics, and what is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from proxy import refusals
from proxy.call import Call, Headers, Reply
from proxy.metrics import ProxyMetrics
from proxy.refusals import Refusal, refuse

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # ASGI's own type

_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_encode = msgspec.json.Encoder().encode


class Ops:
    """Answers operators and probes; costs no record and needs no key.

    not_ready: why this worker should get no traffic now; an empty string if it should.
    """

    def __init__(self, metrics: ProxyMetrics, not_ready: Callable[[], str]) -> None:
        self._metrics = metrics
        self._not_ready = not_ready

    async def answer(self, path: str, method: str, send: Send) -> None:
        """One request that is no call."""
        if method not in ("GET", "HEAD"):
            refusal = refusals.METHOD_NOT_ALLOWED if path in ("/livez", "/readyz", "/metrics") else refusals.NOT_FOUND
            await self.refuse(refusal, f"{method} {path[:128]} is not something this proxy serves", send)
        elif path == "/livez":
            await _send(send, 200, [_JSON], b'{"status":"alive"}')
        elif path == "/readyz":
            reason = self._not_ready()
            body = _encode({"status": "not ready", "reason": reason} if reason else {"status": "ready"})
            await _send(send, 503 if reason else 200, [_JSON], body)
        elif path == "/metrics":
            await _send(send, 200, [_TEXT], self._metrics.render())
        else:
            message = f"there is no {path[:128]}; the proxy serves /v1/chat/completions, /v1/embeddings and /v1/models"
            await self.refuse(refusals.NOT_FOUND, message, send)

    async def refuse(self, refusal: Refusal, message: str, send: Send) -> None:
        """A refusal of something that never became a call."""
        reply = refuse(refusal, message)
        headers = [*reply.headers, (b"x-heph-error-source", refusal.source.encode())]
        await _send(send, reply.status, headers, reply.body)


def models_reply(call: Call, path: str) -> Reply:
    """The aliases that this key may use, in OpenAI's shape; or one of them, by its name in the path."""
    identity = call.identity
    assert identity is not None, "identify comes first"  # noqa: S101
    allowed = identity.models
    names = sorted(name for name in call.runtime.routes if allowed is None or name in allowed)
    created = call.runtime.snapshot.created_us // 1_000_000
    _, _, wanted = path.partition("models/")
    if wanted and wanted not in names:
        return refuse(refusals.NO_ROUTE, f"there is no model `{wanted[:128]}` for this key", param="model")
    rows = [{"id": name, "object": "model", "created": created, "owned_by": "hephaestus"} for name in names]
    document: object = {"object": "list", "data": rows}
    if wanted:
        document = rows[names.index(wanted)]
    reply = Reply(200, [_JSON], body=_encode(document), source="gateway")
    reply.complete = True
    return reply


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

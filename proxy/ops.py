"""Everything that is no call: liveness, readiness, metrics, and what is not there."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

import msgspec

from controlplane.contract.ids import new_id
from proxy import refusals
from proxy.call import Call, Reply
from proxy.dialects.operations import Protocol, protocol_of, resolve
from proxy.exchange import Exchange
from proxy.headers import header_lines
from proxy.metrics import ProxyMetrics
from proxy.refusals import Refusal, refuse, shape

_JSON = (b"content-type", b"application/json")
_JSON_LINE = b"content-type: application/json\r\n"
_TEXT_LINE = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
_PAGE_MAX = 1_000  # models on a page, as Anthropic has it
_QUERY_FIELDS_MAX = 32
_PATH_CHARS_MAX = 256  # of a path that is looked at more closely
_SLASHES = re.compile("/{2,}")
_SICK_MAX = 100  # that `/readyz` names
_encode = msgspec.json.Encoder().encode


class Ops:
    """Answers operators and probes; costs no record and needs no key.

    not_ready: why this worker should get no traffic now; an empty string if it should. degraded: what it does without meanwhile. sick:
    deployments whose breaker is not closed.
    """

    def __init__(
        self,
        metrics: ProxyMetrics,
        not_ready: Callable[[], str],
        degraded: Callable[[], str] = lambda: "",
        sick: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._metrics = metrics
        self._not_ready = not_ready
        self._degraded = degraded
        self._sick = sick

    def answer(self, path: str, method: str, exchange: Exchange) -> None:
        """One request that is no call."""
        if method not in ("GET", "HEAD") and path in ("/livez", "/readyz", "/metrics"):
            message = f"{method} {path} is not something this proxy serves; use GET"
            self.refuse(refusals.METHOD_NOT_ALLOWED, message, exchange, allow=("GET", "HEAD"))
        elif method not in ("GET", "HEAD"):
            self.refuse(refusals.NOT_FOUND, _nothing_at(path), exchange)
        elif path in ("/livez", "/", "/v1"):  # clients look whether anything answers at their base address
            exchange.answer(200, _JSON_LINE, b'{"status":"alive"}')
        elif path == "/readyz":
            reason = self._not_ready()
            body = _encode({"status": "not ready", "reason": reason} if reason else self._ready())
            exchange.answer(503 if reason else 200, _JSON_LINE, body)
        elif path == "/metrics":
            exchange.answer(200, _TEXT_LINE, self._metrics.render())
        else:
            self.refuse(refusals.NOT_FOUND, _nothing_at(path), exchange)

    def _ready(self) -> dict[str, object]:
        """Neither a Redis that is out nor a deployment that is sick keeps a worker from serving: its siblings would do no better."""
        said: dict[str, object] = {"status": "ready"}
        if degraded := self._degraded():
            said["degraded"] = degraded
        if sick := self._sick():
            said["sick_deployments"] = sorted(sick)[:_SICK_MAX]
        return said

    def refuse(
        self, refusal: Refusal, message: str, exchange: Exchange, *, operation: str = "", allow: Sequence[str] = ()
    ) -> None:
        """A refusal of something that never became a call: it is counted and has an id, for the client's log; no record has it.

        operation: what it would have been, if that is known. allow: the methods that the path takes, if this was none of them.
        """
        self._metrics.request_refused(refusal.code)
        reply, request_id = refuse(refusal, message), new_id("call")
        shape(reply, protocol_of(operation, exchange.headers), request_id)
        headers = [
            *reply.headers,
            (b"x-heph-call-id", request_id.encode()),
            (b"x-heph-error-source", refusal.source.encode()),
        ]
        if allow:
            headers.append((b"allow", ", ".join(allow).encode()))
        exchange.answer(reply.status, header_lines(headers), reply.body)


def _nothing_at(path: str) -> str:
    """What is said of a path that is none of ours; where a slash or a `/v1` too many makes it so, that is what is said."""
    near = _SLASHES.sub("/", path[:_PATH_CHARS_MAX]).rstrip("/").replace("/v1/v1", "/v1")
    if near != path and resolve(near, b"") is not None:
        return f"there is no {path[:128]} here, but {near} is; look at the base URL of your client: it has a slash or a `/v1` too many"
    return (
        f"there is no {path[:128]} here; what is served is OpenAI's and Anthropic's calls (/v1/chat/completions, /v1/responses, "
        "/v1/embeddings, /v1/messages, ...), and for tenants with a grant any path of an upstream under /passthrough/{upstream}/"
    )


class ModelsList:
    """What answers calls that go to no model without waiting: those for lists of models."""

    def lookup(self, call: Call) -> Reply | None:
        """The list; None for anything else."""
        return models_reply(call) if call.operation == "models" else None


def models_reply(call: Call) -> Reply:
    """The aliases that this key may use, in the shape of the client's protocol; or one of them, by its name in the path."""
    identity = call.identity
    assert identity is not None, "identify comes first"  # noqa: S101
    allowed = identity.models
    names = sorted(name for name in call.runtime.routes if allowed is None or name in allowed)
    created_us = call.runtime.snapshot.created_us
    _, _, wanted = call.path.partition("models/")
    if wanted and wanted not in names:
        return refuse(refusals.NO_ROUTE, f"there is no model `{wanted[:128]}` for this key", param="model")
    anthropic = protocol_of(call.operation, call.headers) is Protocol.ANTHROPIC
    shaped = _anthropic_model if anthropic else _openai_model
    more = False
    if anthropic and call.query and not wanted:
        try:
            names, more = _page_of(names, call.query)
        except ValueError:
            message = f"`limit` must be a number from 1 to {_PAGE_MAX}"
            return refuse(refusals.MALFORMED, message, param="limit")
    rows = [shaped(name, created_us) for name in names]
    document: object = {"object": "list", "data": rows}
    if wanted:
        document = shaped(wanted, created_us)
    elif anthropic:
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        document = {"data": rows, "has_more": more, **ends}
    reply = Reply(200, [_JSON], body=_encode(document), source="gateway")
    reply.complete = True
    return reply


def _page_of(names: list[str], query: bytes) -> tuple[list[str], bool]:
    """The models that `limit`, `after_id` and `before_id` ask for, and whether there are more beyond; without a limit all of them.

    A model that is gone marks the place where it stood. Raises ValueError for a limit that is none.
    """
    asked = dict(parse_qsl(query.decode("latin-1"), max_num_fields=_QUERY_FIELDS_MAX))
    limit = int(asked["limit"]) if "limit" in asked else _PAGE_MAX
    if not 1 <= limit <= _PAGE_MAX:
        raise ValueError("limit")
    if "before_id" in asked:
        rest = names[: bisect_left(names, asked["before_id"])]
        return rest[-limit:], len(rest) > limit
    rest = names[bisect_right(names, asked["after_id"]) :] if "after_id" in asked else names
    return rest[:limit], len(rest) > limit


def _openai_model(name: str, created_us: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_us // 1_000_000, "owned_by": "hephaestus"}


def _anthropic_model(name: str, created_us: int) -> dict[str, object]:
    created = datetime.fromtimestamp(created_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created}

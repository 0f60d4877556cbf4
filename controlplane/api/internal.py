"""What proxies call: the snapshot's long poll, batches of records, and their word about themselves."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import structlog
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.enums import MediaType
from litestar.params import JSONBody, QueryParameter

from controlplane.api.parts import Parts, PartsOf
from controlplane.contract.snapshot import ProxyStatus, Snapshot, encode_snapshot
from controlplane.contract.wire import BATCH_PATH, SNAPSHOT_PATH, STATUS_PATH, TOKEN_HEADER
from controlplane.errors import BadRequest, HephaestusError


class StatusAnswer(msgspec.Struct, frozen=True):
    """What a proxy learns when it reports: the version it should have."""

    snapshot_version: int


@get(SNAPSHOT_PATH, summary="Wait for a newer snapshot")
async def snapshot(
    parts: PartsOf,
    have: Annotated[int, QueryParameter(ge=0)] = 0,
    proxy: Annotated[str, QueryParameter(max_length=128)] = "",  # noqa: ARG001 - named in access logs
    wait_s: Annotated[float, QueryParameter(ge=0)] = 0.0,
) -> Response[bytes]:
    """Answers with the snapshot as soon as it is newer than `have`; 304 when it stays so for `wait_s`."""
    newer = await _wait_newer(parts, have, min(wait_s, parts.settings.publish.wait_s_max))
    if newer is None:
        return Response(b"", status_code=304)
    return Response(encode_snapshot(newer), media_type=MediaType.JSON)


async def _wait_newer(parts: Parts, have: int, timeout_s: float) -> Snapshot | None:
    """A newer snapshot, or None when none came in time or the server begins to stop."""
    waiting = asyncio.ensure_future(parts.publisher.wait_newer(have, timeout_s))
    stopping = asyncio.ensure_future(parts.stopping.wait())
    try:
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await waiting if waiting.done() else None
    finally:
        waiting.cancel()
        stopping.cancel()


@post(BATCH_PATH, status_code=200, summary="Hand over a batch of records")
async def batches(request: Request[object, object, State], parts: PartsOf) -> None:
    """Takes a spool segment as it lies on the proxy's disk; answers 200 once it is durably stored, now or earlier."""
    token = request.headers.get(TOKEN_HEADER)
    if not token:
        raise BadRequest(f"the header {TOKEN_HEADER} must name the batch")
    await parts.ingest.accept(token, await request.body())


@post(STATUS_PATH, status_code=200, summary="Report a proxy's state")
async def status(data: JSONBody[ProxyStatus], parts: PartsOf) -> StatusAnswer:
    """Takes a proxy's word about itself; the proof that a snapshot was applied, whether or not the store can keep it."""
    if absurd := _absurd(data):
        raise BadRequest(f"{absurd} of this status cannot be")
    parts.publisher.confirm(data)
    try:
        await parts.ingest.status(data)
    except HephaestusError as error:
        structlog.get_logger(__name__).warning("status not stored", proxy=data.proxy_id, code=error.code)
    return StatusAnswer(snapshot_version=parts.publisher.current.version)


_PROXY_ID_CHARS_MAX = 128
_NUMBER_MAX = 2**63 - 1  # what a column holds
_COUNTS = ("calls_inflight", "ledger_calls", "ledger_nanousd", "spool_bytes", "spool_dropped", "calls_total")
_STATES = frozenset({"closed", "open", "half_open"})


def _absurd(status: ProxyStatus) -> str:
    """The first field that no proxy of ours can have said; empty when there is none. What is let through can be stored and shown."""
    if not 0 < len(status.proxy_id) <= _PROXY_ID_CHARS_MAX or not status.proxy_id.isprintable():
        return "proxy_id"
    numbers = {name: getattr(status, name) for name in ("at_us", "snapshot_version", *_COUNTS)}
    for breaker in status.breakers:
        if breaker.state not in _STATES:
            return "breakers.state"
        if not 0.0 <= breaker.error_ratio <= 1.0:
            return "breakers.error_ratio"
        if not (0 <= breaker.since_us <= _NUMBER_MAX and 0 <= breaker.calls <= _NUMBER_MAX):
            return "breakers"
    return next((name for name, number in numbers.items() if not 0 <= number <= _NUMBER_MAX), "")


def routes(*, batch_bytes_max: int) -> Router:
    """The internal routes; batches may be larger than any other body."""
    return Router(
        path="/",
        route_handlers=[snapshot, batches, status],
        request_max_body_size=batch_bytes_max,
        tags=["internal"],
    )

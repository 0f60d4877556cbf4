"""Active probes: asks an upstream for its list of models, past the proxies and with the deployment's own credential.

It costs nothing, so it stays outside the ledger. That inference itself works again is shown by the breakers' half-open probes and by a
run's probation on real calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from controlplane.contract.snapshot import Snapshot, Upstream
from controlplane.detection.probes import ProbeResult
from controlplane.errors import SecretUnavailable
from controlplane.healing import actions
from controlplane.secrets import resolve

ANSWER_BYTES_MAX = 1024 * 1024


class UpstreamProber:
    """Probes deployments of the current snapshot. deployments are told apart by their upstream alone."""

    def __init__(self, snapshot: Callable[[], Snapshot], *, timeout_s: float = 10.0) -> None:
        self._snapshot = snapshot
        self._client = httpx.AsyncClient(
            timeout=timeout_s,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=0),
        )

    async def probe(self, deployment: str) -> ProbeResult:
        """As detection asks."""
        ok, detail = await self._ask(deployment)
        return ProbeResult(ok=ok, detail=detail)

    async def for_healing(self, deployment: str) -> actions.ProbeResult:
        """As healing asks."""
        ok, detail = await self._ask(deployment)
        return actions.ProbeResult(ok=ok, detail=detail)

    async def _ask(self, deployment: str) -> tuple[bool, str]:
        """Whether the deployment's upstream answers, and what it said if it does not. Never raises for what an upstream does."""
        upstream = self._upstream(deployment)
        if upstream is None:
            return False, f"there is no deployment {deployment} in the configuration"
        try:
            headers = await asyncio.to_thread(_authorization, upstream)
            async with self._client.stream("GET", f"{upstream.base_url.rstrip('/')}/models", headers=headers) as answer:
                size = 0
                async for piece in answer.aiter_bytes():
                    size += len(piece)
                    if size > ANSWER_BYTES_MAX:
                        break
        except SecretUnavailable as error:
            return False, error.message
        except httpx.TimeoutException:
            return False, f"{upstream.id} did not answer in time"
        except httpx.HTTPError as error:
            return False, f"{upstream.id} cannot be reached: {type(error).__name__}"
        if answer.status_code >= httpx.codes.BAD_REQUEST:
            return False, f"{upstream.id} answered {answer.status_code}"
        return True, f"{upstream.id} answered {answer.status_code}"

    def _upstream(self, deployment: str) -> Upstream | None:
        snapshot = self._snapshot()
        name = next((d.upstream for route in snapshot.routes for d in route.deployments if d.id == deployment), None)
        return next((one for one in snapshot.upstreams if one.id == name), None)

    async def aclose(self) -> None:
        """Gives up its connections."""
        await self._client.aclose()


def _authorization(upstream: Upstream) -> dict[str, str]:
    """The credential header; reads a file where the reference names one."""
    if upstream.credential is None:
        return {}
    return {"authorization": f"Bearer {resolve(upstream.credential).reveal()}"}

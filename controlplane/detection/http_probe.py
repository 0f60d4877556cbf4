"""The prober of the running control plane: one token of chat from the deployment itself, past the proxies.

A probe costs what one token costs. It is sent only to deployments that are sick or drained, every few seconds; its record, operation `probe`
and no tenant, goes where all records go, so that no spending escapes the books. A deployment that does not chat is asked for an embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import httpx
import msgspec

from controlplane.contract.ids import new_id
from controlplane.contract.pricing import Tokens, known_nanousd
from controlplane.contract.records import CallRecord, CostState, Outcome
from controlplane.contract.snapshot import Deployment, Snapshot, Upstream
from controlplane.detection.probes import ProbeResult
from controlplane.errors import SecretUnavailable
from controlplane.secrets import resolve

ANSWER_BYTES_MAX = 256 * 1024
TOKENS_MAX = 1_000_000  # more than one token of chat can take; a count above it is the deployment's mistake
_ANTHROPIC = "anthropic"
_NOT_FOR_THIS = frozenset({400, 404, 405, 422})  # the endpoint is there, but this model or operation is not for chat


class _Usage(msgspec.Struct, frozen=True):
    """What the answer says it took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0  # these two as Anthropic counts
    output_tokens: int = 0


class _Answer(msgspec.Struct, frozen=True):
    """The part of an answer that shows it is one: `choices` of a chat, `content` of a message, `data` of an embedding; and what it took."""

    choices: tuple[object, ...] = ()
    content: tuple[object, ...] = ()
    data: tuple[object, ...] = ()
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class HttpProber:
    """Asks deployments of the current snapshot over HTTP; a `Prober`. Bounded by its caller's timeout and by ANSWER_BYTES_MAX.

    snapshot: the current one. environ: where `env:` credentials are looked up; the process's own if None. record: gets what each probe
    that was answered cost.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        environ: Mapping[str, str] | None = None,
        record: Callable[[CallRecord], None] = lambda _record: None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._snapshot = snapshot
        self._environ = environ
        self._record = record
        self._now_us = now_us
        self._client = httpx.AsyncClient(timeout=None, trust_env=False, follow_redirects=False)  # noqa: S113 - the caller's

    async def probe(self, deployment: str) -> ProbeResult:
        """Whether the deployment gives a whole answer. Raises OSError when it cannot be reached."""
        found = self._find(deployment)
        if found is None:
            return ProbeResult(ok=False, detail="it is not configured any more")
        target, upstream = found
        try:
            headers = self._headers(upstream)
        except SecretUnavailable as error:
            return ProbeResult(ok=False, detail=f"its credential cannot be read here: {error}")
        started_us = self._now_us()
        chat = {"model": target.model, "max_tokens": 1, "messages": [{"role": "user", "content": "ping"}]}
        path = "/v1/messages" if upstream.dialect == _ANTHROPIC else "/chat/completions"
        status, answer = await self._ask(f"{upstream.base_url}{path}", headers, chat)
        if status in _NOT_FOR_THIS and upstream.dialect != _ANTHROPIC:
            status, answer = await self._ask(
                f"{upstream.base_url}/embeddings", headers, {"model": target.model, "input": "ping"}
            )
        self._record(_bill(target, status, answer, started_us=started_us, ended_us=self._now_us()))
        if status == httpx.codes.OK:
            complete = bool(answer.choices or answer.content or answer.data)
            return ProbeResult(ok=complete, detail="it answers" if complete else "its answer is not whole")
        return ProbeResult(ok=False, detail=f"it answers with HTTP status {status}")

    async def aclose(self) -> None:
        """Closes its connections; safe to call twice."""
        await self._client.aclose()

    def _find(self, deployment: str) -> tuple[Deployment, Upstream] | None:
        """The deployment and its upstream in the current snapshot."""
        snapshot = self._snapshot()
        upstreams = {upstream.id: upstream for upstream in snapshot.upstreams}
        for route in snapshot.routes:
            for candidate in route.deployments:
                if candidate.id == deployment and candidate.upstream in upstreams:
                    return candidate, upstreams[candidate.upstream]
        return None

    def _headers(self, upstream: Upstream) -> dict[str, str]:
        headers = {"content-type": "application/json", "user-agent": "hephaestus-probe"}
        anthropic = upstream.dialect == _ANTHROPIC
        if anthropic:
            headers["anthropic-version"] = "2023-06-01"
        if upstream.credential is not None:
            secret = resolve(upstream.credential, self._environ).reveal()
            headers |= {"x-api-key": secret} if anthropic else {"authorization": f"Bearer {secret}"}
        return headers

    async def _ask(self, url: str, headers: dict[str, str], question: object) -> tuple[int, _Answer]:
        """Status and answer; an empty answer for a body that is too long, cut short or none of ours."""
        body = bytearray()
        try:
            async with self._client.stream(
                "POST", url, headers=headers, content=msgspec.json.encode(question)
            ) as reply:
                async for chunk in reply.aiter_bytes():
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        return reply.status_code, _Answer()
                status = reply.status_code
        except httpx.RemoteProtocolError:
            return 200, _Answer()
        except httpx.TransportError as error:
            raise OSError(str(error) or type(error).__name__) from error
        try:
            return status, _decode(bytes(body))
        except (msgspec.MsgspecError, RecursionError):
            return status, _Answer()


def _bill(target: Deployment, status: int, answer: _Answer, *, started_us: int, ended_us: int) -> CallRecord:
    """What a probe cost, as a record without a tenant and without attempts, so that it counts as spending and never as traffic."""
    used = answer.usage
    tokens = (
        Tokens()
        if used is None
        else Tokens(
            input=max(0, used.prompt_tokens, used.input_tokens),
            output=max(0, used.completion_tokens, used.output_tokens),
        )
    )
    if tokens.total > TOKENS_MAX:
        used, tokens = None, Tokens()
    priced = target.price is not None and not (tokens.total and target.price.by_unit_only)
    answered = status == httpx.codes.OK
    return CallRecord(
        call_id=new_id("probe"),
        started_us=started_us,
        latency_us=max(0, ended_us - started_us),
        operation="probe",
        outcome=Outcome.OK if answered else Outcome.UPSTREAM_REFUSED,
        status=status,
        agent="hephaestus",
        model=target.model,
        deployment=target.id,
        tokens=tokens,
        cost_nanousd=known_nanousd(tokens, target.price) if target.price is not None else 0,
        cost_state=(CostState.FINAL if used or not answered else CostState.ESTIMATED) if priced else CostState.UNPRICED,
        price_version=target.price.version if target.price is not None else "",
    )

"""Records to fill the store with."""

from __future__ import annotations

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import (
    AttemptError,
    AttemptRecord,
    CacheState,
    CallRecord,
    CostState,
    Outcome,
    Payload,
)
from controlplane.contract.wire import encode_frame

START_US = 1_800_000_000_000_000  # a full minute of a Friday in 2027
MINUTE_US = 60_000_000


def an_attempt(
    deployment: str = "openai/gpt",
    *,
    at_us: int = START_US,
    error: AttemptError = AttemptError.NONE,
    cost_nanousd: int = 0,
    first_token_us: int = 300_000,
    latency_us: int = 900_000,
    tokens: Tokens | None = None,
    probe: bool = False,
    reported_nanousd: int | None = None,
) -> AttemptRecord:
    """One try."""
    return AttemptRecord(
        deployment=deployment,
        upstream=deployment.partition("/")[0],
        model=deployment.partition("/")[2],
        started_us=at_us,
        latency_us=latency_us,
        first_token_us=0 if error else first_token_us,
        status=503 if error else 200,
        error=error,
        tokens=tokens or Tokens(input=10, output=5),
        cost_nanousd=cost_nanousd,
        reported_nanousd=reported_nanousd,
        price_version="2026-11",
        probe=probe,
    )


def a_call(
    number: int = 0,
    *,
    at_us: int = START_US,
    outcome: Outcome = Outcome.OK,
    status: int = 200,
    tenant: str = "acme",
    agent: str = "scout",
    session: str = "s-1",
    alias: str = "gpt",
    deployment: str = "openai/gpt",
    latency_us: int = 1_000_000,
    first_token_us: int = 400_000,
    cache: CacheState = CacheState.MISS,
    tokens: Tokens | None = None,
    cost_nanousd: int = 0,
    cost_state: CostState = CostState.FINAL,
    saved_nanousd: int = 0,
    attempts: tuple[AttemptRecord, ...] | None = None,
    payload: Payload | None = None,
) -> CallRecord:
    """One call; with one attempt that cost the same unless `attempts` says otherwise."""
    tokens = tokens or Tokens(input=10, output=5)
    if attempts is None:
        attempts = (an_attempt(deployment, at_us=at_us, cost_nanousd=cost_nanousd, tokens=tokens),)
    return CallRecord(
        call_id=f"call_{number:026d}",
        started_us=at_us,
        latency_us=latency_us,
        operation="chat",
        outcome=outcome,
        status=status,
        tenant=tenant,
        key_id="key_1",
        agent=agent,
        session=session,
        user="ana",
        tags={"team": "search"},
        channel="cli",
        priority="high",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        alias=alias,
        model=deployment.partition("/")[2],
        deployment=deployment,
        stream=True,
        first_token_us=first_token_us,
        overhead_us=1_500,
        error_code="" if outcome is Outcome.OK else outcome.value,
        finish_reason="stop",
        cache=cache,
        tokens=tokens,
        cost_nanousd=cost_nanousd,
        cost_state=cost_state,
        saved_nanousd=saved_nanousd,
        price_version="2026-11",
        snapshot_version=7,
        request_bytes=512,
        response_bytes=2_048,
        attempts=attempts,
        payload=payload,
    )


def a_segment(*records: CallRecord) -> bytes:
    """The records as a proxy's spool segment."""
    return b"".join(encode_frame(record) for record in records)

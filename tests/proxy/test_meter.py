"""Money and estimates of a call: sums over attempts, and what is assumed where nothing was said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from controlplane.contract.records import AttemptRecord, CacheState, CallRecord, CostState, Outcome, Payload
from controlplane.contract.snapshot import Deployment, KeyEntry, PayloadPolicy, Route, Snapshot, TenantPolicy
from proxy import meter
from proxy.call import Call, Reply
from proxy.dialects.dialect import RequestView
from proxy.runtime import KeyIdentity, RouteEntry, compile_runtime
from tests.proxy.fakes import PRICE

DEPLOYMENT = Deployment(id="d", upstream="u", model="m", price=PRICE, max_output_tokens=100)
ATTEMPTS = st.builds(
    AttemptRecord,
    deployment=st.just("d"),
    upstream=st.just("u"),
    model=st.just("m"),
    started_us=st.just(0),
    latency_us=st.just(1),
    tokens=st.builds(Tokens, input=st.integers(0, 1000), output=st.integers(0, 1000), reasoning=st.integers(0, 9)),
    cost_nanousd=st.integers(0, 10**12),
    cost_state=st.sampled_from(CostState),
)


def call_of(body: bytes = b"", view: RequestView | None = None) -> Call:
    """A call that has been decoded."""
    call = Call(
        compile_runtime(Snapshot(version=1, created_us=0), {}),
        "chat",
        "/",
        {},
        body,
        call_id="c",
        started_us=0,
        started_ns=0,
    )
    call.view = view or RequestView(model="m")
    return call


@given(attempts=st.lists(ATTEMPTS, max_size=4))
def test_a_call_amounts_to_the_sum_of_its_attempts(attempts: list[AttemptRecord]) -> None:
    """Tokens and nano-USD add up exactly, and the worst known state is the call's."""
    call = call_of()
    call.attempts = attempts
    meter.sum_up(call)
    assert sum(attempt.cost_nanousd for attempt in attempts) == call.cost_nanousd
    assert sum(attempt.tokens.total for attempt in attempts) == call.tokens.total
    if any(attempt.cost_state is CostState.UNPRICED and attempt.tokens.total for attempt in attempts):
        assert CostState.UNPRICED == call.cost_state


@given(
    events=st.integers(0, 500),
    elapsed_s=st.floats(0, 1e4),
    ceiling=st.none() | st.integers(1, 300),
    n=st.integers(1, 5),
    size=st.integers(0, 10_000),
)
def test_an_estimate_never_exceeds_what_was_reserved(
    events: int, elapsed_s: float, ceiling: int | None, n: int, size: int
) -> None:
    """Output at most the ceiling times the answers asked for, input less than the body's bytes."""
    call = call_of(b"x" * size, RequestView(model="m", max_output_tokens=ceiling, n=n))
    tokens = meter.estimated_tokens(call, DEPLOYMENT, events=events, elapsed_s=elapsed_s, tokens_per_s=100.0)
    assert 0 <= tokens.output <= (100 if ceiling is None else ceiling) * n
    assert 0 <= tokens.input <= size


def test_a_stream_is_estimated_by_its_events_and_silence_by_its_time() -> None:
    """Seen events are tokens; without any, time at the assumed speed."""
    call = call_of(b"x" * 400)
    seen = meter.estimated_tokens(call, DEPLOYMENT, events=7, elapsed_s=0.5, tokens_per_s=100.0)
    unseen = meter.estimated_tokens(call, DEPLOYMENT, events=0, elapsed_s=0.5, tokens_per_s=100.0)
    assert [(100, 7), (100, 50)] == [(tokens.input, tokens.output) for tokens in (seen, unseen)]


def test_tokens_of_a_kind_without_price_are_unpriced_and_never_free() -> None:
    """One kind without a price makes the whole try unpriced; the other kinds count against budgets, and the version of the price is kept."""
    assert (15_000, CostState.FINAL, "p1") == meter.priced(Tokens(input=9, output=3), DEPLOYMENT)
    half_known = Tokens(input=9, audio_input=3, cache_read=4, reasoning=2, output=1)
    assert (9_000 + 2_000 + 6_000, CostState.UNPRICED, "p1") == meter.priced(half_known, DEPLOYMENT)
    assert (0, CostState.UNPRICED, "") == meter.priced(Tokens(input=9), Deployment(id="d", upstream="u", model="m"))


def test_a_try_that_counted_no_tokens_keeps_its_state() -> None:
    """A recording that broke off is an estimate, though it has a cost and no tokens, and so is the call that was tried again."""
    estimated = AttemptRecord("d", "u", "m", 0, 0, cost_nanousd=9, cost_state=CostState.ESTIMATED)
    final = AttemptRecord("d", "u", "m", 0, 0, cost_nanousd=9)
    call = call_of()
    call.attempts = [estimated, final]
    meter.sum_up(call)
    assert (18, CostState.ESTIMATED) == (call.cost_nanousd, call.cost_state)


def test_each_field_of_a_record_says_what_the_call_says() -> None:
    """Every field has a value of its own, which stands in its place."""
    call = call_of(b"asked", RequestView(model="alias", stream=True))
    call.started_us, call.status, call.outcome, call.cache = 1_001, 201, Outcome.BROKEN_STREAM, CacheState.STALE
    tenant = TenantPolicy("tenant", payloads=PayloadPolicy(store=True, retention_days=9))
    call.identity = KeyIdentity(tenant, KeyEntry("0" * 32, "key", "tenant"), None)
    call.agent, call.session, call.user, call.tags = "agent", "session", "user", {"tag": "value"}
    call.channel, call.priority, call.trace_id, call.fell_back = "channel", "priority", "trace", "why"
    call.route = RouteEntry(Route("routed", ()), ())
    call.reply = Reply(202, [], body=b"answered")
    call.reply.model, call.reply.deployment, call.reply.finish_reason = "model", "deployment", "reason"
    call.first_token_us, call.error_code, call.tokens = 3, "error", Tokens(input=4)
    call.cost_nanousd, call.saved_nanousd, call.cost_state, call.price_version = 5, 6, CostState.ESTIMATED, "version"
    call.response_bytes, call.waited_ns = 8, 0
    call.attempts = [AttemptRecord("d", "u", "m", 1, 2)]
    record = meter.record_of(call)
    assert record.overhead_us == record.latency_us
    assert record == CallRecord(
        call_id="c",
        started_us=1_001,
        latency_us=record.latency_us,
        operation="chat",
        outcome=Outcome.BROKEN_STREAM,
        status=201,
        tenant="tenant",
        key_id="key",
        agent="agent",
        session="session",
        user="user",
        tags={"tag": "value"},
        channel="channel",
        priority="priority",
        trace_id="trace",
        alias="alias",
        routed="routed",
        model="model",
        deployment="deployment",
        stream=True,
        first_token_us=3,
        overhead_us=record.overhead_us,
        error_code="error",
        finish_reason="reason",
        cache=CacheState.STALE,
        tokens=Tokens(input=4),
        cost_nanousd=5,
        cost_state=CostState.ESTIMATED,
        saved_nanousd=6,
        price_version="version",
        snapshot_version=1,
        request_bytes=5,
        response_bytes=8,
        attempts=(AttemptRecord("d", "u", "m", 1, 2),),
        payload=Payload(request=b"asked", response=b"answered", retention_days=9),
    )

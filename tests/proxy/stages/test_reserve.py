"""Tests of the stage that stands between a call and its tenant's money."""

from __future__ import annotations

import json

import msgspec
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Price, Tokens, cost_nanousd
from controlplane.contract.records import Outcome
from controlplane.contract.snapshot import Budget, Deployment, TenantPolicy, Unpriced, Window
from proxy.call import Call, Reply
from proxy.dialects.passthrough import read_passthrough
from proxy.ledger import Ledger
from proxy.quotas.account import Share
from proxy.runtime import Candidate
from proxy.stages.reserve import Reserve, worst_case
from proxy.view import read_view
from tests.proxy.state_fakes import BODY, DEPLOYMENT, NOON_US, UPSTREAM, FakeClock, make_call, make_record

UNPRICED = Deployment("sim/free", "sim", "free", max_output_tokens=100)
DEAR = Deployment("sim/dear", "sim", "dear", price=Price(input=5_000_000, output=7_000_000), max_output_tokens=50)


def _stage(ledger: Ledger, clock: FakeClock | None = None) -> Reserve:
    return Reserve(ledger, image_tokens_max=2000, now_us=(clock or FakeClock()).us)


def _budget(nanousd: int | None = None, tokens: int | None = None, window: Window = Window.MONTH) -> TenantPolicy:
    return TenantPolicy("acme", budgets=(Budget("pocket", window, nanousd=nanousd, tokens=tokens),))


def _message(reply: Reply | None) -> str:
    assert reply is not None
    message: str = json.loads(reply.body)["error"]["message"]
    return message


def _worst(call: Call) -> tuple[int, int]:
    assert call.view is not None
    return worst_case(call, call.view, image_tokens_max=2000)


def test_the_worst_case_is_held_and_given_back() -> None:
    """Body bytes in, the deployment's ceiling out, at their prices; `leave` gives all of it back."""
    ledger = Ledger()
    stage = _stage(ledger)
    call = make_call(tenant=_budget(nanousd=10_000))
    assert stage.enter(call) is None
    assert (len(BODY) + 100, len(BODY) + 200) == ledger.reserved("acme")
    stage.leave(call)
    stage.leave(call)
    assert (0, 0) == ledger.reserved("acme")
    assert call.reservation is None


def test_without_a_limit_nothing_is_held() -> None:
    """The fast path: a tenant without budgets and token limit reserves nothing."""
    ledger = Ledger()
    call = make_call()
    assert _stage(ledger).enter(call) is None
    assert call.reservation is None
    assert (0, 0) == ledger.reserved("acme")


@pytest.mark.parametrize(
    ("extra", "deployments", "tokens_out", "images"),
    [
        ({}, (DEPLOYMENT,), 100, 0),
        ({}, (DEAR, DEPLOYMENT), 100, 0),
        ({"max_tokens": 7}, (DEPLOYMENT,), 7, 0),
        ({"max_completion_tokens": 9, "max_tokens": 7}, (DEPLOYMENT,), 9, 0),
        ({"max_tokens": 7, "n": 3}, (DEPLOYMENT,), 21, 0),
        ({"max_tokens": 5000}, (DEPLOYMENT,), 5000, 0),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}] * 2}]},
            (DEPLOYMENT,),
            100,
            2,
        ),
    ],
)
def test_the_bound_follows_the_request(
    extra: dict[str, object], deployments: tuple[Deployment, ...], tokens_out: int, images: int
) -> None:
    """The client's ceiling, else the deployment's, times the answers; each image its fixed count."""
    body = json.dumps({"model": "small", "messages": [], **extra}).encode()
    tokens, _ = _worst(make_call(body, deployments=deployments))
    assert len(body) + 2000 * images + tokens_out == tokens


def test_the_tenant_s_ceiling_counts_where_the_request_names_none() -> None:
    """The ceiling that the proxy writes into the body bounds the answer; the client's own comes first."""
    silent, vocal = make_call(), make_call(b'{"model":"small","messages":[],"max_tokens":7}')
    silent.output_ceiling = vocal.output_ceiling = 40
    assert len(BODY) + 40 == _worst(silent)[0]
    assert len(vocal.body) + 7 == _worst(vocal)[0]


def test_what_is_left_of_the_token_limit_is_shown() -> None:
    """Limit, rest and reset, after this call's reservation, on success and on refusal; nothing without a limit."""
    ledger = Ledger(share=Share(0, 2))
    clock = FakeClock(NOON_US + 20_000_000)
    stage = _stage(ledger, clock)
    ledger.book(make_record(tokens=100, at_us=clock.now_us))
    policy = TenantPolicy("acme", tokens_per_minute=1000)
    first, second, third = (make_call(tenant=policy) for _ in range(3))
    worst = len(BODY) + 100
    assert stage.enter(first) is None
    assert (500, 400 - worst, 40.0) == first.ratelimit_tokens
    assert stage.enter(second) is None
    assert stage.enter(third) is not None
    assert second.ratelimit_tokens == third.ratelimit_tokens
    free = make_call()
    stage.enter(free)
    assert free.ratelimit_tokens is None


def test_money_is_that_of_the_dearest_candidate() -> None:
    """Failover may end at any of the candidates, so the dearest counts, not the first."""
    tokens, nanousd = _worst(make_call(deployments=(DEPLOYMENT, DEAR)))
    assert (len(BODY) + 100, 5 * len(BODY) + 7 * 50) == (tokens, nanousd)


def test_embeddings_have_no_output() -> None:
    """Only the input counts."""
    body = b'{"model":"small","input":["a","b"]}'
    assert (len(body), len(body)) == _worst(make_call(body, operation="embeddings"))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=200)), min_size=1, max_size=5)
)
def test_the_input_bound_holds_for_a_real_tokenizer(messages: list[tuple[str, str]]) -> None:
    """No text has more tokens than its JSON has bytes, with the tokens that a chat template adds for each message."""
    encoding = _encoding()
    body = msgspec.json.encode(
        {"model": "small", "messages": [{"role": role, "content": content} for role, content in messages]}
    )
    counted = 3 + sum(4 + len(encoding.encode(content, disallowed_special=())) for _, content in messages)
    tokens, _ = _worst(make_call(body))
    assert counted <= tokens - 100


def _encoding() -> tiktoken.Encoding:
    """A byte-level tokenizer with the worst vocabulary there is: one token for each byte."""
    return tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )


@given(
    input_=st.integers(0, 200), output=st.integers(0, 100), reasoning=st.integers(0, 100), cached=st.integers(0, 100)
)
def test_no_answer_within_the_bound_costs_more_than_was_held(
    input_: int, output: int, reasoning: int, cached: int
) -> None:
    """However the tokens fall into kinds, the settled cost is at most the reservation."""
    price = Price(input=3_000_001, output=7_000_003, cache_read=1_000_000, reasoning=9_000_000)
    deployment = msgspec.structs.replace(DEAR, price=price, max_output_tokens=200)
    call = make_call(BODY + b" " * 240, deployments=(deployment,))
    _, nanousd = _worst(call)
    assert cost_nanousd(Tokens(input=input_, output=output, reasoning=reasoning, cache_read=cached), price) <= nanousd


def test_a_budget_refusal_names_the_scope_and_says_when_it_resets() -> None:
    """429 over_budget with the budget, the tenant, the amounts in USD, the reset and a retry-after."""
    ledger = Ledger()
    ledger.book(make_record(nanousd=1_500_000_000))
    call = make_call(tenant=_budget(nanousd=1_500_000_000))
    reply = _stage(ledger).enter(call)
    assert reply is not None
    assert (429, Outcome.OVER_BUDGET, "over_budget") == (reply.status, reply.outcome, reply.error_code)
    message = _message(reply)
    for part in (
        "budget `pocket`",
        "tenant `acme`",
        "limit 1.5 USD",
        "settled 1.5 USD",
        "resets at 2025-12-01T00:00:00Z",
    ):
        assert part in message
    seconds = (12 + 10 * 24) * 3600
    assert (b"retry-after", b"%d" % seconds) in reply.headers
    assert (b"x-should-retry", b"false") in reply.headers
    assert call.reservation is None


def test_the_token_limit_is_a_rate_limit() -> None:
    """Tokens per minute refuse as rate_limited, to be retried within the minute."""
    ledger = Ledger()
    clock = FakeClock(NOON_US + 18_500_000)
    ledger.book(make_record(tokens=1000, at_us=clock.now_us))
    reply = _stage(ledger, clock).enter(make_call(tenant=TenantPolicy("acme", tokens_per_minute=1000)))
    assert reply is not None
    assert (429, Outcome.RATE_LIMITED) == (reply.status, reply.outcome)
    assert (b"retry-after", b"42") in reply.headers
    assert "tokens per minute" in _message(reply)


def test_a_call_that_can_never_pass_is_told_so() -> None:
    """A call that alone is over the limit is not sent away to retry."""
    reply = _stage(Ledger()).enter(make_call(tenant=TenantPolicy("acme", tokens_per_minute=100)))
    assert reply is not None
    assert (Outcome.OVER_BUDGET, True) == (reply.outcome, "can never pass" in _message(reply))
    assert all(name != b"retry-after" for name, _ in reply.headers)


def test_a_total_never_resets() -> None:
    """A used-up total has no retry-after and says that it must be raised."""
    ledger = Ledger()
    ledger.book(make_record(tokens=1000))
    reply = _stage(ledger).enter(make_call(tenant=_budget(tokens=1000, window=Window.TOTAL)))
    assert "never resets" in _message(reply)


def test_an_unpriced_model_is_served_where_allowed_and_counts_its_tokens() -> None:
    """Allow: token budgets count it, money budgets do not stand in its way."""
    ledger = Ledger()
    policy = TenantPolicy(
        "acme", budgets=(Budget("usd", Window.DAY, nanousd=0), Budget("tokens", Window.DAY, tokens=10_000))
    )
    assert _stage(ledger).enter(make_call(tenant=policy, deployments=(UNPRICED,))) is None
    assert (len(BODY) + 100, 0) == ledger.reserved("acme")


def test_an_unpriced_model_is_refused_where_it_is_not_allowed() -> None:
    """Refuse: 403 `unpriced`, which model has no price, and what to do."""
    reply = _stage(Ledger()).enter(
        make_call(tenant=TenantPolicy("acme", unpriced=Unpriced.REFUSE), deployments=(UNPRICED,))
    )
    assert reply is not None
    assert (403, "unpriced", Outcome.FORBIDDEN) == (reply.status, reply.error_code, reply.outcome)
    assert "`small` has no price" in _message(reply)
    assert "add a price" in _message(reply)


def test_unpriced_candidates_are_taken_out_where_they_are_not_allowed() -> None:
    """Refuse: a route with one priced deployment goes on with that one alone."""
    call = make_call(tenant=TenantPolicy("acme", unpriced=Unpriced.REFUSE), deployments=(UNPRICED, DEAR))
    assert _stage(Ledger()).enter(call) is None
    assert [DEAR] == [candidate.deployment for candidate in call.candidates]
    assert UPSTREAM == call.candidates[0].upstream


def test_a_call_that_cost_more_than_it_held_is_counted() -> None:
    """The overrun is visible; what was within its bound is not counted."""
    ledger = Ledger()
    stage = _stage(ledger)
    for cost, tokens in ((10**6, 1), (1, 10**6), (1, 1)):
        call = make_call(tenant=_budget(nanousd=10_000))
        assert stage.enter(call) is None
        call.cost_nanousd, call.tokens = cost, Tokens(input=tokens)
        stage.leave(call)
    assert 2 == ledger.exceeded_total


def test_two_hundred_calls_at_once_never_overspend_a_budget_for_fifty() -> None:
    """Of 200 calls that all come before the first is settled, exactly as many get in as the budget can pay for."""
    ledger = Ledger()
    stage = _stage(ledger)
    _, worst = _worst(make_call())
    policy = _budget(nanousd=50 * worst)
    calls = [make_call(tenant=policy) for _ in range(200)]
    entered = [call for call in calls if stage.enter(call) is None]
    assert 50 == len(entered)
    for call in entered:
        call.cost_nanousd = worst
        stage.leave(call)
        ledger.book(make_record(nanousd=worst))
    assert stage.enter(make_call(tenant=policy)) is not None
    assert 50 * worst == ledger.nanousd


def test_files_are_reserved_for_by_what_a_model_takes_in() -> None:
    """A file counts as so many tokens, however many bytes it has; the rest of the body as a token a byte."""
    form = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nsmall\r\n'
    form += (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(50_000) + b"\r\n--b--\r\n"
    )
    call = make_call()
    call.operation, call.body = "audio_transcriptions", form
    call.view = read_view(call.operation, form)
    tokens, _ = worst_case(call, call.view, image_tokens_max=2000, sound_tokens_max=700)
    ceiling = max(candidate.deployment.max_output_tokens for candidate in call.candidates)
    assert len(form) - 50_000 + 700 + ceiling == tokens


STATED = 1_000  # nano-USD, for one call that is passed through


def _passed_through(policy: TenantPolicy, body: bytes, deployment: Deployment) -> Call:
    call = make_call(tenant=policy, deployments=(deployment,))
    call.operation, call.body, call.view = "passthrough", body, read_passthrough(body)
    upstream = msgspec.structs.replace(UPSTREAM, passthrough_nanousd=STATED)
    call.candidates = tuple(Candidate(item.deployment, upstream, None) for item in call.candidates)
    return call


@pytest.mark.parametrize("deployment", [UNPRICED, DEAR])
def test_what_an_operator_says_a_passed_through_call_may_cost_is_held(deployment: Deployment) -> None:
    """Whatever its request tells, priced or not; and nothing of it lowers what is held of tokens."""
    ledger = Ledger()
    policy = _budget(nanousd=2 * STATED)
    calls = [_passed_through(policy, b'{"model":"m","max_tokens":1}', deployment) for _ in range(3)]
    assert [None, None] == [_stage(ledger).enter(call) for call in calls[:2]]
    assert 2 * STATED == ledger.reserved("acme")[1]
    assert 2 * (len(calls[0].body) + deployment.max_output_tokens) == ledger.reserved("acme")[0]
    refused = _stage(ledger).enter(calls[2])
    assert refused is not None
    assert "over_budget" == refused.error_code


@given(
    limit=st.integers(0, 12 * STATED),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 2 * STATED)), max_size=60),
)
def test_a_budget_is_passed_by_no_more_than_calls_cost_above_what_was_stated(
    limit: int, steps: list[tuple[bool, int]]
) -> None:
    """In any order of beginnings and ends: spent and held are within the budget and what calls that have ended cost above the
    operator's figure; each of those is counted, and while there is none the budget is never passed at all.
    """
    ledger, clock = Ledger(), FakeClock()
    stage, policy = _stage(ledger, clock), _budget(nanousd=limit)
    running: list[Call] = []
    above, exceeded = 0, 0
    for begins, cost in steps:
        if begins:
            call = _passed_through(policy, b"{}", UNPRICED)
            if stage.enter(call) is None:
                running.append(call)
        elif running:
            call = running.pop(0)
            call.cost_nanousd = cost
            stage.leave(call)
            ledger.book(make_record(nanousd=cost, at_us=clock.now_us))
            above += max(0, cost - STATED)
            exceeded += cost > STATED
        spent = ledger.settled("acme", Window.MONTH, now_us=clock.now_us).nanousd
        assert spent + ledger.reserved("acme")[1] <= limit + above
    assert exceeded == ledger.exceeded_total

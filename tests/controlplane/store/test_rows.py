"""Records as columns: nothing is lost, money is exact, what does not fit is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.contract.pricing import TOKEN_KINDS, Tokens
from controlplane.contract.records import AttemptError, CacheState, CostState, Outcome, Payload
from controlplane.store import schema
from controlplane.store.client import Store, UnfitValue
from controlplane.store.rows import (
    IncidentEventRow,
    RunEventRow,
    batch_rows,
    incident_event_columns,
    money,
    nanousd,
    run_event_columns,
)
from tests.controlplane.store.fakes import START_US, a_call, an_attempt

NANOUSD = st.integers(min_value=0, max_value=10**18 - 1) | st.sampled_from([0, 1, 10**9 - 1, 10**9, 10**18 - 1])


def test_columns_match_their_tables() -> None:
    """Every table gets one sequence for each column that is written, all of one length."""
    call = a_call(attempts=(an_attempt(), an_attempt("azure/gpt")), payload=Payload(b"a", b"b", 3))
    batch = batch_rows([call, a_call(1)], token="proxy-1/000000000007", body_bytes=99)
    for table, columns, rows in (
        (schema.CALLS, batch.calls, 2),
        (schema.ATTEMPTS, batch.attempts, 3),
        (schema.PAYLOADS, batch.payloads, 1),
        (schema.BATCHES, batch.summary, 1),
    ):
        assert len(table.written) == len(columns)
        assert {rows} == {len(column) for column in columns}


def test_call_comes_back_as_it_was(store: Store) -> None:
    """Every field of a call is found under its name."""
    call = a_call(3, cost_nanousd=1_000_000_001, saved_nanousd=7, tokens=Tokens(1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    store.insert(schema.CALLS, batch_rows([call], token="proxy-1/000000000007", body_bytes=1).calls)
    names = [column.name for column in schema.CALLS.written]
    (row,) = store.rows(f"SELECT {', '.join(names)} FROM calls")
    found = dict(zip(names, row, strict=True))
    assert {f"tokens_{kind}": number for number, kind in enumerate(TOKEN_KINDS, 1)} == {
        name: value for name, value in found.items() if name.startswith("tokens_")
    }
    assert ("1.000000001", "0.000000007", "proxy-1", 1) == (
        str(found["cost_usd"]), format(found["saved_usd"], "f"), found["proxy"], found["attempts"],
    )  # fmt: skip
    for name in ("call_id", "latency_us", "operation", "status", "tenant", "key_id", "agent", "session", "user", "tags",
                 "channel", "priority", "trace_id", "alias", "model", "deployment", "stream", "first_token_us", "overhead_us",
                 "error_code", "finish_reason", "price_version", "snapshot_version", "request_bytes", "response_bytes"):  # fmt: skip
        assert getattr(call, name) == found[name], name
    assert ("ok", "miss", "final") == (found["outcome"], found["cache"], found["cost_state"])


def test_attempts_keep_their_order_and_owner(store: Store) -> None:
    """Attempts are numbered from one within their call."""
    tries = (
        an_attempt(error=AttemptError.STATUS_5XX),
        an_attempt("azure/gpt", cost_nanousd=5, probe=True, reported_nanousd=7),
    )
    batch = batch_rows([a_call(1, attempts=tries), a_call(2)], token="p/1", body_bytes=1)
    store.insert(schema.ATTEMPTS, batch.attempts)
    assert [
        ("call_00000000000000000000000001", 1, "openai/gpt", "status_5xx", 503, False, None),
        ("call_00000000000000000000000001", 2, "azure/gpt", "", 200, True, Decimal("0.000000007")),
        ("call_00000000000000000000000002", 1, "openai/gpt", "", 200, False, None),
    ] == [
        tuple(row)
        for row in store.rows(
            "SELECT call_id, attempt, deployment, error, status, probe, reported_usd FROM attempts ORDER BY call_id, attempt"
        )
    ]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.tuples(NANOUSD, NANOUSD), min_size=1, max_size=30))
def test_stored_sums_are_exact(store: Store, amounts: list[tuple[int, int]]) -> None:
    """Sums of stored money equal the sums of the records to the nano-USD, in the facts and in the roll-ups, however large."""
    store.command("TRUNCATE TABLE calls")
    store.command("TRUNCATE TABLE calls_minute")
    records = [a_call(n, cost_nanousd=cost, saved_nanousd=saved) for n, (cost, saved) in enumerate(amounts)]
    batch = batch_rows(records, token="p/1", body_bytes=1)
    store.insert(schema.CALLS, batch.calls)
    expected = (sum(cost for cost, _ in amounts), sum(saved for _, saved in amounts))
    for table in ("calls", "calls_minute"):
        sums = store.rows(f"SELECT sum(cost_usd), sum(saved_usd) FROM {table}")[0]
        assert expected == tuple(nanousd(total) for total in sums)
    assert expected[0] == batch.cost_nanousd


@given(NANOUSD)
def test_money_is_exact_text(nanousd: int) -> None:
    """The text that stands for an amount is that amount."""
    digits, _, exponent = money(nanousd).partition("e")
    assert nanousd == int(digits) * (10 ** (int(exponent or -9) + 9))


@pytest.mark.parametrize(
    "record",
    [
        a_call(cost_nanousd=10**18, attempts=()),
        a_call(cost_nanousd=-1, attempts=()),
        a_call(saved_nanousd=10**18),
        a_call(saved_nanousd=-1),
        a_call(attempts=(an_attempt(cost_nanousd=10**18),)),
        a_call(at_us=-1),
        a_call(at_us=2**32 * 1_000_000),
        a_call(attempts=(an_attempt(at_us=-1),)),
    ],
)
def test_what_no_column_holds_is_refused(record: object) -> None:
    """Amounts and times out of range are refused before anything is written."""
    with pytest.raises(UnfitValue, match="out of range"):
        batch_rows([record], token="p/1", body_bytes=1)  # type: ignore[list-item]


@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe", "é".encode(), b"x" * 100_000])
def test_payload_bytes_are_kept_as_they_are(store: Store, body: bytes) -> None:
    """Bodies are bytes, not text."""
    records = [a_call(1, payload=Payload(body, b"text", 7)), a_call(2, payload=Payload(b"text", body, 7))]
    store.insert(schema.PAYLOADS, batch_rows(records, token="p/1", body_bytes=1).payloads)
    rows = store.rows("SELECT hex(request), hex(response) FROM payloads ORDER BY call_id")
    assert [(body.hex().upper(), b"text".hex()), (b"text".hex(), body.hex().upper())] == [tuple(row) for row in rows]


def test_hostile_labels_are_only_text(store: Store) -> None:
    """Labels that look like SQL, control characters or other scripts come back unchanged."""
    evil = "'; DROP TABLE calls; --\x00\n\t\\ 日本 \U0001f525"
    call = a_call(1, agent=evil, session=evil, tenant=evil, alias=evil)
    store.insert(schema.CALLS, batch_rows([call], token=f"{evil}/1", body_bytes=1).calls)
    assert [(evil, evil, evil, evil, evil)] == [
        tuple(row) for row in store.rows("SELECT agent, session, tenant, alias, proxy FROM calls")
    ]


def test_every_enum_member_fits(store: Store) -> None:
    """Every outcome, cache state, cost state and attempt error can be stored and counted."""
    records = [a_call(n, outcome=outcome) for n, outcome in enumerate(Outcome)]
    records += [a_call(100 + n, cache=cache) for n, cache in enumerate(CacheState)]
    records += [a_call(200 + n, cost_state=state) for n, state in enumerate(CostState)]
    records += [a_call(300 + n, attempts=(an_attempt(error=error),)) for n, error in enumerate(AttemptError)]
    batch = batch_rows(records, token="p/1", body_bytes=1)
    store.insert(schema.CALLS, batch.calls)
    store.insert(schema.ATTEMPTS, batch.attempts)
    sums = store.rows(
        "SELECT sum(calls), sum(calls_priced), sum(calls_estimated), sum(calls_unpriced) FROM calls_minute"
    )
    assert [(len(records), len(records) - 2, 1, 1)] == [tuple(row) for row in sums]
    errors = {str(error) for (error,) in store.rows("SELECT DISTINCT error FROM attempts_minute")}
    assert errors == {error.value for error in AttemptError}


def test_event_copies_are_kept_once(store: Store) -> None:
    """A journal event copied twice counts once."""
    incident = IncidentEventRow(at_us=START_US, position=4, incident_id="inc_1", type="opened", state="firing")
    run = RunEventRow(at_us=START_US, position=5, run_id="run_1", incident_id="inc_1", playbook="p", type="opened")
    for _ in range(2):
        store.insert(schema.INCIDENT_EVENTS, incident_event_columns([incident]))
        store.insert(schema.RUN_EVENTS, run_event_columns([run]))
    assert store.rows("SELECT position, state, data FROM incident_events FINAL") == [(4, "firing", "{}")]
    assert store.rows("SELECT position, incident_id FROM run_events FINAL") == [(5, "inc_1")]

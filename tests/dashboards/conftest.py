"""A store with one of everything that a board shows: two deployments, an outage, cache hits, an incident and a run."""

from __future__ import annotations

import pytest

from controlplane.clock import SystemClock
from controlplane.contract.records import AttemptError, CacheState, CallRecord, CostState, Outcome
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.store import schema
from controlplane.store.client import Store
from controlplane.store.rows import (
    IncidentEventRow,
    RunEventRow,
    breaker_columns,
    incident_event_columns,
    proxy_status_columns,
    run_event_columns,
)
from tests.controlplane.store.fakes import MINUTE_US, START_US, a_call, an_attempt
from tests.controlplane.store.fill import fill

CHEAP_NANOUSD = 250_000


def seeded_calls() -> list[CallRecord]:
    """Ten minutes of calls, four a minute: good, from the cache, served by the second deployment, and failed."""
    calls: list[CallRecord] = []
    for minute in range(10):
        at_us, number = START_US + minute * MINUTE_US, minute * 4
        sick = an_attempt("openai/gpt", at_us=at_us, error=AttemptError.STATUS_5XX)
        calls += [
            a_call(number, at_us=at_us, cost_nanousd=CHEAP_NANOUSD),
            a_call(
                number + 1, at_us=at_us, tenant="zeta", cache=CacheState.HIT, attempts=(), saved_nanousd=CHEAP_NANOUSD, latency_us=2_000,
            ),
            a_call(
                number + 2, at_us=at_us, agent="ranger", deployment="backup/gpt", cost_nanousd=2 * CHEAP_NANOUSD,
                attempts=(sick, an_attempt("backup/gpt", at_us=at_us, cost_nanousd=2 * CHEAP_NANOUSD)),
            ),
            a_call(
                number + 3, at_us=at_us, outcome=Outcome.EXHAUSTED, status=502, first_token_us=0, cost_state=CostState.UNPRICED,
                attempts=(sick,),
            ),
        ]  # fmt: skip
    return calls


@pytest.fixture
def seeded(store: Store) -> Store:
    """The store with calls from START on, states of now, one open and one resolved incident, and a run."""
    fill(store, *seeded_calls())
    now_us = SystemClock().now_us()
    for at_us in (START_US, START_US + MINUTE_US, now_us):
        breakers = (
            BreakerStatus(deployment="openai/gpt", state="open", since_us=at_us, error_ratio=1.0, calls=10),
            BreakerStatus(deployment="backup/gpt", state="closed", since_us=at_us, calls=10),
        )
        status = ProxyStatus(
            proxy_id="proxy-1", at_us=at_us, snapshot_version=7, lease_ids=("lease_1",), breakers=breakers
        )
        store.insert(schema.DEPLOYMENT_STATUS, breaker_columns(status, breakers))
        store.insert(schema.PROXY_STATUS, proxy_status_columns(status))
    store.insert(schema.INCIDENT_EVENTS, incident_event_columns(_incident_events()))
    run = RunEventRow(
        at_us=START_US + MINUTE_US,
        position=5,
        run_id="run_1",
        incident_id="inc_1",
        playbook="failover",
        type="run.planned",
        state="planned",
    )
    store.insert(schema.RUN_EVENTS, run_event_columns([run]))
    return store


def _incident_events() -> list[IncidentEventRow]:
    def row(
        position: int, incident: str, kind: str, state: str, *, title: str = "", deployment: str = ""
    ) -> IncidentEventRow:
        return IncidentEventRow(
            at_us=START_US + position * 1_000_000, position=position, incident_id=incident, type=f"incident.{kind}", state=state,
            severity="high", title=title, deployment=deployment,
        )  # fmt: skip

    return [
        row(1, "inc_0", "opened", "pending", title="calls to backup/gpt fail", deployment="backup/gpt"),
        row(2, "inc_0", "fired", "firing"),
        row(3, "inc_0", "resolved", "resolved"),
        row(4, "inc_1", "opened", "pending", title="calls to openai/gpt fail", deployment="openai/gpt"),
        row(6, "inc_1", "fired", "firing", title="calls to openai/gpt fail", deployment="openai/gpt"),
    ]

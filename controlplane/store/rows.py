"""Records as columns: how what a proxy reports is laid out for the store.

One pass over the records of a batch makes one list for each column, in the order of `schema`. Money goes over as text in exponent form,
which the client library turns into the column's integer without ever meeting a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from itertools import chain
from operator import attrgetter

import msgspec

from controlplane.contract.pricing import NANOUSD_PER_USD, TOKEN_KINDS, Item
from controlplane.contract.records import AttemptRecord, CallRecord
from controlplane.contract.snapshot import BreakerStatus, ProxyStatus
from controlplane.store.client import UnfitValue

Columns = list[Sequence[object]]

_COST_NANOUSD_MAX = 10**18 - 1  # what Decimal(18, 9) holds: just under a thousand million USD
_STARTED_US_MAX = 2**32 * 1_000_000  # toDate ends in the year 2106
_TOKENS_OF = attrgetter(*TOKEN_KINDS)


class IncidentEventRow(msgspec.Struct, frozen=True):
    """A copy of one incident event, for analytics."""

    at_us: int
    position: int
    incident_id: str
    type: str
    state: str = ""
    severity: str = ""
    title: str = ""
    deployment: str = ""
    data: str = "{}"


class RunEventRow(msgspec.Struct, frozen=True):
    """A copy of one playbook-run event, for analytics."""

    at_us: int
    position: int
    run_id: str
    incident_id: str = ""
    playbook: str = ""
    type: str = ""
    state: str = ""
    step: str = ""
    data: str = "{}"


class Batch(msgspec.Struct, frozen=True):
    """The tables of one batch, and what `batches` says about it."""

    calls: Columns
    attempts: Columns
    payloads: Columns
    summary: Columns
    cost_nanousd: int
    records: int


def money(nanousd: int) -> str:
    """An amount as the client library takes it for a decimal column: exact, and cheap to make."""
    return f"{nanousd}e-9" if nanousd else "0"


def nanousd(amount: object) -> int:
    """What a decimal column gave back, as integer nano-USD; exact."""
    if not isinstance(amount, Decimal):
        raise TypeError(f"{amount!r} is not what a money column gives")
    numerator, denominator = amount.as_integer_ratio()
    return numerator * NANOUSD_PER_USD // denominator


def batch_rows(records: Sequence[CallRecord], *, token: str, body_bytes: int) -> Batch:
    """The columns of every table that a batch goes to. Raises UnfitValue for a record that no column can hold."""
    proxy = token.rpartition("/")[0] or token
    check_records(records)
    attempts = list(chain.from_iterable(record.attempts for record in records))
    payloads = [record for record in records if record.payload is not None]
    cost_nanousd = sum(record.cost_nanousd for record in records)
    started = [record.started_us for record in records] or [0]
    summary: Columns = [
        [token], [proxy], [len(records)], [len(attempts)], [len(payloads)], [body_bytes],
        [money(cost_nanousd)], [min(started)], [max(started)],
    ]  # fmt: skip
    return Batch(
        calls=_call_columns(records, proxy),
        attempts=_attempt_columns(records, attempts, proxy),
        payloads=_payload_columns(payloads),
        summary=summary,
        cost_nanousd=cost_nanousd,
        records=len(records),
    )


def check_records(records: Sequence[CallRecord]) -> None:
    """Raises UnfitValue for times and amounts outside of what the tables can hold."""
    for record in records:
        items: tuple[CallRecord | AttemptRecord, ...] = (record, *record.attempts)
        for item in items:
            if not 0 <= item.cost_nanousd <= _COST_NANOUSD_MAX or not 0 <= item.started_us < _STARTED_US_MAX:
                raise UnfitValue(
                    f"call {record.call_id}: cost {item.cost_nanousd} nano-USD or start {item.started_us} us is out of range"
                )
        if not 0 <= record.saved_nanousd <= _COST_NANOUSD_MAX:
            raise UnfitValue(f"call {record.call_id}: saved {record.saved_nanousd} nano-USD is out of range")


def _call_columns(records: Sequence[CallRecord], proxy: str) -> Columns:
    """In the order of schema.CALLS."""
    many = len(records)
    return [
        [r.call_id for r in records],
        [r.started_us for r in records],
        [r.latency_us for r in records],
        [r.operation for r in records],
        [r.outcome.value for r in records],
        [r.status for r in records],
        [r.tenant for r in records],
        [r.key_id for r in records],
        [r.agent for r in records],
        [r.session for r in records],
        [r.user for r in records],
        [r.tags for r in records],
        [r.channel for r in records],
        [r.priority for r in records],
        [r.trace_id for r in records],
        [r.alias for r in records],
        [r.model for r in records],
        [r.deployment for r in records],
        [r.stream for r in records],
        [r.first_token_us for r in records],
        [r.overhead_us for r in records],
        [r.error_code for r in records],
        [r.finish_reason for r in records],
        [r.cache.value for r in records],
        *_token_columns(records),
        [money(r.cost_nanousd) for r in records],
        [r.cost_state.value for r in records],
        [money(r.saved_nanousd) for r in records],
        [r.price_version for r in records],
        *_item_columns([r.items for r in records]),
        [r.snapshot_version for r in records],
        [r.request_bytes for r in records],
        [r.response_bytes for r in records],
        [len(r.attempts) for r in records],
        [proxy] * many,
    ]


def _attempt_columns(records: Sequence[CallRecord], attempts: Sequence[AttemptRecord], proxy: str) -> Columns:
    """In the order of schema.ATTEMPTS. attempts: of all records, in their order."""
    owners = [record for record in records for _ in record.attempts]
    return [
        [r.call_id for r in owners],
        [number for record in records for number in range(1, len(record.attempts) + 1)],
        [a.started_us for a in attempts],
        [a.latency_us for a in attempts],
        [a.first_token_us for a in attempts],
        [r.tenant for r in owners],
        [r.agent for r in owners],
        [r.alias for r in owners],
        [r.operation for r in owners],
        [a.deployment for a in attempts],
        [a.upstream for a in attempts],
        [a.model for a in attempts],
        [a.status for a in attempts],
        [a.error.value for a in attempts],
        *_token_columns(attempts),
        [money(a.cost_nanousd) for a in attempts],
        [a.cost_state.value for a in attempts],
        [a.price_version for a in attempts],
        *_item_columns([a.items for a in attempts]),
        [a.probe for a in attempts],
        [None if a.reported_nanousd is None else money(a.reported_nanousd) for a in attempts],
        [proxy] * len(attempts),
    ]


def _payload_columns(records: Sequence[CallRecord]) -> Columns:
    """In the order of schema.PAYLOADS."""
    kept = [(record, record.payload) for record in records if record.payload is not None]
    return [
        [r.call_id for r, _ in kept],
        [r.started_us for r, _ in kept],
        [r.tenant for r, _ in kept],
        [p.request for _, p in kept],
        [p.response for _, p in kept],
        [p.retention_days for _, p in kept],
    ]


def _token_columns(items: Sequence[CallRecord] | Sequence[AttemptRecord]) -> Columns:
    """One column for each kind of token."""
    if not items:
        return [[] for _ in TOKEN_KINDS]
    return list(zip(*(_TOKENS_OF(item.tokens) for item in items), strict=True))


def _item_columns(owners: Sequence[tuple[Item, ...]]) -> Columns:
    """How many of each kind of item, and what those with a price cost."""
    return [
        [{item.kind: f"{item.micros}e-6" for item in items} for items in owners],
        [{item.kind: money(item.nanousd) for item in items if item.nanousd is not None} for items in owners],
    ]


def breaker_columns(status: ProxyStatus, breakers: Sequence[BreakerStatus]) -> Columns:
    """In the order of schema.DEPLOYMENT_STATUS."""
    many = len(breakers)
    return [
        [status.at_us] * many,
        [status.proxy_id] * many,
        [b.deployment for b in breakers],
        [b.state for b in breakers],
        [b.since_us for b in breakers],
        [b.reason for b in breakers],
        [b.error_ratio for b in breakers],
        [b.calls for b in breakers],
        [status.snapshot_version] * many,
    ]


def proxy_status_columns(status: ProxyStatus) -> Columns:
    """In the order of schema.PROXY_STATUS; one row."""
    return [
        [status.at_us],
        [status.proxy_id],
        [status.snapshot_version],
        [list(status.lease_ids)],
        [status.calls_inflight],
        [status.calls_total],
        [status.ledger_calls],
        [money(status.ledger_nanousd)],
        [status.spool_bytes],
        [status.spool_dropped],
    ]


def incident_event_columns(rows: Sequence[IncidentEventRow]) -> Columns:
    """In the order of schema.INCIDENT_EVENTS."""
    return _struct_columns(rows)


def run_event_columns(rows: Sequence[RunEventRow]) -> Columns:
    """In the order of schema.RUN_EVENTS."""
    return _struct_columns(rows)


def _struct_columns(rows: Sequence[IncidentEventRow] | Sequence[RunEventRow]) -> Columns:
    """Structs whose fields are in the order of their table's columns."""
    return list(zip(*(msgspec.structs.astuple(row) for row in rows), strict=True))

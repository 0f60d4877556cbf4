"""Calls as they are remembered: lists in pages, and one call with its attempts and bodies."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from controlplane.contract.pricing import TOKEN_KINDS, Item, Tokens
from controlplane.contract.records import AttemptRecord, CallRecord, Payload
from controlplane.errors import BadRequest, NotFound
from controlplane.store.client import Store, Value
from controlplane.store.rows import nanousd

_LIMIT_MAX = 2**32 - 1  # what the query's parameter holds
_TOKENS = ", ".join(f"tokens_{kind}" for kind in TOKEN_KINDS)
_CALL = f"""
call_id, toUnixTimestamp64Micro(started) AS started_us, latency_us, operation, outcome, status, tenant, key_id, agent, session, user, tags,
channel, priority, trace_id, alias, model, deployment, stream, first_token_us, overhead_us, error_code, finish_reason, cache, {_TOKENS},
reinterpretAsInt64(cost_usd) AS cost_nanousd, cost_state, reinterpretAsInt64(saved_usd) AS saved_nanousd, price_version,
snapshot_version, request_bytes, response_bytes
"""
_ATTEMPT = f"""
deployment, upstream, model, toUnixTimestamp64Micro(started) AS started_us, latency_us, first_token_us, status, error, {_TOKENS},
reinterpretAsInt64(cost_usd) AS cost_nanousd, cost_state, price_version, probe, items, items_usd
"""

_LIST = f"""
SELECT {_CALL} FROM calls
WHERE started >= fromUnixTimestamp64Micro({{from_us:Int64}}, 'UTC') AND started < fromUnixTimestamp64Micro({{to_us:Int64}}, 'UTC')
    AND (started, call_id) < (fromUnixTimestamp64Micro({{before_us:Int64}}, 'UTC'), {{before_call_id:String}})
    AND ({{tenant:String}} = '' OR tenant = {{tenant:String}}) AND ({{agent:String}} = '' OR agent = {{agent:String}})
    AND ({{session:String}} = '' OR session = {{session:String}}) AND ({{outcome:String}} = '' OR outcome = {{outcome:String}})
    AND ({{model:String}} = '' OR model = {{model:String}} OR alias = {{model:String}})
    AND ({{deployment:String}} = '' OR deployment = {{deployment:String}}) AND ({{cache:String}} = '' OR cache = {{cache:String}})
ORDER BY started DESC, call_id DESC LIMIT {{limit:UInt32}}
"""  # noqa: S608 - made of constants

# The bloom filter on call_id finds the few granules, whatever the day; a repeated id (there is none) would give the first.
_SHOW = f"SELECT {_CALL} FROM calls WHERE call_id = {{call_id:String}} ORDER BY started LIMIT 1"  # noqa: S608
_SHOW_ATTEMPTS = f"""
SELECT {_ATTEMPT} FROM attempts
WHERE call_id = {{call_id:String}} AND started >= fromUnixTimestamp64Micro({{from_us:Int64}}, 'UTC')
    AND started <= fromUnixTimestamp64Micro({{to_us:Int64}}, 'UTC')
ORDER BY attempt LIMIT 1000
"""  # noqa: S608
_SHOW_PAYLOAD = """
SELECT request, response, retention_days FROM payloads
WHERE tenant = {tenant:String} AND call_id = {call_id:String} AND started = fromUnixTimestamp64Micro({started_us:Int64}, 'UTC')
LIMIT 1
"""


class CallFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls are wanted, newest first; empty strings match everything.

    before_us, before_call_id: the last call of the page before; 0 begins with the newest. model: what served, or what was asked for.
    """

    from_us: int
    to_us: int
    before_us: int = 0
    before_call_id: str = ""
    tenant: str = ""
    agent: str = ""
    session: str = ""
    model: str = ""
    deployment: str = ""
    outcome: str = ""
    cache: str = ""
    limit: int = 100


def list_calls(store: Store, wanted: CallFilter) -> list[CallRecord]:
    """Matching calls without attempts, newest first; blocking. Whoever asks bounds the page; raises BadRequest for one of no calls."""
    if not 1 <= wanted.limit <= _LIMIT_MAX:
        raise BadRequest(f"a page has at least one call, and at most {_LIMIT_MAX}, not {wanted.limit}")
    parameters: dict[str, Value] = msgspec.structs.asdict(wanted)
    parameters["before_us"] = wanted.before_us or wanted.to_us
    return [_call(row) for row in store.mappings(_LIST, parameters)]


def show_call(store: Store, call_id: str) -> CallRecord:
    """One call with its attempts and, where they are kept, its bodies; blocking. Raises NotFound."""
    rows = store.mappings(_SHOW, {"call_id": call_id})
    if not rows:
        raise NotFound(f"there is no call {call_id}; it may be older than the retention, or not stored yet")
    call = _call(rows[0])
    reach_us = call.latency_us + 60_000_000
    window: dict[str, Value] = {
        "call_id": call_id,
        "from_us": call.started_us - 60_000_000,
        "to_us": call.started_us + reach_us,
    }
    attempts = tuple(_attempt(row) for row in store.mappings(_SHOW_ATTEMPTS, window))
    return msgspec.structs.replace(call, attempts=attempts, payload=_payload(store, call))


def _payload(store: Store, call: CallRecord) -> Payload | None:
    parameters: dict[str, Value] = {"tenant": call.tenant, "call_id": call.call_id, "started_us": call.started_us}
    rows = store.mappings(_SHOW_PAYLOAD, parameters, text_as_bytes=True)
    return msgspec.convert(rows[0], Payload) if rows else None


def _call(row: Mapping[str, object]) -> CallRecord:
    return msgspec.convert(_with_tokens(row), CallRecord)


def _attempt(row: Mapping[str, object]) -> AttemptRecord:
    return msgspec.convert({**_with_tokens(row), "items": _items(row["items"], row["items_usd"])}, AttemptRecord)


def _items(counts: object, costs: object) -> tuple[Item, ...]:
    """What two columns say of the items of an attempt; amounts that a decimal holds exactly."""
    if not isinstance(counts, Mapping) or not isinstance(costs, Mapping):
        raise TypeError(f"{counts!r} and {costs!r} are not what columns of items give")
    return tuple(
        Item(str(kind), int(count * 1_000_000), nanousd(costs[kind]) if kind in costs else None)
        for kind, count in counts.items()
    )


def _with_tokens(row: Mapping[str, object]) -> dict[str, object]:
    """The token columns as one value."""
    tokens = msgspec.convert({kind: row[f"tokens_{kind}"] for kind in TOKEN_KINDS}, Tokens)
    return {**row, "tokens": tokens}

"""What a try cost and what a call amounts to: tokens to money, estimates where the truth will never come, and the record."""

from __future__ import annotations

import time

import msgspec

from controlplane.contract.pricing import (
    NO_TOKENS,
    Item,
    Price,
    Tokens,
    UnknownPrice,
    cost_nanousd,
    known_nanousd,
    picture_nanousd,
    priced_at,
    units_nanousd,
)
from controlplane.contract.records import AttemptRecord, CallRecord, CostState, Payload
from controlplane.contract.snapshot import Deployment
from proxy.call import Call
from proxy.dialects.hosted_tools import Used
from proxy.dialects.openai_media import Drawn
from proxy.runtime import KeyIdentity
from proxy.view import label

BYTES_PER_TOKEN = 4  # of a JSON body; an estimate, marked as one wherever it is used
PAYLOAD_BYTES_MAX = 1024 * 1024
FINISH_REASON_CHARS_MAX = 64
_MICRO = 1_000_000


def priced(tokens: Tokens, deployment: Deployment, *, service_class: str = "") -> tuple[int, CostState, str]:
    """Cost in nano-USD, how well it is known if the tokens are, and the version of the price. Unpriced, it is what is known of the cost.

    service_class: the provider's name for how it served; empty: the standard one.
    """
    price = deployment.price
    if price is None:
        return 0, CostState.UNPRICED if tokens.total else CostState.FINAL, ""
    if price.long or (price.service and service_class):
        price = priced_at(price, input_tokens=tokens.total_input, service_class=service_class)
    try:
        return cost_nanousd(tokens, price), CostState.FINAL, price.version
    except UnknownPrice:
        return known_nanousd(tokens, price), CostState.UNPRICED, price.version


def with_tools(cost: int, state: CostState, used: Used, price: Price | None) -> tuple[int, CostState, tuple[Item, ...]]:
    """Cost and state of a try with what its provider's own tools did, and that as items; a count that is a guess makes it an estimate.

    A kind that the price does not know has no cost.
    """
    items = []
    for kind, count in used:
        unit_price = None if price is None else getattr(price, kind)
        items.append(Item(kind, abs(count) * _MICRO, None if unit_price is None else abs(count) * unit_price))
        if count < 0 and state is CostState.FINAL:
            state = CostState.ESTIMATED
    return *with_items(cost, state, tuple(items)), tuple(items)


def with_items(cost: int, state: CostState, items: tuple[Item, ...]) -> tuple[int, CostState]:
    """Cost and state of a try with these items. One without a price leaves the cost too low, so it is not known: unpriced, and never free."""
    cost += sum(item.nanousd or 0 for item in items)
    return cost, CostState.UNPRICED if any(item.nanousd is None for item in items) else state


def by_unit(call: Call, price: Price | None, *, unit: str, heard_us: int | None, drawn: Drawn | None) -> Item | None:
    """What a try that counted no tokens is billed by, at what its price says about one unit; None: how much it was is not known.

    heard_us: sound that the upstream heard; None: it has not said. drawn: what it says of its pictures; None: nothing.
    """
    view = call.view
    if view is None:
        return None
    if unit == "second":
        micros, unit_price = heard_us, None if price is None else price.second
    elif unit == "character":
        micros, unit_price = view.characters * _MICRO, None if price is None else price.character
    else:
        drawn = drawn or Drawn()
        micros = (view.n if drawn.pictures is None else drawn.pictures) * _MICRO
        quality, size = drawn.quality or view.quality, drawn.size or view.size
        unit_price = None if price is None else picture_nanousd(price, quality=quality, size=size)
    if micros is None:
        return None
    return Item(unit, micros, None if unit_price is None else units_nanousd(micros, unit_price))


def estimated_tokens(
    call: Call,
    deployment: Deployment,
    *,
    events: int,
    elapsed_s: float,
    tokens_per_s: float,
    tokens_in: Tokens | None = None,
) -> Tokens:
    """What a try probably used when the upstream never said: the input by its size, the output by what was seen of it.

    tokens_in: what the upstream said of the input before it stopped talking.
    events: what was seen of the output, in about as many pieces as tokens; 0 when nothing was, then it is elapsed_s at tokens_per_s.
    The output never exceeds what the request and the deployment allow, which is what was reserved.
    """
    view = call.view
    if view is None:
        return NO_TOKENS
    ceiling = deployment.max_output_tokens if view.max_output_tokens is None else view.max_output_tokens
    output = events or int(elapsed_s * tokens_per_s)
    output = min(output, ceiling * view.n)
    if tokens_in is not None:
        return msgspec.structs.replace(tokens_in, output=max(tokens_in.output, output))
    return Tokens(input=(len(call.body) - view.file_bytes) // BYTES_PER_TOKEN, output=output)


def sum_up(call: Call) -> None:
    """Fills in the call's tokens, cost and cost state from its attempts: what upstreams bill, not what the client was sent."""
    attempts = call.attempts
    if not attempts:
        return
    if len(attempts) == 1:
        only = attempts[0]
        call.tokens, call.cost_nanousd = only.tokens, only.cost_nanousd
        call.cost_state, call.price_version = only.cost_state, only.price_version
        return
    call.tokens = _sum(attempts)
    call.cost_nanousd = sum(attempt.cost_nanousd for attempt in attempts)
    states = {
        attempt.cost_state
        for attempt in attempts
        if attempt.tokens.total or attempt.cost_nanousd or attempt.cost_state is CostState.UNPRICED
    }
    call.cost_state = next((s for s in (CostState.UNPRICED, CostState.ESTIMATED) if s in states), CostState.FINAL)
    call.price_version = attempts[-1].price_version


def _sum(attempts: list[AttemptRecord]) -> Tokens:
    """Tokens of all attempts, kind by kind."""
    counts = {kind: sum(getattr(attempt.tokens, kind) for attempt in attempts) for kind in Tokens.__struct_fields__}
    return Tokens(**counts)


def record_of(call: Call) -> CallRecord:
    """The one record of a call, as it stands now: made at settlement, after the stages were left."""
    elapsed_us = (time.monotonic_ns() - call.started_ns) // 1000
    identity, view, reply, route = call.identity, call.view, call.reply, call.route
    return CallRecord(  # by position: so many names would cost a microsecond of each call
        call.call_id,
        call.started_us,
        elapsed_us,
        call.operation,
        call.outcome,
        call.status,
        "" if identity is None else identity.tenant.id,
        "" if identity is None else identity.key.id,
        call.agent,
        call.session,
        call.user,
        call.tags,
        call.channel,
        call.priority,
        call.trace_id,
        "" if view is None else label(view.model),
        "" if route is None or view is None else _routed(call, view.model, route.route.alias),
        "" if reply is None else reply.model,
        "" if reply is None else reply.deployment,
        view is not None and view.stream,
        call.first_token_us,
        max(0, elapsed_us - call.waited_ns // 1000),
        call.error_code,
        "" if reply is None else label(reply.finish_reason, FINISH_REASON_CHARS_MAX),
        call.cache,
        call.tokens,
        call.cost_nanousd,
        call.cost_state,
        call.saved_nanousd,
        call.price_version,
        call.runtime.version,
        len(call.body),
        call.response_bytes,
        tuple(call.attempts),
        None if identity is None or not identity.tenant.payloads.store else _payload_of(call, identity),
    )


def _routed(call: Call, named: str, alias: str) -> str:
    """The alias under which quotas counted the call, where that is not the one that it named: of another model, or of a path."""
    return alias if alias != named or call.fell_back else ""


def _payload_of(call: Call, identity: KeyIdentity) -> Payload:
    """Request and response, each cut at a megabyte."""
    kept = getattr(call, "response_kept", b"")
    response = kept if call.reply is None or call.reply.stream is not None else call.reply.body
    return Payload(
        request=call.body[:PAYLOAD_BYTES_MAX],
        response=bytes(response[:PAYLOAD_BYTES_MAX]),
        retention_days=identity.tenant.payloads.retention_days,
    )

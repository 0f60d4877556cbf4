"""Holds what a call may cost at worst against its tenant's token limit and budgets, until the truth is known.

The worst case is an upper bound, not a guess, or a budget could be overspent:

- Input: the bytes of the body, plus a fixed count for each image. A token of text is at least one byte of UTF-8 (the tokenizers are byte-level),
  JSON escapes only lengthen text, and what a provider's chat template adds for each message or tool (a few tokens) is less than the
  JSON that a message or tool needs (`{"role":"user","content":""}` is 28 bytes). Audio comes inside the body. An image is a
  short URL, hence its own count from settings.
- Output: the client's own ceiling for an answer, else the tenant's, which the proxy writes into the body, else the deployment's; times
  the answers asked for.
- Money: both at the dearest price of their direction, and of all candidates the dearest.

What is outside the bound: documents that a request names by file id, and attempts that fail after they have begun to cost. A call
that costs more than its reservation is booked in full and counted (`Ledger.exceeded_total`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

from controlplane.contract.pricing import worst_case_nanousd
from controlplane.contract.snapshot import TenantPolicy, Unpriced
from proxy.call import Call, Reply
from proxy.dialects.dialect import RequestView
from proxy.ledger import Ledger, Refused, Reservation
from proxy.quotas.plan import TOKENS_PER_MINUTE
from proxy.quotas.windows import NEVER_US
from proxy.refusals import OVER_BUDGET, RATE_LIMITED, UNPRICED, refuse

SOUND_TOKENS_MAX = 16_000  # reserved for each file with sound: more than a transcribing model takes in


class Reserve:
    """The stage between a call and its tenant's money."""

    name: ClassVar[str] = "reserve"

    def __init__(
        self, ledger: Ledger, *, image_tokens_max: int, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        """image_tokens_max: reserved for each image. now_us: the wall clock, Unix microseconds."""
        self._ledger = ledger
        self._image_tokens_max = image_tokens_max
        self._now_us = now_us

    def enter(self, call: Call) -> Reply | None:
        """Reserves where there is a limit. Candidates without a price are taken out where the tenant does not allow them."""
        identity, view = call.identity, call.view
        if identity is None or view is None or view.free:
            return None
        policy = identity.tenant
        if policy.unpriced is Unpriced.REFUSE:
            priced = tuple(candidate for candidate in call.candidates if candidate.deployment.price is not None)
            if not priced:
                return _refuse_unpriced(policy, view)
            call.candidates = priced
        if policy.tokens_per_minute is None and not policy.budgets:
            return None
        tokens, nanousd = worst_case(call, view, image_tokens_max=self._image_tokens_max)
        now_us = self._now_us()
        held = self._ledger.reserve(policy, tokens=tokens, nanousd=nanousd, now_us=now_us)
        call.ratelimit_tokens = self._ledger.tokens_left(policy, now_us=now_us)
        if isinstance(held, Refused):
            return _refuse_over(policy, held, now_us=now_us)
        call.reservation = held
        return None

    def leave(self, call: Call) -> None:
        """Gives the reservation back. The call's record, booked right after with no `await` between, settles the truth."""
        held, call.reservation = call.reservation, None
        if isinstance(held, Reservation):
            if call.cost_nanousd > held.nanousd or call.tokens.total > held.tokens:
                self._ledger.exceeded_total += 1
            self._ledger.release(held)


def worst_case(
    call: Call, view: RequestView, *, image_tokens_max: int, sound_tokens_max: int = SOUND_TOKENS_MAX
) -> tuple[int, int]:
    """The most tokens and nano-USD that one answer to this request can need at any of its candidates.

    Candidates without a price count with their tokens alone.
    """
    files = view.image_parts * image_tokens_max + view.sound_parts * sound_tokens_max
    tokens_in = len(call.body) - view.file_bytes + files
    ceiling = call.output_ceiling if view.max_output_tokens is None else view.max_output_tokens
    tokens_out_max = 0
    nanousd_max = 0
    for candidate in call.candidates:
        deployment = candidate.deployment
        tokens_out = (deployment.max_output_tokens if ceiling is None else ceiling) * view.n
        tokens_out_max = max(tokens_out_max, tokens_out)
        if deployment.price is not None:
            nanousd = worst_case_nanousd(tokens_in=tokens_in, tokens_out=tokens_out, price=deployment.price)
            nanousd_max = max(nanousd_max, nanousd)
    return tokens_in + tokens_out_max, nanousd_max


def _refuse_unpriced(policy: TenantPolicy, view: RequestView) -> Reply:
    return refuse(
        UNPRICED,
        f"model `{view.model}` has no price and tenant `{policy.id}` allows only priced models; "
        "use another model, or have its operator add a price to its deployment or set the tenant's `unpriced: allow`",
        param="model",
    )


def _refuse_over(policy: TenantPolicy, refused: Refused, *, now_us: int) -> Reply:
    """The limit by name, what is left of it, and when it starts anew."""
    minute = refused.scope == TOKENS_PER_MINUTE
    scope = "the limit of tokens per minute" if minute else f"budget `{refused.scope}`"
    limit = _amount(refused.limit_all, refused)
    if refused.limit != refused.limit_all:
        limit += f", of which the worker that answers enforces {_amount(refused.limit, refused)}"
    amounts = (
        f"limit {limit}, settled {_amount(refused.used, refused)}, "
        f"held by calls in flight {_amount(refused.reserved, refused)}, this call may need {_amount(refused.wanted, refused)}"
    )
    if refused.wanted > refused.limit_all:
        advice = "it can never pass; shorten it, lower `max_tokens` or raise the limit"
        return refuse(OVER_BUDGET, f"this call alone is over {scope} of tenant `{policy.id}` ({amounts}): {advice}")
    if refused.wanted > refused.limit:
        advice = "shorten it, lower `max_tokens`, raise the limit or run fewer workers"
        return refuse(
            OVER_BUDGET,
            f"this call alone is over one worker's part of {scope} of tenant `{policy.id}` ({amounts}): {advice}",
        )
    message = f"{scope} of tenant `{policy.id}` has not enough left ({amounts})"
    if refused.resets_us == NEVER_US:
        return refuse(OVER_BUDGET, f"{message}; it never resets: raise it")
    resets = datetime.fromtimestamp(refused.resets_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return refuse(
        RATE_LIMITED if minute else OVER_BUDGET,
        f"{message}; it resets at {resets}",
        retry_after_s=(refused.resets_us - now_us) / 1_000_000,
    )


def _amount(amount: int, refused: Refused) -> str:
    """`1200 tokens` or `0.0345 USD`, exact."""
    if refused.unit == "tokens":
        return f"{amount} tokens"
    whole, fraction = divmod(amount, 1_000_000_000)
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + " USD"

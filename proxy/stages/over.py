"""What a client hears when a ceiling is in its way: which one, whose, how much of it is used, and when it begins anew."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.contract.snapshot import QuotaScope, TenantPolicy
from proxy.call import Reply
from proxy.dialects.dialect import RequestView
from proxy.ledger import Refused
from proxy.quotas.plan import TOKENS_PER_MINUTE
from proxy.quotas.windows import NEVER_US
from proxy.refusals import OVER_BUDGET, RATE_LIMITED, UNPRICED, refuse

_SLOT_RETRY_S = 1.0
_SOON_S = 61.0  # a window that ends so soon is a rate, to be waited for


def refuse_over(policy: TenantPolicy, refused: Refused, *, now_us: int) -> Reply:
    """The limit by name, what is left of it, and when it starts anew."""
    scope = _scope(policy, refused)
    if refused.unit == "calls":
        message = f"{scope} allows {_amount(refused.limit_all, refused)} at once, and {refused.reserved} are in flight"
        return refuse(RATE_LIMITED, message, retry_after_s=_SLOT_RETRY_S)
    limit = _amount(refused.limit_all, refused)
    if refused.limit != refused.limit_all:
        limit += f", of which the worker that answers enforces {_amount(refused.limit, refused)}"
    amounts = (
        f"limit {limit}, settled {_amount(refused.used, refused)}, "
        f"held by calls in flight {_amount(refused.reserved, refused)}, this call may need {_amount(refused.wanted, refused)}"
    )
    if refused.wanted > refused.limit_all:
        advice = "it can never pass; shorten it, lower `max_tokens` or raise the limit"
        return refuse(OVER_BUDGET, f"this call alone is over {scope} ({amounts}): {advice}")
    if refused.wanted > refused.limit and not refused.leased:
        advice = "shorten it, lower `max_tokens`, raise the limit or run fewer workers"
        return refuse(OVER_BUDGET, f"this call alone is over one worker's part of {scope} ({amounts}): {advice}")
    message = f"{scope} has not enough left ({amounts})"
    if refused.resets_us == NEVER_US:
        return refuse(OVER_BUDGET, f"{message}; it never resets: raise it")
    resets = datetime.fromtimestamp(refused.resets_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wait_s = (refused.resets_us - now_us) / 1_000_000
    rate = refused.scope == TOKENS_PER_MINUTE or (refused.minute and wait_s < _SOON_S)
    return refuse(RATE_LIMITED if rate else OVER_BUDGET, f"{message}; it resets at {resets}", retry_after_s=wait_s)


def refuse_unpriced(policy: TenantPolicy, view: RequestView, lacking: str) -> Reply:
    """lacking: the kind of token that has no price; empty where nothing has."""
    what = f"no price for {lacking} tokens, which this call can use," if lacking else "no price"
    return refuse(
        UNPRICED,
        f"model `{view.model[:128]}` has {what} and tenant `{policy.id}` allows only priced models; "
        "use another model, or have its operator add a price to its deployment or set the tenant's `unpriced: allow`",
        param="model",
    )


def _scope(policy: TenantPolicy, refused: Refused) -> str:
    """`budget `month` of tenant `acme``, or `quota `x` of agent `y` of tenant `acme``."""
    if refused.scope == TOKENS_PER_MINUTE:
        return f"the limit of tokens per minute of tenant `{policy.id}`"
    if refused.budget:
        return f"budget `{refused.scope}` of tenant `{policy.id}`"
    if refused.per is QuotaScope.TENANT:
        return f"quota `{refused.scope}` of tenant `{policy.id}`"
    whose = f"{refused.per} `{refused.value}`" if refused.value else f"calls without {refused.per}"
    return f"quota `{refused.scope}` of {whose} of tenant `{policy.id}`"


def _amount(amount: int, refused: Refused) -> str:
    """`1200 tokens` or `0.0345 USD`, exact."""
    if refused.unit != "nanousd":
        return f"{amount} {refused.unit}"
    whole, fraction = divmod(amount, 1_000_000_000)
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + " USD"

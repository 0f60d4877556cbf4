"""What an upstream says that an answer cost, read where an operator said that it does; never believed, only compared with our own figure.

A figure in the wrong unit, or somebody else's, would otherwise spend a tenant's budget. It goes onto the attempt's record, and one that is
out of bounds is counted.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from controlplane.contract.pricing import NANOUSD_PER_USD

_COST = re.compile(rb'"cost"\s*:\s*([0-9][0-9.eE+-]{0,40})\s*[,}]')
_USAGE = b'"usage"'
_CURRENCY = re.compile(rb'"currency"\s*:\s*"([^"]{0,16})"')
_USD_MAX = 1_000_000
_SLACK_NANOUSD = 1_000  # below this, figures differ by rounding alone


def reported_nanousd(data: bytes) -> int | None:
    """The `cost` in the last `usage` of an answer, in USD there; None if there is none, none that can be, or one in another currency."""
    at = data.rfind(_USAGE)
    found = _COST.search(data, at) if at >= 0 else None
    if found is None:
        return None
    currency = _CURRENCY.search(data, at)
    if currency is not None and currency[1].upper() != b"USD":
        return None
    try:
        usd = Decimal(found[1].decode())
    except InvalidOperation:
        return None
    return int(usd * NANOUSD_PER_USD) if usd <= _USD_MAX else None


def out_of_bounds(reported: int, own: int, *, ratio_max: float) -> bool:
    """Whether two figures for one cost, in nano-USD, cannot both be right. ratio_max: how many times one may be the other."""
    smaller, larger = sorted((reported, own))
    return larger - smaller > _SLACK_NANOUSD and larger > smaller * ratio_max

"""The parameters that lists share: a period of time and a number of rows, both bounded."""

from __future__ import annotations

from typing import Annotated

from litestar.params import QueryParameter

from controlplane.clock import US_PER_S
from controlplane.errors import BadRequest

_HOUR_US = 3600 * US_PER_S
_MOMENT_US_MAX = 253_402_300_800 * US_PER_S  # the year 10000

Period = Annotated[int | None, QueryParameter(ge=0, le=_MOMENT_US_MAX, description="Microseconds since 1970, UTC.")]
Rows = Annotated[int, QueryParameter(ge=1, description="Rows wanted; more than the setting allows are cut.")]


def bounded(from_us: int | None, to_us: int | None, *, now_us: int) -> tuple[int, int]:
    """A period with both ends: until now, and an hour long, where nothing was said; raises BadRequest when it is empty."""
    end_us = now_us if to_us is None else to_us
    begin_us = max(0, end_us - _HOUR_US) if from_us is None else from_us
    if begin_us >= end_us:
        raise BadRequest("from_us must be earlier than to_us")
    return begin_us, end_us

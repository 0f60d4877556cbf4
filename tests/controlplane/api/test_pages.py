"""The parameters that lists share."""

from __future__ import annotations

import pytest

from controlplane.api.pages import bounded
from controlplane.clock import US_PER_S
from controlplane.errors import BadRequest
from tests.controlplane.api.fakes import START_US


def test_a_period_has_two_ends() -> None:
    """Without ends it is the last hour; an empty one is refused."""
    now_us = START_US
    assert (now_us - 3600 * US_PER_S, now_us) == bounded(None, None, now_us=now_us)
    assert (1, 2) == bounded(1, 2, now_us=now_us)
    assert (0, 5) == bounded(None, 5, now_us=now_us)
    with pytest.raises(BadRequest):
        bounded(2, 2, now_us=now_us)

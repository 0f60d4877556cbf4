"""Tests of the parts into which a limit falls where nobody can ask anybody else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.quotas.account import Share


@given(st.integers(0, 10**15), st.integers(1, 20), st.integers(1, 20))
def test_the_parts_of_all_workers_of_all_hosts_are_never_more_than_the_limit(
    amount: int, workers: int, hosts: int
) -> None:
    """They sum to the limit but for what is lost by rounding, which is less than one for each host."""
    parts = [Share(worker, workers, hosts).of(amount) for worker in range(workers)] * hosts
    assert amount - hosts < sum(parts) <= amount
    assert max(parts) - min(parts) <= 1

"""What is used of budgets and quotas, over HTTP."""

from __future__ import annotations

import httpx

from controlplane.contract.snapshot import BudgetStatus, ProxyStatus
from tests.controlplane.api.fakes import START_US, World


def _line(used: int, *, start_us: int = START_US, degraded: bool = False) -> BudgetStatus:
    return BudgetStatus(
        "acme", "agent-usd-day", start_us, settled_nanousd=used, reserved_nanousd=1, value="bot", unit="nanousd", limit=9,
        window_end_us=start_us + 5, degraded=degraded,
    )  # fmt: skip


async def test_what_proxies_used_is_summed(world: World, operator: httpx.AsyncClient) -> None:
    """Each ceiling is there once, with the use of all workers; a worker that is still in an earlier window does not count."""
    for number, line in enumerate((_line(3), _line(4, degraded=True), _line(100, start_us=START_US - 5))):
        status = ProxyStatus(proxy_id=f"p{number}", at_us=START_US, snapshot_version=1, budgets=(line,))
        world.publisher.confirm(status)
    (shown,) = (await operator.get("/api/v1/budgets")).json()["budgets"]
    assert {
        "tenant": "acme",
        "id": "agent-usd-day",
        "value": "bot",
        "unit": "nanousd",
        "limit": 9,
        "used": 7,
        "reserved": 2,
        "window_start_us": START_US,
        "window_end_us": START_US + 5,
        "degraded": True,
    } == shown

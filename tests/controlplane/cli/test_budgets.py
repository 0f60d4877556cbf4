"""`hephaestus budgets`: what the configuration sets beside what proxies say they have used."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import msgspec
import pytest

from controlplane.api.budgets import BudgetView
from controlplane.catalog.load import load
from controlplane.cli.budgets import Use, ceilings_of, joined, state_of
from controlplane.contract.snapshot import BudgetStatus, ProxyStatus, QuotaAction
from controlplane.contract.wire import STATUS_PATH
from tests.controlplane.app.test_serve import GIVE_UP_S, Process
from tests.controlplane.cli.conftest import Shell
from tests.ports import free_port

LIMITS = """limits: {tokens_per_minute: 1000}, budgets: [{usd: 50, window: month}, {tokens: 900, window: total}],
     quotas: [{per: agent, usd: 5, window: day, action: downgrade, to: deep}, {per: key, concurrency: 3}]"""


@pytest.mark.parametrize(
    ("action", "used", "state"),
    [
        (QuotaAction.HARD, 0, "ok"),
        (QuotaAction.HARD, 79, "ok"),
        (QuotaAction.HARD, 80, "warn"),
        (QuotaAction.HARD, 100, "exhausted"),
        (QuotaAction.SOFT, 170, "warn"),
        (QuotaAction.DOWNGRADE, 99, "warn"),
        (QuotaAction.DOWNGRADE, 100, "downgraded"),
    ],
)
def test_a_state_is_what_a_ceiling_does(action: QuotaAction, used: int, state: str) -> None:
    """Of a hundred, by what happens to the next call."""
    assert state == state_of(action, used=used, limit=100)


def _view(id_: str, unit: str, limit: int, used: int, value: str = "", reserved: int = 0) -> BudgetView:
    return BudgetView("acme", id_, value, unit, limit, used, reserved, 1, 2_000_000, degraded=False)


def test_each_ceiling_is_there_with_its_fullest_instance_first(shell: Shell) -> None:
    """What nobody has used is there with nothing, and what nobody could be asked is unknown."""
    text = shell.config.read_text()
    shell.config.write_text(
        text.replace("limits: {requests_per_minute: 600}, budgets: [{usd: 50, window: month}]", LIMITS)
    )
    ceilings = list(ceilings_of(load(shell.config).config.tenants))
    views = (
        _view("agent-usd-day", "nanousd", 5 * 10**9, 10**9, "scout"),
        _view("agent-usd-day", "nanousd", 5 * 10**9, 5 * 10**9, "bot"),
        _view("key-concurrency", "calls", 3, 0, "key_1", reserved=3),
        _view("gone", "tokens", 3, 3),
    )
    rows = [(ceiling.id, use) for ceiling, use in joined(ceilings, views)]
    assert [
        ("tokens_per_minute", "", 0, 0.0, "ok"),
        ("usd-month", "", 0, 0.0, "ok"),
        ("tokens-total", "", 0, 0.0, "ok"),
        ("agent-usd-day", "bot", 5 * 10**9, 100.0, "downgraded"),
        ("agent-usd-day", "scout", 10**9, 20.0, "ok"),
        ("key-concurrency", "key_1", 3, 100.0, "exhausted"),
    ] == [(id_, use.value, use.used, use.share_percent, use.state) for id_, use in rows]
    assert {"unknown"} == {use.state for _, use in joined(ceilings, None)}


def test_without_a_control_plane_the_ceilings_are_shown_and_it_says_so(shell: Shell) -> None:
    """Status 0: what is configured is known all the same."""
    result = shell.run("budgets")
    assert 0 == result.exit_code
    assert "no control plane answers" in result.stderr
    assert "$50.00" in result.stdout
    assert "unknown" in result.stdout
    (row,) = msgspec.json.decode(shell.run("budgets", "--json").stdout, type=list[Use])
    assert (None, None, "unknown") == (row.used, row.share_percent, row.state)


@pytest.mark.e2e
def test_what_a_proxy_has_used_is_shown(tmp_path: Path) -> None:
    """From a proxy's status through a real control plane to the table: use, share, end of the window, state."""
    plane = Process(tmp_path / "plane", free_port()).start()
    try:
        shell = Shell(plane.wait_up().folder / "hephaestus.yaml")
        text = shell.config.read_text().replace("{name: acme}", "{name: acme, budgets: [{usd: 50, window: month}]}")
        shell.config.write_text(text)
        tenant = load(shell.config).config.tenants[0]
        (budget,) = [one for one in ceilings_of([tenant]) if one.unit == "nanousd"]
        now_us = time.time_ns() // 1000
        line = BudgetStatus(
            tenant.name, budget.id, now_us - 1, settled_nanousd=budget.limit * 9 // 10, reserved_nanousd=5, unit="nanousd",
            limit=budget.limit, window_end_us=now_us + 10**9, degraded=True,
        )  # fmt: skip
        status = ProxyStatus(proxy_id="p1", at_us=now_us, snapshot_version=1, budgets=(line,))
        told = httpx.post(
            f"{plane.url}{STATUS_PATH}",
            content=msgspec.json.encode(status),
            headers=plane.internal(),
            timeout=GIVE_UP_S,
        )
        assert told.is_success, told.text
        shown = shell.run("budgets", "--tenant", tenant.name).stdout
        assert "90.0 %" in shown
        assert "warn (on its own)" in shown
        found = shell.json("budgets")
        assert isinstance(found, list)
        (row,) = [one for one in found if one["id"] == budget.id and one["tenant"] == tenant.name]
        assert (budget.limit * 9 // 10, 5, "warn", True) == (
            row["used"],
            row["reserved"],
            row["state"],
            row["degraded"],
        )
        assert now_us + 10**9 == row["window_end_us"]
    finally:
        plane.end()

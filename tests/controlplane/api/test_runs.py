"""Runs and the kill switch over HTTP."""

from __future__ import annotations

import httpx
import pytest

from tests.controlplane.api.fakes import World


async def test_a_run_is_approved_once(world: World, operator: httpx.AsyncClient) -> None:
    """An approval names who gave it and why; a second one is a conflict."""
    assert 200 == (await operator.post("/api/v1/runs/run_1/approve", json={"reason": "go"})).status_code
    assert [("approve", "operator", "go")] == world.runs.decisions
    assert 409 == (await operator.post("/api/v1/runs/run_1/approve", json={})).status_code


@pytest.mark.parametrize("decision", ["reject", "abort"])
async def test_a_run_is_stopped(world: World, operator: httpx.AsyncClient, decision: str) -> None:
    """A run can be refused and stopped."""
    assert 200 == (await operator.post(f"/api/v1/runs/run_1/{decision}", json={"reason": "no"})).status_code
    assert [(decision, "operator", "no")] == world.runs.decisions
    assert ["run_1"] == [one["id"] for one in (await operator.get("/api/v1/runs")).json()["runs"]]


async def test_the_kill_switch_stops_healing_and_lets_it_go(operator: httpx.AsyncClient) -> None:
    """The switch says who engaged it and why."""
    assert not (await operator.get("/api/v1/kill-switch")).json()["engaged"]
    engaged = (await operator.put("/api/v1/kill-switch", json={"engaged": True, "reason": "storm"})).json()
    assert (True, "operator", "storm") == (engaged["engaged"], engaged["actor"], engaged["reason"])
    assert not (await operator.put("/api/v1/kill-switch", json={"engaged": False})).json()["engaged"]

"""Incidents over HTTP."""

from __future__ import annotations

import httpx


async def test_incidents_have_their_story(operator: httpx.AsyncClient) -> None:
    """The list is a summary, the single incident has its timeline."""
    assert ["inc_1"] == [one["id"] for one in (await operator.get("/api/v1/incidents")).json()["incidents"]]
    assert [] == (await operator.get("/api/v1/incidents?state=firing")).json()["incidents"]
    story = (await operator.get("/api/v1/incidents/inc_1")).json()["timeline"]
    assert ("incident.opened", "incident.resolved") == (story[0]["kind"], story[-1]["kind"])

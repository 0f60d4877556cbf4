"""Requests are counted by route."""

from __future__ import annotations

import httpx

from tests.controlplane.api.fakes import World


async def test_requests_are_counted_by_template_and_class(world: World, operator: httpx.AsyncClient) -> None:
    """Different ids share a label, so that clients cannot make new ones."""
    for call_id in ("call_0", "call_1", "nope"):
        await operator.get(f"/api/v1/calls/{call_id}")
    read = world.metrics.registry.get_sample_value
    route = "/api/v1/calls/{call_id}"
    assert 2.0 == read("heph_api_requests_total", {"route": route, "status": "2xx"})
    assert 1.0 == read("heph_api_requests_total", {"route": route, "status": "4xx"})
    assert 3.0 == read("heph_api_request_seconds_count", {"route": route})


async def test_unknown_paths_make_no_labels(world: World, operator: httpx.AsyncClient) -> None:
    """A path that is no route leaves nothing behind in the registry."""
    await operator.get("/scan/for/holes.php")
    samples = [sample for family in world.metrics.registry.collect() for sample in family.samples]
    assert not [sample for sample in samples if "holes" in str(sample.labels)]

"""Switching faults and reading counts over the administration port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from controlplane.demo.provider import Provider
from tests.controlplane.demo.fakes import RawClient, post, question


@pytest.fixture
async def admin(provider: Provider) -> AsyncIterator[httpx.AsyncClient]:
    """A client for the administration port."""
    async with httpx.AsyncClient(base_url=provider.admin_url) as client:
        yield client


async def test_faults_are_set_listed_and_cleared(provider: Provider, admin: httpx.AsyncClient) -> None:
    """A fault that is set is in force at once, is listed with its hits, and is over once it is cleared."""
    made = (await admin.post("/_faults", json={"kind": "outage_500", "upstream": "primary"})).json()
    raw = await RawClient.connect(provider.port)
    await raw.send(post(question()))
    assert (await raw.answer())[0] == 500
    listed = (await admin.get("/_faults")).json()
    assert [(made[0]["id"], True, 1)] == [(item["fault"]["id"], item["active"], item["hits"]) for item in listed]
    assert {"cleared": 1} == (await admin.delete(f"/_faults/{made[0]['id']}")).json()
    await raw.send(post(question()))
    assert (await raw.answer())[0] == 200
    await raw.close()


async def test_refused_outage_is_switched_over_http(provider: Provider, admin: httpx.AsyncClient) -> None:
    """Connections are refused as soon as the answer is there, the administration survives, and clearing opens the port again."""
    await admin.put("/_faults/blackout", json={"kind": "outage_refused", "upstream": str(provider.port)})
    with pytest.raises(ConnectionRefusedError):
        await RawClient.connect(provider.port)
    other = await RawClient.connect(provider.ports["secondary"])
    await other.close()
    await admin.delete("/_faults/blackout")
    raw = await RawClient.connect(provider.port)
    await raw.send(post(question()))
    assert (await raw.answer())[0] == 200
    await raw.close()


async def test_a_list_is_set_as_a_whole(admin: httpx.AsyncClient) -> None:
    """Several faults are set by one request, in YAML too; if one is bad, none is."""
    bad = await admin.post("/_faults", json=[{"kind": "hang"}, {"kind": "hang", "upstream": "nowhere"}])
    assert bad.status_code == 400
    assert [] == (await admin.get("/_faults")).json()
    good = await admin.post("/_faults", content="faults:\n- kind: hang\n- {kind: outage_503, for_s: 3}\n")
    assert ["hang", "outage_503"] == [fault["kind"] for fault in good.json()]
    assert {"cleared": 2} == (await admin.delete("/_faults")).json()


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "message"),
    [
        ("POST", "/_faults", b"{", 400, "neither JSON nor YAML"),
        ("POST", "/_faults", b"\xff\xfe\x00", 400, "neither JSON nor YAML"),
        ("POST", "/_faults", b"", 400, "object"),
        ("POST", "/_faults", b'{"kind": "storm"}', 400, "storm"),
        ("POST", "/_faults", b'{"kind": "hang", "at": 3}', 400, "at"),
        ("POST", "/_faults", b'{"kind": "hang", "upstream": "tertiary"}', 400, "there are: primary"),
        ("POST", "/_faults", b'{"kind": "outage_refused", "match": {"share": 0.5}}', 400, "match"),
        ("PUT", "/_faults/a", b'[{"kind": "hang"}, {"kind": "hang"}]', 400, "exactly one"),
        ("PATCH", "/_faults", b"", 405, "try GET"),
        ("DELETE", "/_faults/nothing", b"", 404, "nothing"),
        ("GET", "/_faults/nothing", b"", 404, "nothing"),
        ("GET", "/", b"", 404, "try GET"),
        ("POST", "/_stats", b"", 404, "try GET"),
    ],
)
async def test_bad_input_is_told_what_is_wrong(
    admin: httpx.AsyncClient, method: str, path: str, content: bytes, status: int, message: str
) -> None:
    """Bad input gets a status and a sentence that says what to change."""
    answer = await admin.request(method, path, content=content)
    assert status == answer.status_code
    assert message in answer.json()["error"]


async def test_stats_are_counted_and_reset(provider: Provider, admin: httpx.AsyncClient, raw: RawClient) -> None:
    """Counts grow with the calls, refused ones by status, and start again after DELETE, which returns the last ones."""
    await raw.send(post(question()))
    await raw.answer()
    await raw.send(post(question(), key=None))
    await raw.answer()
    counts = (await admin.get("/_stats")).json()["primary"]
    assert (2, {"401": 1}, 1) == (counts["requests"], counts["refused_by_status"], counts["connections"])
    assert (await admin.delete("/_stats")).json()["primary"]["requests"] == 2
    assert (await admin.get("/_stats")).json()["primary"]["requests"] == 0


async def test_health_names_the_ports(provider: Provider, admin: httpx.AsyncClient) -> None:
    """The health answer tells which upstream is where."""
    assert provider.ports == (await admin.get("/_health")).json()["ports"]

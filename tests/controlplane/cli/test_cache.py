"""`hephaestus cache`: from the command line through a real control plane to the snapshot that proxies get."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import msgspec
import pytest

from controlplane.contract.records import CacheState
from controlplane.contract.snapshot import decode_snapshot
from controlplane.contract.wire import BATCH_PATH, SNAPSHOT_PATH, TOKEN_HEADER
from tests.controlplane.app.test_serve import GIVE_UP_S, Process
from tests.controlplane.cli.conftest import Shell
from tests.controlplane.store.fakes import a_call, a_segment
from tests.ports import free_port

pytestmark = pytest.mark.e2e


def test_an_invalidation_reaches_the_snapshot(tmp_path: Path) -> None:
    """A dry run counts and changes nothing; the same for real is in the next snapshot, and in the list of those in force."""
    plane = Process(tmp_path / "plane", free_port()).start()
    try:
        shell = Shell(plane.wait_up().folder / "hephaestus.yaml")
        calls = [
            msgspec.structs.replace(
                a_call(number, at_us=time.time_ns() // 1000 - 10**6), response_bytes=100, cache=state
            )
            for number, state in enumerate([CacheState.MISS, CacheState.MISS, CacheState.HIT])
        ]
        stored = httpx.post(
            f"{plane.url}{BATCH_PATH}",
            content=a_segment(*calls),
            headers=plane.internal() | {TOKEN_HEADER: "p1/1"},
            timeout=GIVE_UP_S,
        )
        assert 200 == stored.status_code
        wanted = ("--tenant", "acme", "--agent", "scout")
        assert {"entries_at_most": 2, "bytes_at_most": 200} == _counted(shell, *wanted, "--dry-run")
        assert {"entries_at_most": 0, "bytes_at_most": 0} == _counted(shell, "--tenant", "nobody", "--dry-run")
        before = decode_snapshot(_poll(plane, 0))
        assert () == before.invalidations
        assert "2 stored answers, 200 bytes" in shell.run("cache", "invalidate", *wanted, "--reason", "wrong").stdout
        (rule,) = decode_snapshot(_poll(plane, before.version)).invalidations
        assert ("acme", "scout", "wrong") == (rule.tenant, rule.agent, rule.reason)
        listed = shell.json("cache", "invalidations")
        assert isinstance(listed, list)
        assert [rule.id] == [one["id"] for one in listed]
        assert "tenant=acme agent=scout" in shell.run("cache", "invalidations").stdout
    finally:
        plane.end()


@pytest.mark.parametrize("said", [(), ("--everything", "--tenant", "acme")], ids=["nothing", "both"])
def test_what_is_meant_must_be_clear(shell: Shell, said: tuple[str, ...]) -> None:
    """Neither everything nor a selector, or both: status 2, and which options there are."""
    result = shell.run("cache", "invalidate", *said)
    assert (2, True) == (result.exit_code, "--everything" in result.output)


def test_without_a_control_plane_it_says_so(shell: Shell) -> None:
    """Status 1 and what to start."""
    result = shell.run("cache", "invalidate", "--everything")
    assert 1 == result.exit_code
    assert "no control plane answers" in result.output


def _counted(shell: Shell, *words: str) -> object:
    answer = shell.json("cache", "invalidate", *words)
    assert isinstance(answer, dict)
    assert answer.get("rule") is None
    return answer["count"]


def _poll(plane: Process, have: int) -> bytes:
    answer = httpx.get(
        f"{plane.url}{SNAPSHOT_PATH}", params={"have": have, "wait_s": 20}, headers=plane.internal(), timeout=GIVE_UP_S
    )
    assert 200 == answer.status_code
    return answer.content

"""Changes while calls are being served: fresh workers, another configuration, a revoked key. Nothing that is allowed fails."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.e2e.processes import DEFAULT_CATALOG, World, eventually

pytestmark = pytest.mark.e2e
CALLERS = 4


@pytest.fixture(scope="module")
def rolling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two workers under `hephaestus up`."""
    made = World(tmp_path_factory.mktemp("rolling"), server="  workers: 2")
    try:
        made.key()
        made.start("provider")
        made.start("up")
        made.wait_ready()
        yield made
    finally:
        made.down()


def while_called(rolling: World, change: Callable[[], None]) -> Counter[str]:
    """What calls that clients make without a pause, over kept connections, while something changes, come to: `ok`, or what they were told."""
    enough = threading.Event()
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}

    def call(seen: Counter[str]) -> None:
        with httpx.Client(headers={"authorization": f"Bearer {rolling.key()}"}, timeout=30) as client:
            while not enough.is_set():
                answer = client.post(f"{rolling.base_url}/chat/completions", json=body)
                seen["ok" if answer.status_code == 200 else f"{answer.status_code}: {answer.text}"] += 1

    counters: list[Counter[str]] = [Counter() for _ in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(call, counter) for counter in counters]
        try:
            change()
        finally:
            enough.set()
        for one in running:
            one.result()
    return sum(counters, Counter())


def worker_pids(rolling: World) -> set[int]:
    """The proxy's workers."""
    found = set()
    for child in psutil.Process(rolling.running["up"].pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "--worker" in child.cmdline():
                found.add(child.pid)
    return found


def test_sighup_replaces_the_workers_without_a_failed_call(rolling: World) -> None:
    """After SIGHUP both workers are other processes with the settings that the file has now, and every call was answered."""
    before = worker_pids(rolling)

    def change() -> None:
        rolling.server = "  workers: 2\n  proxy: {header_bytes_max: 2048}"
        rolling.write_config()
        rolling.running["up"].send_signal(signal.SIGHUP)
        eventually(lambda: len(after := worker_pids(rolling)) == 2 and not after & before, what="two other workers")
        eventually(lambda: refuses_long_heads(rolling), what="the fresh settings")

    assert {"ok"} == set(while_called(rolling, change))


def refuses_long_heads(rolling: World) -> bool:
    """Whether the bound that the fresh settings set is in force."""
    headers = {"authorization": f"Bearer {rolling.key()}", "x-long": "x" * 4096}
    return all(rolling.get(f"{rolling.base_url}/models", headers=headers).status_code == 431 for _ in range(8))


def test_a_changed_configuration_is_served_without_a_failed_call(rolling: World) -> None:
    """A model that is added to the file is served by every worker soon after, and every other call was answered."""

    def change() -> None:
        rolling.catalog = rolling.catalog or DEFAULT_CATALOG
        rolling.catalog = rolling.catalog.replace(
            "models:", "models:\n  - {name: added, deployments: [{upstream: primary, model: gpt-4o}]}", 1
        )
        rolling.write_config()
        headers = {"authorization": f"Bearer {rolling.key()}"}

        def everywhere() -> bool:
            answers = [rolling.get(f"{rolling.base_url}/models/added", headers=headers) for _ in range(8)]
            return {200} == {answer.status_code for answer in answers}

        eventually(everywhere, what="both workers serve the added model")

    assert {"ok"} == set(while_called(rolling, change))


def test_a_revoked_key_is_refused_by_every_worker(rolling: World) -> None:
    """After a revocation no worker takes the key, while another key of the same tenant goes on."""
    headers = {"authorization": f"Bearer {rolling.key('globex')}"}
    (record,) = [key for key in rolling.api("/keys?tenant=globex").json()["keys"] if not key["revoked_us"]]

    def change() -> None:
        rolling.cli("keys", "revoke", record["id"])
        eventually(
            lambda: {401} == {rolling.get(f"{rolling.base_url}/models", headers=headers).status_code for _ in range(8)},
            what="both workers refuse the key",
        )

    assert {"ok"} == set(while_called(rolling, change))


def test_after_a_kill_of_up_nothing_of_it_stays_and_the_next_start_serves(rolling: World) -> None:
    """`kill -9` of the parent alone: control plane and proxy end by themselves, and their ports and directories are free for another start."""
    killed = rolling.running.pop("up")
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait(30)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [] == alive
    rolling.start("up")
    rolling.wait_ready()
    answer = rolling.get(f"{rolling.base_url}/models", headers={"authorization": f"Bearer {rolling.key()}"})
    assert 200 == answer.status_code, rolling.logs()

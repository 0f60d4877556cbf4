"""Changes while calls are being served: fresh workers, another configuration, a revoked key. Nothing that is allowed fails."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.e2e.processes import DEFAULT_CATALOG, World, eventually

pytestmark = pytest.mark.e2e
CALLERS = 4
REVOKED_US_MAX = 1_000_000


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


def test_a_revocation_holds_everywhere_within_a_second(rolling: World) -> None:
    """No worker lets a call in that began a second after its key was revoked; a machine that is busy may try three times."""
    took_us: list[int] = []
    while len(took_us) < 3 and min(took_us, default=REVOKED_US_MAX + 1) > REVOKED_US_MAX:
        rolling.keys.pop("globex", None)
        headers = {"authorization": f"Bearer {rolling.key('globex')}"}
        eventually(partial(served_everywhere, rolling, headers), what="both workers know the key")
        (record,) = [key for key in rolling.api("/keys?tenant=globex").json()["keys"] if not key["revoked_us"]]
        url = f"http://127.0.0.1:{rolling.port}/api/v1/keys/{record['id']}"
        revoked_us = httpx.delete(url, headers=rolling.operator, timeout=20).json()["revoked_us"]
        took_us.append(last_served_us(rolling, headers) - revoked_us)
    assert min(took_us) <= REVOKED_US_MAX, took_us


def test_a_rotated_key_has_two_secrets_until_its_grace_is_over(rolling: World) -> None:
    """Every worker takes both secrets for as long as the operator said, then the new one alone."""
    rolling.keys.pop("globex", None)
    former = {"authorization": f"Bearer {rolling.key('globex')}"}
    eventually(partial(served_everywhere, rolling, former), what="both workers know the key")
    (record,) = [key for key in rolling.api("/keys?tenant=globex").json()["keys"] if not key["revoked_us"]]
    rotated = json.loads(rolling.cli("keys", "rotate", record["id"], "--grace", "6s", "--json").stdout)
    fresh = {"authorization": f"Bearer {rotated['key']}"}
    eventually(partial(served_everywhere, rolling, fresh), what="both workers know the new secret")
    assert served_everywhere(rolling, former)
    assert abs(rotated["grace_until_us"] - last_served_us(rolling, former)) <= REVOKED_US_MAX
    assert served_everywhere(rolling, fresh)
    rolling.cli("keys", "revoke", record["id"])


def served_everywhere(rolling: World, headers: dict[str, str]) -> bool:
    """Whether calls with these headers are answered, on as many connections as reach every worker."""
    return {200} == {rolling.get(f"{rolling.base_url}/models", headers=headers).status_code for _ in range(16)}


def last_served_us(rolling: World, headers: dict[str, str]) -> int:
    """When the last call began that was answered, once as many in a row are refused as reach every worker; 0 if none was."""
    last_us, refused, until = 0, 0, time.monotonic() + 30
    while refused < 16:
        assert time.monotonic() < until, "still served"
        began_us = time.time_ns() // 1000
        if rolling.get(f"{rolling.base_url}/models", headers=headers).status_code == 200:
            last_us, refused = began_us, 0
        else:
            refused += 1
    return last_us


def test_tokens_of_an_issuer_are_keys_as_long_as_the_configuration_names_it(rolling: World) -> None:
    """What the issuer's key has signed is let in by every worker, and is its bearer's on record; without the issuer it is worthless."""
    private = ec.generate_private_key(ec.SECP256R1())
    claims = {"iss": "https://id.example", "aud": "heph", "sub": "ana", "exp": time.time() + 600}
    token = jwt.encode(claims, private, algorithm="ES256", headers={"kid": "1"})
    public = json.loads(ECAlgorithm.to_jwk(private.public_key())) | {"kid": "1"}
    keys = rolling.folder / "jwks.json"
    keys.write_text(json.dumps({"keys": [public]}))
    headers = {"authorization": f"Bearer {token}"}
    assert 401 == rolling.get(f"{rolling.base_url}/models", headers=headers).status_code
    before = rolling.catalog = rolling.catalog or DEFAULT_CATALOG
    rolling.catalog += f"""
issuers:
  - {{name: corp, issuer: "https://id.example", audience: [heph], jwks_file: {keys}, tenant: globex}}
"""
    rolling.write_config()
    eventually(partial(served_everywhere, rolling, headers), what="both workers take the token")
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{rolling.base_url}/chat/completions", json=body, headers=headers, timeout=30)
    query = f"SELECT tenant, user FROM calls WHERE call_id = '{answer.headers['x-heph-call-id']}'"
    assert [{"tenant": "globex", "user": "ana"}] == eventually(
        lambda: rolling.sql(query), what="the record of the call"
    )
    rolling.catalog = before
    rolling.write_config()
    last_served_us(rolling, headers)  # until all refuse it


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

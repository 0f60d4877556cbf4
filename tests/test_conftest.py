"""What makes every run of the tests alike, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
from hypothesis import HealthCheck, settings

from tests.conftest import FOLDER_PREFIX, remove_folders_of_the_dead, started_here
from tests.proxy.redis_server import RedisServer


def test_examples_are_the_same_in_every_run() -> None:
    """Neither chance nor the machine's speed decides whether a property test passes."""
    assert (True, None) == (settings.default.derandomize, settings.default.deadline)
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_who_trusts_the_system_trusts_nobody_here() -> None:
    """No test reaches beyond this machine over TLS, and no client spends its start on reading whom it could trust."""
    trusted = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"]).get_ca_certs()
    assert 1 == len(trusted)
    assert ssl.cert_time_to_seconds(str(trusted[0]["notAfter"])) < time.time()


def test_folders_of_dead_test_processes_are_removed(tmp_path: Path) -> None:
    """What a killed run left in memory goes with the next one; the living keep theirs, and nobody else's is touched."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for name in (f"{FOLDER_PREFIX}{ended.pid}", f"{FOLDER_PREFIX}{os.getpid()}", f"{FOLDER_PREFIX}notes", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    remove_folders_of_the_dead(tmp_path)
    assert {f"{FOLDER_PREFIX}{os.getpid()}", f"{FOLDER_PREFIX}notes", "other"} == {p.name for p in tmp_path.iterdir()}


def test_a_process_that_was_started_here_is_found_also_without_its_parent() -> None:
    """A child's child is known as ours when the child has gone."""
    said = subprocess.run(["sh", "-c", "sleep 600 >&- & echo $!"], stdout=subprocess.PIPE, text=True, check=True).stdout
    try:
        assert "sleep 600" == {process.pid: command for process, command in started_here().items()}[int(said)]
    finally:
        os.kill(int(said), signal.SIGKILL)


async def test_a_redis_server_is_known_as_ours(tmp_path: Path) -> None:
    """Its title does not write over its mark."""
    redis = await RedisServer(tmp_path).start()
    try:
        assert any(str(redis.port) in command for command in started_here().values())
    finally:
        redis.kill()


def test_what_a_killed_run_started_is_ended(tmp_path: Path) -> None:
    """A test process that is killed takes what it has started with it, though it cannot say so any more."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, subprocess\n"
        "from tests.conftest import STARTED_BY, start_guardian\n"
        "start_guardian()\n"
        "os.environ[STARTED_BY] = str(os.getpid())\n"
        "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        run.kill()
    child.wait(30)
    assert not child.is_running()

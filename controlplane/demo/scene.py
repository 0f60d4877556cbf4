"""The demo's world as files: a configuration with three upstreams of a simulated provider, and durations that a person can watch."""

from __future__ import annotations

from pathlib import Path

import msgspec

PRIMARY, SECONDARY, ANTHROPIC = "primary", "secondary", "anthropic"
CREDENTIAL_FILE = "provider-key"
CREDENTIAL = "sk-simulated"
TENANTS = ("acme", "globex")


class Ports(msgspec.Struct, frozen=True):
    """Where the demo listens."""

    proxy: int = 4000
    control_plane: int = 4001
    primary: int = 4010
    secondary: int = 4011
    admin: int = 4012


def configuration(folder: Path, ports: Ports) -> str:
    """The demo's configuration file."""
    return _server(folder, ports) + _catalog(f"file:{folder}/{CREDENTIAL_FILE}", ports)


def _server(folder: Path, ports: Ports) -> str:
    return f"""# Made by `hephaestus demo`; a good file to play with: everything below `server` is reloaded as soon as you save it.
server:
  proxy_port: {ports.proxy}
  port: {ports.control_plane}
  data_dir: {folder}
  console: {{open_loopback: true}}
  log: {{file: "${{data_dir}}/logs/controlplane.log"}}
  # A demo cannot wait for minutes; these are seconds where production takes its time.
  detection: {{sweep_every_s: 1, step_s: 2, history_s: 900, probe_every_s: 2}}
  incidents: {{resolve_after_s: 8}}
  healing:
    playbooks:
      provider-outage-failover:
        preconditions.wait: 30s
        guards.cooldown.per_fingerprint: 10s
        guards.rate.per_playbook: 60/h
        guards.flap.max_runs: "20"
        validate.bake: 8s
        validate.every: 2s
        validate.min_samples: "5"
        recovery.probe_every: 3s
        probation.for: 10s
"""


def _catalog(credential: str, ports: Ports) -> str:
    waits = "first_byte_timeout_s: 20, idle_timeout_s: 10"
    return f"""upstreams:
  - {{name: {PRIMARY}, base_url: "http://127.0.0.1:{ports.primary}/v1", credential: "{credential}", {waits}}}
  - {{name: {SECONDARY}, base_url: "http://127.0.0.1:{ports.secondary}/v1", credential: "{credential}", {waits}}}
  - {{name: {ANTHROPIC}, dialect: anthropic, base_url: "http://127.0.0.1:{ports.secondary}", credential: "{credential}", {waits}}}
models:
  - name: gpt-4o-mini
    deployments:
      - {{upstream: {PRIMARY}, model: gpt-4o-mini, order: 0}}
      - {{upstream: {SECONDARY}, model: gpt-4o-mini, order: 1}}
  - name: gpt-4o
    deployments:
      - {{upstream: {PRIMARY}, model: gpt-4o, order: 0}}
      - {{upstream: {ANTHROPIC}, model: claude-sonnet-5, order: 1}}  # in an outage Claude answers in OpenAI's words
  - name: gpt-4.1-mini  # its responses go on from each other, so they stay where they are remembered
    deployments:
      - {{upstream: {SECONDARY}, model: gpt-4.1-mini, order: 0}}
      - {{upstream: {PRIMARY}, model: gpt-4.1-mini, order: 1}}
  - name: claude-haiku-4-5
    deployments:
      - {{upstream: {ANTHROPIC}, model: claude-haiku-4-5, order: 0}}
      - {{upstream: {SECONDARY}, model: gpt-4o-mini, order: 1}}  # and the reverse
  - name: claude-sonnet-5
    deployments:
      - {{upstream: {ANTHROPIC}, model: claude-sonnet-5, order: 0}}
      - {{upstream: {SECONDARY}, model: gpt-4o, order: 1}}
  - name: text-embedding-3-small
    deployments:
      - {{upstream: {SECONDARY}, model: text-embedding-3-small, order: 0}}
      - {{upstream: {PRIMARY}, model: text-embedding-3-small, order: 1}}
tenants:
  - name: {TENANTS[0]}
    limits: {{requests_per_minute: 6000, concurrency: 200}}
    budgets: [{{usd: 50, window: day}}]
  - name: {TENANTS[1]}
    limits: {{requests_per_minute: 3000, concurrency: 100}}
    budgets: [{{usd: 5, window: day}}]
breaker: {{window_s: 10, requests_min: 5, error_ratio: 0.5, open_s: 5}}
"""

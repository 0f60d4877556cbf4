"""A configuration file, and commands run on it in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.__main__ import main

TEXT = """server:
  port: 9
  data_dir: {data}
upstreams:
  - {{name: a, base_url: "http://127.0.0.1:9/v1"}}
models:
  - {{name: fast, deployments: [{{upstream: a, model: m, weight: 3}}]}}
  - {{name: deep, deployments: [{{upstream: a, model: big}}]}}
prices:
  m: {{input: 1, output: 2}}
  big: {{input: 1, output: 2}}
tenants:
  - {{name: acme, models: [fast], limits: {{requests_per_minute: 600}}, budgets: [{{usd: 50, window: month}}]}}
  - {{name: globex}}
"""


@dataclass
class Shell:
    """Where commands are typed."""

    config: Path

    def run(self, *words: str, config: bool = True) -> Result:
        """One command, on the configuration file unless it takes none."""
        arguments = [*words, *(("--config", str(self.config)) if config else ())]
        return CliRunner().invoke(main, arguments)

    def json(self, *words: str) -> object:
        """What a command prints with `--json`."""
        result = self.run(*words, "--json")
        assert 0 == result.exit_code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in a fresh installation."""
    config = tmp_path / "hephaestus.yaml"
    config.write_text(TEXT.format(data=tmp_path / "data"))
    return Shell(config)

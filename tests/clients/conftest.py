"""One installation for all clients of a worker: real processes, both protocols behind one proxy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.processes import World

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # that client fetches its prices otherwise


def catalog(made: World) -> str:
    """Models of both protocols, and each served to the other's clients too; some clients know no names but OpenAI's."""
    return f"""
  - {{name: claude, dialect: anthropic, base_url: "http://127.0.0.1:{made.primary_port}", credential: "env:SIM_KEY"}}
  - {{name: slow, dialect: openai, base_url: "http://127.0.0.1:{made.secondary_port}/v1", credential: "env:SIM_KEY_2", first_byte_timeout_s: 30}}
models:
  - {{name: gpt-4o-mini, deployments: [{{upstream: primary, model: gpt-4o-mini}}]}}
  - {{name: gpt-5-mini, deployments: [{{upstream: primary, model: gpt-5-mini}}]}}
  - {{name: claude-sonnet-4-6, deployments: [{{upstream: claude, model: claude-sonnet-4-6}}]}}
  - {{name: claude-haiku-4-5, deployments: [{{upstream: claude, model: claude-haiku-4-5}}]}}
  - {{name: text-embedding-3-small, deployments: [{{upstream: primary, model: text-embedding-3-small}}]}}
  - {{name: omni-moderation-latest, deployments: [{{upstream: primary, model: omni-moderation-latest}}]}}
  - {{name: gpt-3.5-turbo-instruct, deployments: [{{upstream: primary, model: gpt-3.5-turbo-instruct}}]}}
  - {{name: tts-1, deployments: [{{upstream: primary, model: tts-1}}]}}
  - {{name: whisper-1, deployments: [{{upstream: primary, model: whisper-1}}]}}
  - {{name: gpt-image-1, deployments: [{{upstream: primary, model: gpt-image-1}}]}}
  - {{name: gpt-4.1, deployments: [{{upstream: claude, model: claude-sonnet-4-6}}]}}
  - {{name: gpt-4, deployments: [{{upstream: slow, model: gpt-4o-mini}}]}}
  - {{name: hanging, deployments: [{{upstream: slow, model: gpt-4o-mini}}]}}
tenants:
  - {{name: acme, cache: {{enabled: false}}, limits: {{requests_per_minute: 1000000, concurrency: 2000}}}}
  - {{name: modest, cache: {{enabled: false}}, limits: {{requests_per_minute: 5}}}}
  - {{name: modest-too, cache: {{enabled: false}}, limits: {{requests_per_minute: 5}}}}
  - {{name: brisk-too, cache: {{enabled: false}}, limits: {{requests_per_minute: 60}}}}
  - {{name: brisk-node, cache: {{enabled: false}}, limits: {{requests_per_minute: 60}}}}
  - {{name: brisk-node-too, cache: {{enabled: false}}, limits: {{requests_per_minute: 60}}}}
  - {{name: brisk, cache: {{enabled: false}}, limits: {{requests_per_minute: 60}}}}
  - {{name: brisk-frameworks, cache: {{enabled: false}}, limits: {{requests_per_minute: 30}}}}
"""


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running installation whose answers are never cached; it serves all tests of clients."""
    made = World(tmp_path_factory.mktemp("clients"))
    made.catalog = catalog(made)
    made.write_config()
    try:
        made.up()
        made.fault("hang", on="secondary")
        yield made
    finally:
        made.down()


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing a test of a client does may leave a call unanswered: the proxy's own failures are failures of the test."""
    yield
    gateway: World = request.getfixturevalue("gateway")
    log = (gateway.folder / "proxy.log").read_text()
    assert "Traceback" not in log, log[-4000:]

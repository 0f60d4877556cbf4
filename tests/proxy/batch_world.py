"""A worker in front of simulated providers whose batches take a hundred seconds of a clock that tests move, and two tenants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anthropic
import openai

from controlplane.clock import ManualClock
from controlplane.contract.keys import hash_key
from controlplane.contract.pricing import Price, ServicePrice
from controlplane.contract.records import CallRecord
from controlplane.contract.snapshot import Deployment, KeyEntry, Route, Snapshot, TenantPolicy, Upstream
from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig
from controlplane.demo.provider.server import Provider
from proxy.ledger import BATCH_USAGE
from tests.proxy.fakes import PEPPER, World

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
PRICE = Price(
    2_000_000_000,
    8_000_000_000,
    cache_read=1_000_000_000,
    version="p1",
    service=(ServicePrice("batch", Price(1_000_000_000, 4_000_000_000, cache_read=500_000_000, version="p1/batch")),),
)
BATCH_S = 100.0
ALIASES = {"small": "gpt-4o-mini", "large": "gpt-4o", "vectors": "text-embedding-3-small", "claude": "claude-haiku-4-5"}


def line(custom_id: str, *, url: str = CHAT, model: str = "small", **body: Any) -> str:
    """One request of a file."""
    asked = {"model": model, "messages": [{"role": "user", "content": f"Tell me about {custom_id}."}]} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": asked})


@asynccontextmanager
async def simulated(clock: ManualClock) -> AsyncIterator[Provider]:
    """A provider that answers at once, and takes its time for batches."""
    config = ProviderConfig(
        upstreams=(UpstreamConfig(name="primary", port=0), UpstreamConfig(name="secondary", port=0)),
        latency=Latency(first_token_s=0.0, between_tokens_s=0.0, sigma=0.0),
        batch_s=BATCH_S,
    )
    provider = Provider(config, clock=clock)
    await provider.start()
    yield provider
    await provider.stop()


def snapshot(
    ports: dict[str, int], *, version: int = 1, price: Price | None = PRICE, **policies: TenantPolicy
) -> Snapshot:
    """What a worker of this world applies. policies: other than the plain ones, by tenant."""
    tenants = tuple(policies.get(name, TenantPolicy(name)) for name in ("ann", "bob"))
    keys = [KeyEntry(hash_key(f"sk-heph-{name}".encode(), PEPPER), f"key_{name}", name) for name in ("ann", "bob")]
    keys.append(KeyEntry(hash_key(b"sk-heph-narrow", PEPPER), "key_narrow", "ann", models=("large", "vectors")))
    upstreams = tuple(
        Upstream(name, "openai", f"http://127.0.0.1:{port}/v1", "env:UP_KEY") for name, port in ports.items()
    )
    claude = Upstream("claude", "anthropic", f"http://127.0.0.1:{ports['primary']}", "env:UP_KEY")
    routes = [
        Route(
            alias,
            (Deployment(f"{at}/{model}", at, model, price=price, max_output_tokens=100),),
        )
        for alias, model in ALIASES.items()
        for at in ("claude" if alias == "claude" else "primary",)
    ]
    routes.append(Route("elsewhere", (Deployment("secondary/gpt-4o", "secondary", "gpt-4o", price=price),)))
    routes.append(Route("free", (Deployment("primary/gpt-4.1", "primary", "gpt-4.1"),)))
    return Snapshot(version, 1, tenants=tenants, keys=tuple(keys), upstreams=(*upstreams, claude), routes=tuple(routes))


def sdk(world: World, name: str = "ann") -> openai.AsyncOpenAI:
    """OpenAI's client of a tenant."""
    return openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=f"sk-heph-{name}", max_retries=0)


def claude(world: World, name: str = "ann") -> anthropic.AsyncAnthropic:
    """Anthropic's client of a tenant."""
    return anthropic.AsyncAnthropic(base_url=world.url, api_key=f"sk-heph-{name}", max_retries=0)


async def upload(client: openai.AsyncOpenAI, lines: Sequence[str]) -> str:
    """The id of a file of requests."""
    made = await client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return made.id


async def begin(client: openai.AsyncOpenAI, *lines: str, endpoint: Any = CHAT) -> str:
    """The id of a batch of these requests."""
    file_id = await upload(client, lines)
    made = await client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")
    return made.id


def usage_records(world: World) -> list[CallRecord]:
    """The records of what batches used."""
    return [record for record in world.records() if record.operation == BATCH_USAGE]


def billed(provider: Provider, model: str) -> tuple[int, int]:
    """What the provider has billed for a model: tokens in and out."""
    counts = provider.upstreams[0].stats.model(model)
    return counts.prompt_tokens, counts.completion_tokens

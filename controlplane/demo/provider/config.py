"""What a simulated provider is told at its start."""

from __future__ import annotations

import msgspec

from controlplane.demo.faults import Fault

UPSTREAM_NAMES = ("primary", "secondary", "tertiary", "quaternary")


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long answers take: lognormal around a median, drawn from the seed. scale 0 answers at once, as benchmarks want."""

    first_token_s: float = 0.120  # median
    between_tokens_s: float = 0.008  # median
    sigma: float = 0.35  # of the logarithm; 0: always the median
    scale: float = 1.0


class UpstreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One simulated upstream: a name that faults can address, and a port (0: any free one)."""

    name: str = "primary"
    port: int = 4010


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A simulated provider: one or more upstreams, an administration port, and the bounds of each of its resources."""

    upstreams: tuple[UpstreamConfig, ...] = (UpstreamConfig(),)
    admin_port: int | None = None  # None: the highest upstream port plus one, or any free one when a port is 0
    host: str = "127.0.0.1"
    seed: int = 0
    latency: Latency = Latency()
    faults: tuple[Fault, ...] = ()
    api_keys: tuple[str, ...] | None = None  # None: every key that is not empty is good
    requests_per_minute: int = 30_000  # per key and model; shown in the rate-limit headers
    tokens_per_minute: int = 150_000_000
    limits_enforced: bool = False  # True: 429 when one of the two is used up
    events_per_write: int = 0  # of a stream without time between its tokens; 0: all of them in one write
    obfuscation: bool = False  # pads stream events as OpenAI does unless `include_obfuscation` says otherwise
    body_bytes_max: int = 16 * 1024 * 1024
    answers_bytes_max: int = 64 * 1024 * 1024  # kept for repeated prompts
    files_bytes_max: int = 64 * 1024 * 1024  # of uploads and of what batches leave, per upstream; the oldest give way
    batch_s: float = 2.0  # that a batch takes, times the scale of the latency; longer than a day: it expires
    connections_max: int = 10_000  # per upstream; more are closed at once
    pipelined_max: int = 32  # requests of one connection waiting for their turn; then reading pauses
    idle_s: float = 75.0  # a connection without a request is closed after this


def upstreams_on(ports: tuple[int, ...]) -> tuple[UpstreamConfig, ...]:
    """Upstreams on these ports, named primary, secondary, tertiary, quaternary, then upstream-5 and so on."""
    names = (*UPSTREAM_NAMES, *(f"upstream-{number}" for number in range(len(UPSTREAM_NAMES) + 1, len(ports) + 1)))
    return tuple(UpstreamConfig(name=name, port=port) for name, port in zip(names, ports, strict=False))

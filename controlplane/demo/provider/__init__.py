"""A simulated provider in the protocols of OpenAI, Anthropic and others, deterministic from a seed, with faults that can be switched while it runs."""

from controlplane.demo.provider.config import Latency, ProviderConfig, UpstreamConfig, upstreams_on
from controlplane.demo.provider.server import Provider, run

__all__ = ["Latency", "Provider", "ProviderConfig", "UpstreamConfig", "run", "upstreams_on"]

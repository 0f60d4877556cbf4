"""The official Anthropic client for the running provider."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import pytest

from controlplane.demo.provider import Provider


@pytest.fixture
async def claude(provider: Provider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The official client, without retries of its own."""
    base_url = provider.base_url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="sk-ant-test", max_retries=0, timeout=10) as made:
        yield made

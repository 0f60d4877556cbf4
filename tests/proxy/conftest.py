"""Fixtures of the data plane's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy.fakes import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A worker that serves on a real socket, without upstreams or snapshot yet."""
    made = await World(tmp_path).start()
    yield made
    await made.stop()

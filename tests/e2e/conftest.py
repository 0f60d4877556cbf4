"""Worlds of real processes, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.processes import World, world


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Provider, control plane and proxy with the default catalog and no latency."""
    with world(tmp_path_factory.mktemp("calm")) as made:
        yield made

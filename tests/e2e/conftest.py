"""Worlds of real processes, shared by the tests of a module; and what tests measured, told at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.processes import World, world

_MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Provider, control plane and proxy with the default catalog and no latency."""
    with world(tmp_path_factory.mktemp("calm")) as made:
        yield made


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line that is printed when all tests are over."""
    return request.config.stash.setdefault(_MEASURED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what tests measured."""
    for line in config.stash.get(_MEASURED, []):
        terminalreporter.write_line(line)

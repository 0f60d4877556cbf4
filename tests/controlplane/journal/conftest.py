"""A journal in a fresh file, with a clock that only tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from controlplane.journal.journal import Journal


class Clock:
    """Microseconds that stand still until a test moves them."""

    def __init__(self, now_us: int = 1_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        """The moment."""
        return self.now_us


class Opened(msgspec.Struct, frozen=True, tag="account.opened"):
    """A made-up event."""

    owner: str


class Paid(msgspec.Struct, frozen=True, tag="account.paid"):
    """A made-up event with an amount."""

    amount: int


@pytest.fixture
def clock() -> Clock:
    """The clock of the journal under test."""
    return Clock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where the journal under test lives."""
    return f"sqlite:///{tmp_path}/journal.db"


@pytest.fixture
def journal(url: str, clock: Clock) -> Iterator[Journal]:
    """A fresh journal."""
    journal = Journal.open(url, now_us=clock)
    yield journal
    journal.close()

"""What the tests of the house's order share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_is_collected() -> Iterator[None]:
    """No finalizer of an earlier test runs while a source is parsed: one that fails has its traceback written, which parses too, and
    CPython 3.11 then loses count (`AST constructor recursion depth mismatch`, gh-106905).
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()

"""Loops of a worker outlive their bugs."""

from __future__ import annotations

import asyncio

import pytest

from proxy.loops import keep_running


async def test_a_loop_that_fails_is_counted_and_begun_again() -> None:
    """Until it ends by itself, however often it fails."""
    lives, failed = [], []

    async def work() -> None:
        lives.append(1)
        if len(lives) < 3:
            raise KeyError("a bug")

    await keep_running(work, name="shipper", failed=failed.append, pause_s=0.0)
    assert (3, ["shipper", "shipper"]) == (len(lives), failed)


async def test_a_loop_that_is_cancelled_is_not_begun_again() -> None:
    """The end of a worker is no failure of its loops."""
    began, failed = asyncio.Event(), list[str]()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_running(work, name="shipper", failed=failed.append))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == failed

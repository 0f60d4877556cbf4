"""Tests of flights between two turns of the event loop: what a call learned in one may not hold in the next."""

from __future__ import annotations

import asyncio

from proxy.call import Call, Reply
from proxy.transports.coalesce import Coalesce
from tests.proxy.state_fakes import FakeInner, settle_down
from tests.proxy.transports.test_coalesce import Client, _coalesce, _is_empty

CHUNKS = [b"one.", b"two.", b"three", b"four", b"five"]


class Burst(FakeInner):
    """An upstream whose stream is there as a whole when it begins."""

    async def send(self, call: Call) -> Reply:
        """The answer."""
        reply = await super().send(call)
        self.streams[-1].feed(*CHUNKS)
        self.streams[-1].end()
        return reply


async def test_a_follower_that_wakes_after_the_beginning_was_dropped_asks_for_itself() -> None:
    """The leader has read on beyond the buffer before the follower's turn came: it gets a whole answer all the same."""
    inner = Burst(gated=True)
    inner.streaming = True
    coalesce = _coalesce(inner, buffer_bytes_max=10)
    clients = [Client(coalesce) for _ in range(3)]
    for client in clients:
        client.read_freely()
    await settle_down()
    inner.gate.set()
    await settle_down()
    assert [CHUNKS] * 3 == [client.got for client in clients]
    assert ["complete"] * 3 == [client.ended for client in clients]
    assert _is_empty(coalesce)


async def test_a_leader_whose_answer_has_ended_is_not_given_up() -> None:
    """Its client and all followers have left, the last one elsewhere; its task reads what is there, for the cache and the bill."""
    inner = FakeInner()
    inner.streaming = True
    coalesce = Coalesce(
        inner, calls_max=10, buffer_bytes_max=10**6, buffers_bytes_max=10**7, elsewhere=lambda _: 1
    )  # fmt: skip
    leader, follower = Client(coalesce), Client(coalesce)
    await settle_down()
    follower.read_freely()
    inner.streams[0].feed(b"one")
    inner.streams[0].end()
    await settle_down()
    assert ("complete", "") == (follower.ended, leader.ended)
    assert not leader.leave()
    coalesce.left_elsewhere(b"key")
    await settle_down()
    assert ("complete", False) == (leader.ended, leader.call.aborted)
    assert _is_empty(coalesce)
    await asyncio.gather(leader.task, follower.task)

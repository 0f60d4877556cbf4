"""Breakers of several workers: what one says makes the others sceptical or hopeful, through a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.records import AttemptError
from controlplane.contract.snapshot import BreakerPolicy
from proxy.call import Reply
from proxy.metrics import ProxyMetrics
from proxy.settings import ProxySecrets, Secret
from proxy.shared import SharedState
from proxy.transports.attempt import Attempt
from proxy.transports.breaker import BreakerTransport
from proxy.transports.breaker_hints import BreakerHints
from tests.proxy.fakes import Clock, World, fails, until
from tests.proxy.redis_server import RedisServer

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("token"))
POLICY = BreakerPolicy(failures_in_row=5.0, open_s=5.0)


class Nowhere:
    """A transport that nothing is sent through here."""

    async def send(self, attempt: Attempt) -> Reply:
        """Never called."""
        raise AssertionError(attempt)

    async def aclose(self) -> None:
        """Nothing to close."""


class Sibling:
    """One worker's breakers and what it hears."""

    def __init__(self, url: str, name: str) -> None:
        self.clock = Clock()
        self.shared = SharedState(ProxySettings(redis=url, redis_timeout_s=2.0, redis_pause_s=0.05), SECRETS)
        self.breakers = BreakerTransport(Nowhere(), ProxyMetrics(name), monotonic=self.clock, now_us=self.clock.us)
        self.breakers.configure(POLICY, ["d", "e"])
        self.hints = BreakerHints(self.shared, self.breakers, sender=name)

    async def ready(self) -> None:
        """Connected and listening."""
        self.shared.open()
        async with asyncio.timeout(20):
            await self.shared.ready()

    def report(self, error: AttemptError, times: int = 1, *, probe: bool = False) -> str:
        """So many tries on `d` have ended; the state afterwards."""
        breaker = self.breakers.breaker_of("d")
        for _ in range(times):
            breaker.report(error, latency_s=0.1, probe=probe)
        return breaker.state


@pytest.fixture
async def siblings(tmp_path: Path) -> AsyncIterator[tuple[Sibling, Sibling]]:
    """Two workers on one Redis."""
    server = await RedisServer(tmp_path).start()
    pair = (Sibling(server.url, "w0"), Sibling(server.url, "w1"))
    try:
        for one in pair:
            await one.ready()
        yield pair
    finally:
        for one in pair:
            await one.shared.aclose()
        server.kill()


async def test_another_workers_open_breaker_is_a_hint_and_no_order(siblings: tuple[Sibling, Sibling]) -> None:
    """Ours stays closed until our own first failure, and then opens at once, saying why."""
    here, there = siblings
    assert "open" == there.report(AttemptError.STATUS_5XX, 5)
    await there.hints.send()
    await until(lambda: here.hints.taken_total)
    assert "closed" == here.report(AttemptError.NONE, 3)
    assert "open" == here.report(AttemptError.STATUS_5XX)
    reason = here.breakers.statuses()[0].reason
    assert "another worker" in reason
    assert "in a row" in reason


async def test_without_a_hint_one_failure_opens_nothing(siblings: tuple[Sibling, Sibling]) -> None:
    """Nor does a hint that is too old, or one about another deployment."""
    here, there = siblings
    there.breakers.breaker_of("e")
    for _ in range(5):
        there.breakers.breaker_of("e").report(AttemptError.CONNECT, latency_s=0.1, probe=False)
    await there.hints.send()
    await until(lambda: here.hints.taken_total)
    assert "closed" == here.report(AttemptError.STATUS_5XX)
    here.breakers.hint("d", healthy=False, reason="x")
    here.clock.now += 31
    assert "closed" == here.report(AttemptError.STATUS_5XX)


async def test_another_workers_recovery_is_probed_at_once(siblings: tuple[Sibling, Sibling]) -> None:
    """Both are open; one closes by its probes, and the other need not wait for its time: it probes with the next call."""
    here, there = siblings
    for one in siblings:
        one.report(AttemptError.STATUS_5XX, 5)
        await one.hints.send()
    await until(lambda: here.hints.taken_total and there.hints.taken_total)
    there.clock.now += 5
    breaker = there.breakers.breaker_of("d")
    assert [True, True] == [breaker.admit_probe(), breaker.admit_probe()]
    assert not here.breakers.probe_due("d")
    assert "closed" == there.report(AttemptError.NONE, 2, probe=True)
    heard = here.hints.taken_total
    await there.hints.send()
    await until(lambda: here.hints.taken_total > heard)
    assert here.breakers.probe_due("d")
    assert "open" == here.breakers.breaker_of("d").state


async def test_nobody_listens_to_itself_or_to_nonsense(siblings: tuple[Sibling, Sibling]) -> None:
    """One's own word is no witness, and a message of another version changes nothing."""
    here, there = siblings
    await there.shared.publish(there.shared.prefix + b"breakers", b"\x00nonsense")
    here.report(AttemptError.STATUS_5XX, 5)
    await here.hints.send()
    await until(lambda: there.hints.taken_total)
    assert (1, 0) == (there.hints.taken_total, here.hints.taken_total)


async def test_a_reason_that_others_name_is_bounded_and_printable(siblings: tuple[Sibling, Sibling]) -> None:
    """Clients are shown it, and anybody who can write to Redis can send one."""
    _, two = siblings
    said = b'{"sender":"x","deployment":"d","healthy":false,"reason":"a\\n%b"}' % (b"b" * 10_000)
    await two.shared.publish(two.shared.prefix + b"breakers", said)
    await until(lambda: two.hints.taken_total)
    two.report(AttemptError.STATUS_5XX)
    (status,) = [status for status in two.breakers.statuses() if status.deployment == "d"]
    assert "open" == status.state
    assert status.reason.isprintable()
    assert 300 > len(status.reason)


async def test_without_redis_everybody_is_alone(siblings: tuple[Sibling, Sibling]) -> None:
    """A hint that cannot be sent is counted, and nothing waits for it."""
    here, there = siblings
    await here.shared.aclose()
    here.report(AttemptError.STATUS_5XX, 5)
    await here.hints.send()
    assert (1, 0) == (here.hints.lost_total, there.hints.taken_total)


async def test_the_loop_sends_changes_as_they_come(siblings: tuple[Sibling, Sibling]) -> None:
    """Without being asked."""
    here, there = siblings
    task = asyncio.create_task(there.hints.run())
    there.report(AttemptError.STATUS_5XX, 5)
    await until(lambda: here.hints.taken_total)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_two_workers_of_one_installation(tmp_path: Path) -> None:
    """Joined as in production: what opens at one opens at the other with its first failure, not with its fifth."""
    server = await RedisServer(tmp_path).start()
    worlds = [await World(tmp_path / name).start(redis=server.url) for name in ("a", "b")]
    try:
        for world in worlds:
            assert world.worker.shared is not None
            async with asyncio.timeout(20):
                await world.worker.shared.ready()
            await world.upstream(fails(500))
            world.apply(route={"attempts_max": 1}, breaker=BreakerPolicy(open_s=60.0))
        here, there = worlds
        assert [502] * 5 + [503] == [(await here.chat()).status_code for _ in range(6)]
        assert there.worker.hints is not None
        await until(lambda: there.worker.hints and there.worker.hints.taken_total)
        response = [await there.chat() for _ in range(2)][1]
        assert (503, True) == (response.status_code, "another worker" in response.json()["error"]["message"])
        assert (
            'heph_proxy_breaker_openings_total{cause="hint",worker="0"} 1.0'
            in (await there.client.get("/metrics")).text
        )
    finally:
        for world in worlds:
            await world.stop()
        server.kill()

"""Tests of the door to shared state, against real Redis servers: one alone, one behind sentinels, and a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.contract.proxy_settings import ProxySettings
from proxy.sealed_rows import REPORT
from proxy.settings import ProxySecrets, Secret
from proxy.shared import IDLE_CONNECTIONS, Script, SharedState, SharedUnavailable
from tests.proxy.fakes import until
from tests.proxy.redis_groups import RedisCluster, RedisSentinel
from tests.proxy.redis_server import RedisServer
from tests.proxy.redis_slow import SlowWay

SECRETS = ProxySecrets(key_pepper=Secret("00" * 32), internal_token=Secret("token"))
DEADLINE_S = 20.0
ROOT = Path(__file__).parents[2]
PASSWORD = "PASSWORD"  # of the user on the how-to page
COMMANDS = re.compile(r"""(?:redis\.call\(|\.ask\(|execute_command\()\s*['"](\w+)['"]""")
ADD = Script(
    "add", "return redis.call('INCRBY', KEYS[1], ARGV[1]) + redis.call('INCRBY', KEYS[2], 0)"
)  # two keys of one hash tag


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of its own for each test."""
    server = await RedisServer(tmp_path).start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def opened(url: str, *, secrets: ProxySecrets = SECRETS, **bounds: float) -> AsyncIterator[SharedState]:
    """A door that has answered."""
    settings = ProxySettings(
        redis=url,
        redis_timeout_s=bounds.get("timeout_s", 2.0),
        redis_pause_s=bounds.get("pause_s", 0.02),
        redis_failures_max=int(bounds.get("failures_max", 3)),
    )
    shared = SharedState(settings, secrets)
    shared.open()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
        yield shared
    finally:
        await shared.aclose()


def named(shared: SharedState, name: bytes) -> bytes:
    """A key of this installation."""
    return shared.prefix + b"{" + name + b"}"


async def test_a_script_runs_as_one_step_and_is_loaded_by_itself(server: RedisServer) -> None:
    """A script that the server has never seen is sent once and then run by its hash."""
    async with opened(server.url) as shared:
        keys = (named(shared, b"a") + b":1", named(shared, b"a") + b":2")
        assert [5, 7, 9] == [await shared.run(ADD, keys, amount) for amount in (5, 2, 2)]
        assert 1 == len(server.client().script_exists(ADD.sha))


async def test_nothing_is_asked_before_the_first_answer(server: RedisServer) -> None:
    """A door that is not open yet is degraded: a caller learns it at once instead of waiting."""
    shared = SharedState(ProxySettings(redis=server.url), SECRETS)
    with pytest.raises(SharedUnavailable):
        await shared.ask("GET", b"heph:x", key=b"heph:x")
    assert shared.degraded


async def test_a_frozen_server_is_left_alone_and_used_again(server: RedisServer) -> None:
    """After so many late answers in a row nothing is asked; when the server answers again, the door opens by itself."""
    async with opened(server.url, timeout_s=0.05, failures_max=2) as shared:
        key = named(shared, b"k")
        server.freeze()
        for _ in range(2):
            with pytest.raises(SharedUnavailable, match="in time"):
                await shared.ask("SET", key, b"1", key=key)
        with pytest.raises(SharedUnavailable, match="is out"):
            await shared.ask("SET", key, b"1", key=key)
        server.thaw()
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
        assert b"OK" == await shared.ask("SET", key, b"2", key=key)
        assert b"2" == await shared.ask("GET", key, key=key)
        assert 1 == shared.degradations_total


async def test_the_first_answer_of_a_kind_may_take_longer_and_no_other(server: RedisServer) -> None:
    """On a machine that is busy when everything begins the first use of a script is waited for; the second one keeps to the deadline."""
    way = await SlowWay(server).start()
    try:
        async with opened(way.url, timeout_s=0.04, failures_max=100) as shared:
            keys = (named(shared, b"a") + b":1", named(shared, b"a") + b":2")
            way.delay_s = 0.1
            assert 5 == await shared.run(ADD, keys, 5)
            with pytest.raises(SharedUnavailable, match="in time"):
                await shared.run(ADD, keys, 5)
            assert b"OK" == await shared.ask("SET", keys[0], b"1", key=keys[0])
            way.delay_s = 5.0
            for _ in range(2):  # not even the first one waits for ever, nor again if it was not answered
                with pytest.raises(SharedUnavailable, match="in time"):
                    await shared.ask("GET", keys[0], key=keys[0])
    finally:
        await way.stop()


async def test_the_first_calls_at_once_find_connections(server: RedisServer) -> None:
    """They are opened before the door is, so that no call's deadline is spent on them."""
    async with opened(server.url) as shared:
        before = server.client().info("stats")["total_connections_received"]
        key = named(shared, b"k")
        await asyncio.gather(*(shared.ask("GET", key, key=key) for _ in range(IDLE_CONNECTIONS)))
        assert before + 1 == server.client().info("stats")["total_connections_received"]  # that of the test itself


async def test_an_answer_that_came_too_late_goes_to_nobody_else(server: RedisServer) -> None:
    """A command that nobody waits for any more leaves no answer behind for the next one."""
    async with opened(server.url, timeout_s=0.5, failures_max=100) as shared:
        keys = [named(shared, b"%d" % index) for index in range(5)]
        for index, key in enumerate(keys):
            await shared.ask("SET", key, index, key=key)
        server.freeze()
        late = await asyncio.gather(*(shared.ask("GET", key, key=key) for key in keys), return_exceptions=True)
        server.thaw()
        assert all(isinstance(answer, SharedUnavailable) for answer in late)
        answers = [await shared.ask("GET", key, key=key) for key in reversed(keys)]
        assert [b"4", b"3", b"2", b"1", b"0"] == answers


async def test_a_server_that_comes_back_is_used_again(server: RedisServer) -> None:
    """A lost server raises SharedUnavailable, never anything else, and is found again when it is back."""
    async with opened(server.url, failures_max=1) as shared:
        key = named(shared, b"k")
        server.kill()
        with pytest.raises(SharedUnavailable):
            await shared.ask("SET", key, b"1", key=key)
        await server.start()
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
        assert b"OK" == await shared.ask("SET", key, b"1", key=key)


async def test_a_refused_command_is_a_failure_of_the_door(server: RedisServer) -> None:
    """A key of another type, which somebody else must have put there, is no exception of redis-py's."""
    async with opened(server.url) as shared:
        key = named(shared, b"k")
        await shared.ask("RPUSH", key, b"1", key=key)
        with pytest.raises(SharedUnavailable, match="refuses"):
            await shared.ask("GET", key, key=key)
        assert not shared.degraded


async def test_a_master_that_became_a_replica_is_left_until_it_takes_writes(server: RedisServer) -> None:
    """It answers reads as ever, so nothing but the refused write tells; whoever is the master is found by connecting anew."""
    async with opened(server.url) as shared:
        key = named(shared, b"k")
        with server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            assert await shared.ask("GET", key, key=key) is None
            with pytest.raises(SharedUnavailable, match="read only replica"):
                await shared.run(ADD, (key, key), 1)
            assert shared.degraded
            failed = shared.errors_total
            await until(lambda: shared.errors_total > failed + 2)
            assert (True, 1) == (shared.degraded, shared.degradations_total)
            client.execute_command("REPLICAOF", "NO", "ONE")
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
        assert 2 == await shared.run(ADD, (key, key), 1)


async def test_a_message_reaches_every_subscriber(server: RedisServer) -> None:
    """What one worker publishes the others hear, subscriptions made while listening included."""
    async with opened(server.url) as one, opened(server.url) as other:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        one.subscribe(b"a", heard.put_nowait)
        async with asyncio.timeout(DEADLINE_S):
            await one.ready()
            one.subscribe(b"b", heard.put_nowait)
            await one.ready()
            await other.publish(b"a", b"1")
            await other.publish(b"b", b"2")
            assert [b"1", b"2"] == [await heard.get(), await heard.get()]


async def test_a_message_that_cannot_be_taken_ends_nothing(server: RedisServer) -> None:
    """One listener's failure is counted; the messages after it arrive, for it and for others."""
    async with opened(server.url) as shared:
        channel, heard = named(shared, b"news"), list[bytes]()

        def fails(data: bytes) -> None:
            if data == b"1":
                raise KeyError(data)

        shared.subscribe(channel, fails)
        shared.subscribe(channel, heard.append)
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
        await shared.publish(channel, b"1")
        await shared.publish(channel, b"2")
        await until(lambda: len(heard) == 2)
        assert 1 == shared.errors_total


async def test_subscriptions_outlive_the_connection(server: RedisServer) -> None:
    """After the server was gone, messages are heard again without a new subscription."""
    async with opened(server.url, failures_max=1) as shared:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        shared.subscribe(b"a", heard.put_nowait)
        async with asyncio.timeout(DEADLINE_S):
            await shared.ready()
            server.kill()
            with pytest.raises(SharedUnavailable):
                await shared.publish(b"a", b"lost")
            await server.start()
            while heard.empty():
                await shared.ready()
                with contextlib.suppress(SharedUnavailable):
                    await shared.publish(b"a", b"1")
                await asyncio.sleep(0)
            assert b"1" == await heard.get()


async def test_the_master_is_found_through_sentinels(tmp_path: Path) -> None:
    """With an address of sentinels, scripts and messages go to the server that they call the master."""
    group = await RedisSentinel(tmp_path).start()
    try:
        async with opened(group.url) as shared:
            keys = (named(shared, b"a") + b":1", named(shared, b"a") + b":2")
            assert 3 == await shared.run(ADD, keys, 3)
            assert b"3" == group.master.client().get(keys[0])
            await hears(shared, shared)
    finally:
        group.kill()


async def test_a_cluster_keeps_each_hash_tag_on_its_node(tmp_path: Path) -> None:
    """With an address of a cluster, scripts reach the node of their tag and messages reach everybody."""
    group = await RedisCluster(tmp_path).start()
    try:
        async with opened(group.url(0)) as one, opened(group.url(1)) as other:
            for name in (b"a", b"b", b"c", b"d"):
                keys = (named(one, name) + b":1", named(one, name) + b":2")
                assert [1, 3] == [await one.run(ADD, keys, 1), await other.run(ADD, keys, 2)]
            assert b"OK" == await one.ask("SET", named(one, b"e"), b"1", key=named(one, b"e"))
            assert all(node.client().dbsize() > 0 for node in group.nodes)
            await hears(one, other)
    finally:
        group.kill()


async def hears(listener: SharedState, speaker: SharedState) -> None:
    """A message goes from one door to the other."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    listener.subscribe(b"a", heard.put_nowait)
    async with asyncio.timeout(DEADLINE_S):
        await listener.ready()
        await speaker.publish(b"a", b"1")
        assert b"1" == await heard.get()


def documented_user() -> list[str]:
    """What the how-to page grants the proxies' user in Redis."""
    page = (ROOT / "docs" / "how-to" / "use-redis.md").read_text()
    return next(line for line in page.splitlines() if line.startswith("user ")).split()


def test_the_documented_user_has_every_command_that_the_proxies_send() -> None:
    """No command of a script or of the code is missing in the how-to page's access list, and nothing more is there than connecting needs."""
    granted = {right[1:] for right in documented_user() if right.startswith("+")}
    sources = [path.read_text() for path in (ROOT / "proxy").rglob("*.py")]
    sent = {command.lower() for source in sources for command in COMMANDS.findall(source)}
    assert sent | {"eval", "evalsha", "publish", "subscribe", "unsubscribe", "select", "ping"} == granted


async def test_the_documented_user_can_work(tmp_path: Path) -> None:
    """With the how-to page's access list scripts and messages work, and keys of others are out of reach."""
    rights = documented_user()
    server = await RedisServer(tmp_path, "--user", *rights[1:]).start()
    secrets = ProxySecrets(SECRETS.key_pepper, SECRETS.internal_token, redis_password=Secret(PASSWORD))
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    try:
        async with opened(server.url.replace("//", "//heph@"), secrets=secrets) as shared:
            shared.subscribe(shared.prefix + b"quota", heard.put_nowait)
            report = (b"me", 1, 7, 100, 0, 0, 1, 10, 3_000, 10_000, b"claim", 0, b"", b"gone", b"*", b"row")
            async with asyncio.timeout(DEADLINE_S):
                await shared.ready()
                assert [10, 7] == await shared.run(REPORT, (shared.prefix + b"s:{a}:0",), *report)
                await shared.publish(shared.prefix + b"quota", b"word")
                assert b"word" == await heard.get()
            with pytest.raises(SharedUnavailable, match="permissions"):
                await shared.ask("SET", b"other", b"1", key=b"other")
    finally:
        server.kill()

"""Who made what upstreams keep: found again by its tenant alone, by every worker and host, after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import diskcache
import msgspec
import pytest

from controlplane.contract.proxy_settings import ProxySettings
from proxy.settings import ProxySecrets, Secret
from proxy.shared import SharedState
from proxy.transports.owners import Claim, Owner, Owners, OwnersUnavailable, Unsettled
from proxy.transports.owners_disk import OwnersDisk, PlainDisk
from tests.proxy.redis_server import RedisServer

SECRET = b"\x07" * 32
CLAIM = Claim("0", 1, "call_1")
OWNER = Owner("openai", "openai/gpt")
SETTINGS = ProxySettings()
SECRETS = ProxySecrets(key_pepper=Secret("07" * 32), internal_token=Secret("x"))


@pytest.fixture
async def owners(tmp_path: Path) -> AsyncIterator[Owners]:
    """Owners of a host without Redis."""
    made = Owners(tmp_path / "owners", SETTINGS, shared=None, secret=SECRET)
    yield made
    await made.aclose()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis server."""
    server = await RedisServer(tmp_path).start()
    yield server
    server.kill()


async def test_only_who_made_it_finds_it(owners: Owners) -> None:
    """An id is found under its tenant's name alone; tenants whose names and ids run together are told apart."""
    await owners.keep("ann", ["resp_1", "msg_1"], OWNER)
    assert {"resp_1": OWNER, "msg_1": OWNER} == await owners.find("ann", ["resp_1", "msg_1", "resp_2"])
    assert {} == await owners.find("bob", ["resp_1"])
    await owners.keep("an", ["nresp_1"], OWNER)
    assert {} == await owners.find("ann", ["esp_1", "nresp_1"])
    await owners.forget("ann", ["resp_1"])
    assert {"msg_1": OWNER} == await owners.find("ann", ["resp_1", "msg_1"])


async def test_what_is_to_be_booked_is_written_down_however_many_wait(tmp_path: Path) -> None:
    """Whoever keeps the file busy with questions makes no response and no batch free."""
    owners = Owners(tmp_path / "owners", ProxySettings(state_waiting_max=1), shared=None, secret=SECRET)
    item = Unsettled("ann", "k", "resp_1")
    asking = asyncio.create_task(owners.find("ann", ["resp_1"]))
    await asyncio.sleep(0)
    with pytest.raises(OwnersUnavailable):
        await owners.find("ann", ["resp_2"])
    assert await owners.promise(item)
    assert {} == await asking
    assert [item] == await owners.unsettled()
    await owners.aclose()


async def test_workers_of_a_host_share_them(owners: Owners, tmp_path: Path) -> None:
    """What one worker wrote down another finds at once; a background response is settled by one of them, once."""
    other = Owners(tmp_path / "owners", SETTINGS, shared=None, secret=SECRET)
    await owners.keep("ann", ["resp_1"], OWNER)
    assert {"resp_1": OWNER} == await other.find("ann", ["resp_1"])
    found = await asyncio.gather(*(each.settle(Unsettled("ann", "k", "resp_1"), CLAIM) for each in (owners, other) * 4))
    assert 1 == found.count(True)
    assert await other.settle(Unsettled("bob", "k", "resp_1"), CLAIM)
    await other.aclose()


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    """A process that is killed right behind a write has written it."""
    script = f"""
import os, signal
from pathlib import Path
from proxy.transports.owners_disk import OwnersDisk, PlainDisk
disk = OwnersDisk(Path({str(tmp_path / "owners")!r}), entries_max=100, bytes_max=10**8, ttl_s=60.0)
disk.open()
disk.put({{b"k": b"v"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ | {"PYTHONPATH": "."})
    assert -signal.SIGKILL == done.returncode
    disk = OwnersDisk(tmp_path / "owners", entries_max=100, bytes_max=10**8, ttl_s=60.0)
    disk.open()
    assert [b"v", None] == disk.get([b"k", b"other"])
    disk.close()


def test_what_nobody_asks_for_expires(tmp_path: Path) -> None:
    """Past its time an entry is not there any more; one that is asked for lives on."""
    disk = OwnersDisk(tmp_path / "owners", entries_max=100, bytes_max=10**8, ttl_s=1e-9)
    disk.open()
    disk.put({b"k": b"v"})
    assert [None] == disk.get([b"k"])
    disk.close()


def test_what_is_asked_for_lives_on(tmp_path: Path) -> None:
    """An entry whose time is half over gets all of it anew when it is asked for."""
    short = OwnersDisk(tmp_path / "owners", entries_max=100, bytes_max=10**8, ttl_s=1000.0)
    short.open()
    short.put({b"k": b"v"})
    long = OwnersDisk(tmp_path / "owners", entries_max=100, bytes_max=10**8, ttl_s=9000.0)
    long.open()
    assert [b"v"] == long.get([b"k"])
    with diskcache.Cache(str(tmp_path / "owners"), disk=PlainDisk) as cache:
        _, expires_s = cache.get(b"k", expire_time=True)
    assert expires_s > time.time() + 8000
    short.close()
    long.close()


@pytest.mark.parametrize(("entries_max", "bytes_max"), [(20, 10**9), (10**6, 200_000)])
def test_both_bounds_hold(tmp_path: Path, entries_max: int, bytes_max: int) -> None:
    """Neither the number of entries nor the size of the file goes above its bound for long; the oldest give way."""
    disk = OwnersDisk(tmp_path / "owners", entries_max=entries_max, bytes_max=bytes_max, ttl_s=60.0)
    disk.open()
    for number in range(120):
        disk.put({b"k%d-%d" % (number, part): b"v" * 200 for part in range(8)})
    assert disk.entries <= entries_max + 8
    assert disk.bytes_used <= bytes_max * 1.2
    assert disk.evicted_total > 0
    assert [None, b"v" * 200] == disk.get([b"k0-0", b"k119-7"])
    disk.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """A file that cannot be read any more is kept for whoever looks into it, and the host goes on with a new one."""
    folder = tmp_path / "owners"
    folder.mkdir()
    (folder / "cache.db").write_bytes(b"this is no database" * 1000)
    disk = OwnersDisk(folder, entries_max=100, bytes_max=10**8, ttl_s=60.0)
    disk.open()
    disk.put({b"k": b"v"})
    assert [b"v"] == disk.get([b"k"])
    assert (tmp_path / "owners.damaged" / "cache.db").exists()
    disk.close()


async def test_too_many_at_once_are_turned_away(tmp_path: Path) -> None:
    """Look-ups beyond the bound are refused at once, and counted."""
    owners = Owners(tmp_path / "owners", ProxySettings(state_waiting_max=1), shared=None, secret=SECRET)
    done = await asyncio.gather(*(owners.find("ann", ["x"]) for _ in range(3)), return_exceptions=True)
    assert [dict, OwnersUnavailable, OwnersUnavailable] == [type(item) for item in done]
    assert 2 == owners.unavailable_total
    await owners.aclose()


async def test_hosts_share_them_through_redis(tmp_path: Path, server: RedisServer) -> None:
    """What one host wrote down another finds; one of them settles; while Redis is out, what is not here is not called missing."""
    settings = ProxySettings(redis=server.url, redis_timeout_s=2.0)
    shared = [SharedState(settings, SECRETS) for _ in range(2)]
    for each in shared:
        each.open()
        await asyncio.wait_for(each.ready(), 30)
    first, second = (Owners(tmp_path / str(n), settings, shared=each, secret=SECRET) for n, each in enumerate(shared))
    await first.keep("ann", ["resp_1"], OWNER)
    assert {"resp_1": OWNER} == await second.find("ann", ["resp_1"])
    assert {} == await second.find("bob", ["resp_1"])
    assert [True, False] == [await each.settle(Unsettled("ann", "k", "resp_1"), CLAIM) for each in (first, second)]
    item = Unsettled("ann", "k", "resp_1")
    assert not await first.settle(item, CLAIM)  # claimed already
    own, another = msgspec.structs.replace(item, claim=CLAIM), Claim("0", 1, "call_2")
    await first.release(own)
    assert await second.settle(item, another)
    await first.release(own)  # what another host has settled meanwhile is not taken from it
    assert not await first.settle(item, CLAIM)
    await second.confirm(item)
    assert [[], []] == [[one for one in await each.unsettled() if one.claim] for each in (first, second)]
    assert not await first.settle(item, CLAIM)
    client = server.client()
    values = [cast("bytes", client.get(key)) for key in cast("list[bytes]", client.keys("*own:*"))]
    (copied,) = [value for value in values if len(value) > 16]
    theirs = second._name(second._key("bob", "resp_1"))
    for value in (copied, b"\0" * 16 + msgspec.msgpack.encode(OWNER), b"x"):
        client.set(theirs, value)
        assert {} == await second.find("bob", ["resp_1"])  # nobody makes it Bob's by writing to Redis
    assert 3 == second.forged_total
    client.close()
    await shared[1].aclose()
    with pytest.raises(OwnersUnavailable):  # later, or nobody could ever settle it
        await second.release(msgspec.structs.replace(item, claim=another))
    with pytest.raises(OwnersUnavailable):
        await second.find("ann", ["resp_1"])
    await second.keep("ann", ["resp_2"], OWNER)
    assert 1 == second.lost_total  # to the other hosts
    assert {"resp_2": OWNER} == await second.find("ann", ["resp_2"])
    await first.forget("ann", ["resp_1"])
    assert {} == await first.find("ann", ["resp_1"])
    await shared[0].aclose()
    await first.aclose()
    await second.aclose()


async def test_a_request_that_names_many_keeps_nobody_from_redis(tmp_path: Path, server: RedisServer) -> None:
    """A thousand ids are kept and found, though no more than a few questions may wait for Redis at once."""
    settings = ProxySettings(redis=server.url, redis_timeout_s=5.0, redis_waiting_max=40)
    shared = SharedState(settings, SECRETS)
    shared.open()
    async with asyncio.timeout(30):
        await shared.ready()
    names = [f"msg_{number}" for number in range(1000)]
    first, second = (Owners(tmp_path / str(n), settings, shared=shared, secret=SECRET) for n in range(2))
    await first.keep("acme", names, Owner("u", "d"))
    assert (set(names), 0) == (set(await second.find("acme", names)), shared.busy_total)
    await second.forget("acme", names)
    assert {} == await second.find("acme", names)
    await first.aclose()
    await second.aclose()
    await shared.aclose()

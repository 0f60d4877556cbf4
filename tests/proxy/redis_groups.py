"""Real groups of Redis servers for tests: a master behind a sentinel, with a replica where one is wanted, and a cluster of two nodes."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from redis import Redis

from tests.proxy.redis_server import RedisServer, redis_executable, wait_until_ready

MASTER = "heph"


class RedisSentinel:
    """A master, perhaps its replica, and one sentinel that watches them."""

    def __init__(self, folder: Path, *, replicated: bool = False) -> None:
        self._folder = folder
        self.master = RedisServer(folder)
        copies = ("--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-load", "swapdb")
        self.replica = RedisServer(folder, *copies) if replicated else None
        self._port = RedisServer(folder).port  # a free one
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As the settings want it."""
        return f"redis+sentinel://127.0.0.1:{self._port}/{MASTER}/0"

    async def start(self) -> RedisSentinel:
        """Runs them, and returns when the sentinel knows its master, and the replica too."""
        await self.master.start()
        if self.replica is not None:
            await self.replica.start()
            await asyncio.to_thread(_linked, self.replica.client())
        config = self._folder / "sentinel.conf"
        config.write_text(
            f"port {self._port}\nbind 127.0.0.1\ndir {self._folder}\nset-proc-title no\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} 1\n"
        )
        process = self._process = _run_sentinel(config)
        await asyncio.to_thread(
            wait_until_ready, process, b"+monitor master" if self.replica is None else b"+slave slave"
        )
        return self

    async def fail_over(self) -> None:
        """Kills the master, and returns when the replica is in its place."""
        self.master.kill()
        assert self.replica is not None
        assert self._process is not None
        with Redis(port=self._port) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", MASTER)  # type: ignore[no-untyped-call]  # redis-py has no type for it
        await asyncio.to_thread(wait_until_ready, self._process, b"+switch-master")

    def kill(self) -> None:
        """Ends all at once."""
        self.master.kill()
        if self.replica is not None:
            self.replica.kill()
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def _run_sentinel(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([redis_executable(), str(config), "--sentinel"], stdout=subprocess.PIPE)


def _linked(replica: Redis) -> None:
    while b"master_link_status:up" not in replica.execute_command("INFO replication", NEVER_DECODE=True):  # type: ignore[no-untyped-call]  # redis-py has no type for it
        replica.ping()


class RedisCluster:
    """Two nodes that share the slots."""

    def __init__(self, folder: Path) -> None:
        self.nodes = []
        self._bus_ports = [RedisServer(folder).port for _ in range(2)]  # free ones
        for index, port in enumerate(self._bus_ports):
            place = folder / f"node-{index}"
            place.mkdir()
            self.nodes.append(RedisServer(place, "--cluster-enabled", "yes", "--cluster-port", str(port)))

    def url(self, node: int) -> str:
        """As the settings want it, by one of the nodes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[node].port}"

    async def start(self) -> RedisCluster:
        """Runs the nodes, shares out the slots, and returns when both say that the cluster is whole."""
        for node in self.nodes:
            await node.start()
        await asyncio.to_thread(self._join)
        return self

    def kill(self) -> None:
        """Ends both at once."""
        for node in self.nodes:
            node.kill()

    def _join(self) -> None:
        one, other = (node.client() for node in self.nodes)
        _cluster(one, "ADDSLOTSRANGE", 0, 8191)
        _cluster(other, "ADDSLOTSRANGE", 8192, 16383)
        _cluster(one, "SET-CONFIG-EPOCH", 1)
        _cluster(other, "SET-CONFIG-EPOCH", 2)
        _cluster(one, "MEET", "127.0.0.1", self.nodes[1].port, self._bus_ports[1])
        for client in (one, other):
            while not _whole(client):
                client.ping()


def _cluster(client: Redis, command: str, *args: str | int) -> object:
    answer: object = client.execute_command(f"CLUSTER {command}", *args)  # type: ignore[no-untyped-call]  # redis-py has no type for it
    return answer


def _whole(client: Redis) -> bool:
    info = str(_cluster(client, "INFO"))
    return "ok" in info.split("cluster_state", 1)[1][:8] and "16384" in info.split("cluster_slots_ok", 1)[1][:12]

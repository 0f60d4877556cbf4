"""redis-py's clients for the three ways in which a Redis can stand: one server, one found through sentinels, a cluster.

They never retry by themselves: deadlines and breakers are the callers'.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias  # redis-py's constructors take their arguments by name

from redis.asyncio.client import PubSub, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from controlplane.contract.proxy_settings import ProxySettings
from controlplane.contract.redis_address import RedisAddress

Client: TypeAlias = "Redis | RedisCluster"


def open_client(address: RedisAddress, *, password: str | None, settings: ProxySettings) -> Client:
    """A client that connects when it is first used, and answers in Redis' own words; the caller closes it."""
    common = _common(address, password=password, settings=settings)
    if address.cluster:
        cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
            ssl=address.tls,
            max_connections=settings.redis_waiting_max,
            **{**common, "retry": Retry(NoBackoff(), 1)},  # once more, where a slot has moved
        )
        for command in [name for name in cluster.response_callbacks if not name.startswith(("CLUSTER", "COMMAND"))]:
            del cluster.response_callbacks[command]  # those of the cluster's own are what finds its nodes
        return cluster
    single = _single(address, common)
    single.response_callbacks.clear()
    return single


async def open_pubsub(
    address: RedisAddress, *, password: str | None, settings: ProxySettings
) -> tuple[PubSub, Callable[[], Awaitable[None]]]:
    """A connection for messages, and how to close it. In a cluster any node hears every message, so the first that answers will do.

    Raises redis-py's errors and OSError if there is none.
    """
    common = _common(address, password=password, settings=settings)
    clients = (
        [Redis(host=host, port=port, ssl=address.tls, **common) for host, port in address.nodes]
        if address.cluster
        else [_single(address, common)]
    )
    chosen: Redis | None = None
    try:
        for client in clients:
            try:
                await client.execute_command("PING")  # type: ignore[no-untyped-call]  # redis-py has no type for it
            except OSError:
                continue
            except Exception:
                if client is clients[-1]:
                    raise
                continue
            chosen = client
            break
    finally:
        for client in clients:
            if client is not chosen:
                await client.aclose()
    if chosen is None:
        raise OSError("no Redis answers")
    pubsub = chosen.pubsub()

    async def close() -> None:
        await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has no type for it
        await chosen.aclose()

    return pubsub, close


def _common(address: RedisAddress, *, password: str | None, settings: ProxySettings) -> dict[str, Any]:
    return {
        "username": address.username,
        "password": password,
        "socket_connect_timeout": settings.redis_connect_timeout_s,
        "socket_timeout": None,  # deadlines are the callers'
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def _single(address: RedisAddress, common: dict[str, Any]) -> Redis:
    if address.path:
        return Redis(unix_socket_path=address.path, db=address.database, **common)
    if address.nodes:
        timeout_s = common["socket_connect_timeout"]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no type for it
            list(address.nodes),
            sentinel_kwargs={"socket_connect_timeout": timeout_s, "socket_timeout": timeout_s, "ssl": address.tls},
            ssl=address.tls,
            db=address.database,
            **common,
        )
        master: Redis = sentinel.master_for(address.master)
        return master
    return Redis(host=address.host, port=address.port, ssl=address.tls, db=address.database, **common)

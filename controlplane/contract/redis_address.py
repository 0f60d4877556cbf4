"""Where a Redis is: what `server.redis` may say, and nothing that is secret."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

DEFAULT_PORT = 6379
SENTINEL_PORT = 26_379
_NODES_MAX = 100
_DATABASES_MAX = 1_000_000


class RedisAddress(msgspec.Struct, frozen=True):
    """One Redis server, or a group of them.

    path: of its socket, if it is on this machine and has no host; username: of an ACL user.
    nodes: host and port of the sentinels, or of some nodes of a cluster; then there is no host.
    master: the name that the sentinels know the server by; empty with nodes: a cluster.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    database: int = 0
    tls: bool = False
    username: str | None = None
    nodes: tuple[tuple[str, int], ...] = ()
    master: str = ""

    @property
    def cluster(self) -> bool:
        """Whether it is a Redis Cluster."""
        return bool(self.nodes) and not self.master


def parse_redis_address(url: str) -> RedisAddress:
    """The address in `redis://[user@]host[:port][/database]`, the same with `rediss://` for TLS, or `unix:///path/of/socket`.

    Groups: `redis+sentinel://[user@]host[:port],host[:port]/master[/database]` and `redis+cluster://[user@]host[:port],host[:port]`,
    with `rediss+` for TLS.
    Raises ValueError, whose message never repeats a part of the URL, for anything else: also for a password, which has its own place.
    """
    scheme, _, group = url.partition("+")
    if scheme in {"redis", "rediss"} and group.startswith(("sentinel://", "cluster://")):
        kind, _, rest = group.partition("://")
        return _parse_group(kind, rest, tls=scheme == "rediss")
    try:
        parts = urlsplit(url)
        host, port, secret = parts.hostname or "", parts.port, parts.password
    except ValueError:
        raise ValueError("is not a URL; write it as `redis://host:6379/0`") from None
    if secret is not None:
        raise ValueError("holds a password; write it as `redis_password: env:NAME` instead")
    if parts.query or parts.fragment:
        raise ValueError("has options after `?` or `#`, which are not read; remove them")
    if parts.scheme == "unix":
        if host or not parts.path.startswith("/"):
            raise ValueError("needs the whole path of the socket; write it as `unix:///run/redis.sock`")
        return RedisAddress(path=parts.path)
    if parts.scheme not in {"redis", "rediss"}:
        raise ValueError(
            "has an unknown scheme; write it as `redis://...`, `rediss://...`, `unix://...`, `redis+sentinel://...` or `redis+cluster://...`"
        )
    database = parts.path.removeprefix("/") or "0"
    if not host or not (database.isascii() and database.isdigit()) or int(database[:8]) > _DATABASES_MAX:
        raise ValueError("needs a host, and at most the number of a database; write it as `redis://host:6379/0`")
    return RedisAddress(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        database=int(database),
        tls=parts.scheme == "rediss",
        username=parts.username or None,
    )


def _parse_group(kind: str, rest: str, *, tls: bool) -> RedisAddress:
    """Sentinels with the name of their master, or nodes of a cluster."""
    example = (
        "redis+sentinel://host1:26379,host2:26379/mymaster/0" if kind == "sentinel" else "redis+cluster://host1,host2"
    )
    if "?" in rest or "#" in rest:
        raise ValueError("has options after `?` or `#`, which are not read; remove them")
    places, *path = rest.split("/")
    username, at, hosts = places.rpartition("@")
    if ":" in username:
        raise ValueError("holds a password; write it as `redis_password: env:NAME` instead")
    default = SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    nodes = tuple(_parse_node(place, default, example) for place in hosts.split(",")[: _NODES_MAX + 1])
    if len(nodes) > _NODES_MAX:
        raise ValueError(f"names more than {_NODES_MAX} hosts; some of them are enough")
    user = username if at and username else None
    if kind == "cluster":
        if any(path):
            raise ValueError(f"has a path, but a cluster has no databases; write it as `{example}`")
        return RedisAddress(nodes=nodes, tls=tls, username=user)
    master, database = (*path, "", "")[:2]
    if not master or len(path) > 2 or not ((database or "0").isascii() and (database or "0").isdigit()):
        raise ValueError(f"needs the name of the master, and at most the number of a database: `{example}`")
    if int((database or "0")[:8]) > _DATABASES_MAX:
        raise ValueError(f"needs the name of the master, and at most the number of a database: `{example}`")
    return RedisAddress(nodes=nodes, master=master, database=int(database or "0"), tls=tls, username=user)


def _parse_node(place: str, default: int, example: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host:
        raise ValueError(f"needs hosts separated by commas; write it as `{example}`")
    return host, default if port is None else port

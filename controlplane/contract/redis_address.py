"""Where a Redis is: what `server.redis` may say, and nothing that is secret."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

DEFAULT_PORT = 6379
_DATABASES_MAX = 1_000_000


class RedisAddress(msgspec.Struct, frozen=True):
    """One Redis server. path: of its socket, if it is on this machine and has no host; username: of an ACL user."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    database: int = 0
    tls: bool = False
    username: str | None = None


def parse_redis_address(url: str) -> RedisAddress:
    """The address in `redis://[user@]host[:port][/database]`, the same with `rediss://` for TLS, or `unix:///path/of/socket`.

    Raises ValueError, whose message never repeats a part of the URL, for anything else: also for a password, which has its own place.
    """
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
        raise ValueError("has an unknown scheme; write it as `redis://...`, `rediss://...` or `unix://...`")
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

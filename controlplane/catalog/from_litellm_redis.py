"""Where LiteLLM's Redis is, as `server.redis` says it: one server, a group behind sentinels, or a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.catalog.from_litellm_models import Document
from controlplane.contract.redis_address import parse_redis_address

_ENVIRON = "os.environ/"
NODES_MAX = 100


def address_of(params: Document, *, prefix: str = "") -> str | None:
    """The address; None if there is none, or if it stands in the environment, where `server.redis` cannot be.

    prefix: `redis_` in the router's settings.
    """
    host, port = params.take(f"{prefix}host"), params.take(f"{prefix}port") or 6_379
    url, master = params.take_text(f"{prefix}url"), params.take_text("service_name")
    sentinels = ",".join(_nodes(params.take("sentinel_nodes")))
    cluster = ",".join(_nodes(params.take("redis_startup_nodes")))
    tls = "rediss" if params.take("ssl") is True else "redis"
    if sentinels and master:
        found = f"{tls}+sentinel://{sentinels}/{master}"
    elif cluster:
        found = f"{tls}+cluster://{cluster}"
    elif isinstance(host, str) and not host.startswith(_ENVIRON) and str(port).isdigit():
        found = f"{tls}://{host}:{port}/{params.take(f'{prefix}db') or 0}"
    else:
        found = url or ""
    try:
        parse_redis_address(found)
    except ValueError:
        return None
    return found


def _nodes(value: object) -> Iterator[str]:
    """Hosts with their ports, written as a mapping or as a pair."""
    for node in value[:NODES_MAX] if isinstance(value, list) else ():
        if isinstance(node, dict):
            node = [node.get("host"), node.get("port")]
        if isinstance(node, list) and len(node) == 2:
            yield f"{node[0]}:{node[1]}"

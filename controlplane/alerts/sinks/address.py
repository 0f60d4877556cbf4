"""Which addresses a webhook may reach: the name is resolved once, every answer is checked, and the connection goes to what was checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from controlplane.errors import BadRequest, UpstreamFailed

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


class Target(NamedTuple):
    """A checked place: connect to `address`, speak as if to `host`."""

    scheme: str
    host: str
    port: int
    address: str
    path: str

    @property
    def pinned_url(self) -> str:
        """The URL with the address in place of the name."""
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{shown}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        """The Host header: the name as written, the port if it is not the scheme's own."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return shown if self.port == usual else f"{shown}:{self.port}"


def networks(written: Sequence[str]) -> tuple[Network, ...]:
    """Allow-listed addresses and networks; raises BadRequest for what is neither."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in written)
    except ValueError as error:
        raise BadRequest(f"allow_private: {error}") from error


def allowed(address: IPAddress, allow: Sequence[Network]) -> bool:
    """Whether an address may be reached: it is public, or in one of the networks that were allowed."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address in _SIX_TO_FOUR:
            inner = address.sixtofour
        if inner is not None:
            return allowed(inner, allow)
    if any(address.version == network.version and address in network for network in allow):
        return True
    return address.is_global and not address.is_multicast


async def resolve(url: str, allow: Sequence[Network]) -> Target:
    """Resolve and check a URL.

    Raises BadRequest when it can never be reached (no http or https, user and password in it, or any answer of the name is not allowed), and
    UpstreamFailed when the name does not resolve now.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError as error:
        raise BadRequest(f"the address is not a URL: {error}") from error
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host:
        raise BadRequest("the address must start with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise BadRequest("the address must not hold a user or a password")
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UpstreamFailed(f"{host} does not resolve: {error}") from error
    addresses = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    for address in addresses:
        if not allowed(address, allow):
            raise BadRequest(f"{host} is {address}, which is not public; add it to `allow_private` if it is meant")
    if not addresses:
        raise UpstreamFailed(f"{host} has no address")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, str(addresses[0]), path)

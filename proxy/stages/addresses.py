"""Where a client is: the address of its connection, or the one that load balancers of ours say they had it from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_MAPPED_BITS = 96  # before the IPv4 address in an IPv6 address that holds one
HOPS_MAX = 32  # of `x-forwarded-for`, read from its end


def client_address(peer: str, headers: Mapping[bytes, bytes], trusted: Sequence[Network]) -> Address | None:
    """The nearest address that is not a trusted load balancer's; None if it cannot be told.

    peer: of the connection. trusted: networks whose word in `x-forwarded-for` is taken; whatever stands before the first
    address that is not among them was written by the client, and is never looked at.
    """
    address = _address(peer)
    if address is None or not _within(address, trusted):
        return address
    hops = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[-HOPS_MAX:]
    for hop in reversed(hops):
        found = _address(hop)
        if found is None:
            return None if hop.strip() else address
        address = found
        if not _within(address, trusted):
            return address
    return address


def may_come_from(address: Address | None, allowed: Sequence[str]) -> bool:
    """Whether an address is in one of the networks; an address that is not known is in none."""
    return address is not None and _within(address, [_network(text) for text in allowed])


def networks_of(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation. Raises ValueError for anything else."""
    return tuple(_network(text) for text in texts)


@lru_cache(maxsize=1024)
def _network(text: str) -> Network:
    """A network; one of IPv4 addresses written as IPv6 is what it is, as an address is."""
    network = ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _address(text: str) -> Address | None:
    """An address, with or without a port or brackets; an IPv4 address written as IPv6 is what it is."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped

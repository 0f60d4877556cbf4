"""Tests of a client's address behind load balancers: nobody can write himself into a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.stages.addresses import client_address, may_come_from, networks_of

TRUSTED = networks_of(("10.0.0.0/8", "2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.5", None, "203.0.113.5"),
        ("203.0.113.5", "192.0.2.1", "203.0.113.5"),  # a client that talks to us itself cannot say who it is
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7, 192.0.2.1", "192.0.2.1"),  # what the client wrote stands before what we were told
        ("10.0.0.1", "192.0.2.1, 10.2.3.4", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:5544", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8:2::1]:443", "2001:db8:2::1"),
        ("2001:db8:1::9", "::ffff:192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1, unknown", "None"),
        ("", "192.0.2.1", "None"),
    ],
)
def test_the_address_behind_load_balancers(peer: str, forwarded: str | None, expected: str) -> None:
    """The nearest hop that is not ours is the client, whatever it wrote about itself."""
    headers = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
    assert expected == str(client_address(peer, headers, TRUSTED))


@given(st.lists(st.ip_addresses(), max_size=5), st.ip_addresses(v=4, network="192.0.2.0/24"))
def test_nothing_a_client_writes_changes_its_address(written: list[object], real: object) -> None:
    """Whatever stands in the header before the load balancer's own entry, the address is the one that it saw."""
    header = ", ".join([*map(str, written), str(real)])
    assert str(real) == str(client_address("10.0.0.1", {b"x-forwarded-for": header.encode()}, TRUSTED))


@given(st.binary(max_size=200), st.text(max_size=40))
def test_any_bytes_are_an_address_or_none(forwarded: bytes, peer: str) -> None:
    """No header and no peer raises anything, and an unknown address is allowed nowhere."""
    address = client_address(peer, {b"x-forwarded-for": forwarded}, TRUSTED)
    assert address is None or may_come_from(address, ("0.0.0.0/0", "::/0"))
    assert not may_come_from(None, ("0.0.0.0/0", "::/0"))


@pytest.mark.parametrize(
    ("address", "allowed"), [("192.0.2.1", True), ("192.0.2.255", True), ("192.0.3.0", False), ("::c000:201", False)]
)
def test_networks(address: str, allowed: bool) -> None:
    """An address is allowed in its own networks and in no others, of the other version least of all."""
    assert allowed is may_come_from(client_address(address, {}, ()), ("192.0.2.0/24", "198.51.100.1/32"))


@pytest.mark.parametrize(
    ("network", "address", "allowed"),
    [
        ("::ffff:192.0.2.0/120", "192.0.2.255", True),
        ("::ffff:192.0.2.0/120", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.0/120", "192.0.3.0", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::/0", "2001:db8::1", True),
        ("::/0", "192.0.2.1", False),
    ],
)
def test_a_network_of_mapped_addresses_is_one_of_their_own(network: str, address: str, allowed: bool) -> None:
    """IPv4 addresses that are written as IPv6 are the same addresses, in networks as in connections."""
    assert allowed is may_come_from(client_address(address, {}, ()), (network,))
    (trusted,) = networks_of((network,))
    seen = client_address(address, {b"x-forwarded-for": b"203.0.113.5"}, (trusted,))
    assert allowed is (str(seen) == "203.0.113.5")

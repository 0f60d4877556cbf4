"""Which addresses a webhook may reach."""

from __future__ import annotations

import ipaddress

import pytest

from controlplane.alerts.sinks.address import allowed, networks, resolve
from controlplane.errors import BadRequest, UpstreamFailed

DENIED = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:a00:1::",
]


@pytest.mark.parametrize("text", DENIED)
def test_private_and_special_addresses_are_denied(text: str) -> None:
    """No address that is not public is reached, in whatever clothes it comes."""
    assert not allowed(ipaddress.ip_address(text), ())


@pytest.mark.parametrize("text", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(text: str) -> None:
    """Public addresses need no list."""
    assert allowed(ipaddress.ip_address(text), ())


def test_a_listed_network_is_allowed_and_no_more() -> None:
    """The allow list opens what it names, in mapped form too, and nothing beside it."""
    allow = networks(["10.0.0.0/8", "::1"])
    assert allowed(ipaddress.ip_address("10.9.9.9"), allow)
    assert allowed(ipaddress.ip_address("::ffff:10.9.9.9"), allow)
    assert allowed(ipaddress.ip_address("::1"), allow)
    assert not allowed(ipaddress.ip_address("192.168.0.1"), allow)


@pytest.mark.parametrize("text", ["10.0.0.0/99", "everything", ""])
def test_a_bad_allow_list_is_refused(text: str) -> None:
    """What is no address and no network is an error, not an open door."""
    with pytest.raises(BadRequest, match="allow_private"):
        networks([text])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://1.1.1.1/", "http://"),
        ("file:///etc/passwd", "http://"),
        ("https:///path", "name a host"),
        ("https://ann:pw@1.1.1.1/", "user or a password"),
        ("https://1.1.1.1:99999/", "not a URL"),
        ("http://localhost:1/", "not public"),
        ("http://127.0.0.1/", "not public"),
        ("http://2130706433/", "not public"),
        ("http://0x7f.1/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://169.254.169.254/latest/meta-data", "not public"),
    ],
)
async def test_a_url_that_may_never_be_reached_is_refused(url: str, reason: str) -> None:
    """Bad schemes, users in the address and inward addresses are refused before anything is sent."""
    with pytest.raises(BadRequest, match=reason):
        await resolve(url, ())


async def test_a_name_that_does_not_resolve_is_tried_later() -> None:
    """An unknown name is the network's trouble, not the configuration's."""
    with pytest.raises(UpstreamFailed, match="does not resolve"):
        await resolve("https://no-such-host.invalid/", ())


async def test_the_target_is_pinned_to_the_checked_address() -> None:
    """The connection goes to the address that was checked; the name stays in the Host header."""
    target = await resolve("https://8.8.8.8:8443/a?b=c", ())
    assert ("https://8.8.8.8:8443/a?b=c", "8.8.8.8:8443") == (target.pinned_url, target.host_header)
    local = await resolve("http://localhost:8080", networks(["127.0.0.0/8", "::1"]))
    assert local.pinned_url in {"http://127.0.0.1:8080/", "http://[::1]:8080/"}
    assert ("localhost:8080", "localhost") == (local.host_header, local.host)

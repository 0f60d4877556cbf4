"""Public keys of issuers: asked for at their time, kept when the issuer is gone, and nothing secret or foreign among them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.catalog.file import IssuerEntry
from controlplane.catalog.issuers import KEYS_MAX, KeysUnavailable, PublicKeys, read_keys, source_of

EC = {"kty": "EC", "kid": "1", "crv": "P-256", "x": "a", "y": "b"}
RSA = {"kty": "RSA", "kid": "2", "n": "gQ" * 171, "e": "AQAB"}
MINUTE_US = 60_000_000


class Site:
    """A web server of one issuer; `pages` are its answers by path, and others are not found."""

    def __init__(self) -> None:
        self.pages: dict[str, object] = {}
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        self.asked.append(path)
        page = self.pages.get(path)
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        status = b"404 Not Found" if page is None else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A web server on a free port."""
    site = Site()
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield site
    server.close()
    await server.wait_closed()


def issuer(site: Site, **fields: str | float) -> IssuerEntry:
    """An issuer at the site."""
    return IssuerEntry(name="corp", issuer=site.url, audience=("h",), tenant="acme", refresh_s=60.0, **fields)  # type: ignore[arg-type]  # any field


async def test_keys_are_found_as_openid_connect_says(site: Site, tmp_path: Path) -> None:
    """The issuer's own configuration says where its keys are, and they are asked for again when their time has come."""
    site.pages = {
        "/.well-known/openid-configuration": {"issuer": site.url, "jwks_uri": f"{site.url}/keys"},
        "/keys": {"keys": [EC]},
    }
    keys, entry = PublicKeys(tmp_path), issuer(site)
    for now_us in (MINUTE_US, MINUTE_US * 2 - 1):
        await keys.turn([entry], now_us=now_us)
    assert ["/.well-known/openid-configuration", "/keys"] == site.asked
    assert [EC] == [json.loads(text) for text in keys.keys[source_of(entry)]]
    site.pages["/keys"] = {"keys": [EC, RSA]}
    await keys.turn([entry], now_us=MINUTE_US * 2)
    assert 2 == len(keys.keys[source_of(entry)])


async def test_the_last_keys_outlive_the_issuer_and_a_restart(site: Site, tmp_path: Path) -> None:
    """An issuer that is down, or says nonsense, keeps the keys it had, in this process and in the next one."""
    site.pages = {"/keys": {"keys": [EC]}}
    keys, entry = PublicKeys(tmp_path), issuer(site, jwks_url=f"{site.url}/keys")
    await keys.turn([entry], now_us=MINUTE_US)
    before = keys.keys
    wrong: tuple[object, ...] = (None, b"nonsense", {"keys": []}, b" " * 300_000, {"keys": [EC] * (KEYS_MAX + 1)})
    for n, answer in enumerate(wrong, start=2):
        site.pages = {"/keys": answer}
        await keys.turn([entry], now_us=MINUTE_US * n)
        assert before == keys.keys
    again = PublicKeys(tmp_path)
    again.load([entry])
    assert before == again.keys


async def test_an_issuer_that_is_gone_loses_its_keys(site: Site, tmp_path: Path) -> None:
    """Keys of an issuer that the configuration no longer names are not handed out."""
    site.pages = {"/keys": {"keys": [EC]}}
    keys = PublicKeys(tmp_path)
    await keys.turn([issuer(site, jwks_url=f"{site.url}/keys")], now_us=MINUTE_US)
    await keys.turn([], now_us=MINUTE_US)
    assert {} == keys.keys


async def test_another_issuer_under_the_same_name_gets_none_of_the_old_ones_keys(site: Site, tmp_path: Path) -> None:
    """Neither in this process nor after a restart, though the new issuer cannot be asked."""
    site.pages = {"/keys": {"keys": [EC]}}
    old, new = issuer(site, jwks_url=f"{site.url}/keys"), issuer(site, jwks_url=f"{site.url}/elsewhere")
    keys = PublicKeys(tmp_path)
    await keys.turn([old], now_us=MINUTE_US)
    await keys.turn([new], now_us=MINUTE_US)
    again = PublicKeys(tmp_path)
    again.load([new])
    assert ({}, {}) == (keys.keys, again.keys)


async def test_a_disk_that_takes_nothing_keeps_no_key_from_the_proxies(site: Site, tmp_path: Path) -> None:
    """Fresh keys are handed out although they cannot be kept for the next start."""
    site.pages = {"/keys": {"keys": [EC]}}
    (tmp_path / "taken").write_text("a file where the folder should be")
    keys, entry = PublicKeys(tmp_path / "taken"), issuer(site, jwks_url=f"{site.url}/keys")
    await keys.turn([entry], now_us=MINUTE_US)
    assert [source_of(entry)] == list(keys.keys)


async def test_keys_of_a_file(site: Site, tmp_path: Path) -> None:
    """A file may hold the keys; nothing is asked over the network."""
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [EC]}))
    keys = PublicKeys(tmp_path / "kept")
    entry = issuer(site, jwks_file=str(tmp_path / "jwks.json"))
    await keys.turn([entry], now_us=MINUTE_US)
    assert ([], [source_of(entry)]) == (site.asked, list(keys.keys))


async def test_the_configuration_of_another_issuer_is_not_believed(site: Site, tmp_path: Path) -> None:
    """A configuration that names another issuer than the one that was asked counts for nothing."""
    site.pages = {
        "/.well-known/openid-configuration": {"issuer": "https://else", "jwks_uri": f"{site.url}/keys"},
        "/keys": {"keys": [EC]},
    }
    keys = PublicKeys(tmp_path)
    await keys.turn([issuer(site)], now_us=MINUTE_US)
    assert ({}, ["/.well-known/openid-configuration"]) == (keys.keys, site.asked)


def test_only_public_fields_of_usable_keys_go_further() -> None:
    """A private half that somebody published, keys for encryption, shared secrets, short keys and what is no key at all stay behind."""
    documents = [
        {**EC, "d": "private"},
        {**RSA, "use": "enc"},
        {"kty": "oct", "k": "shared"},
        {**RSA, "n": "A" * 100},
        {**RSA, "n": 7},
        {**RSA, "e": 65537},
        {**EC, "kid": 1},
        {**EC, "kty": ["EC"]},
        {**RSA, "use": "sig", "x5c": ["long"]},
    ]
    found = [json.loads(text) for text in read_keys(json.dumps({"keys": documents}).encode())]
    assert [EC, {**RSA, "use": "sig"}] == found


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"keys": [{"kty": "oct"}]}', b'{"keys": [1]}', b'{"keys": [{"a": ' + b"[" * 100_000]
)
def test_what_is_no_key_set(data: bytes) -> None:
    """Nonsense and sets without a usable key are refused."""
    with pytest.raises(KeysUnavailable):
        read_keys(data)

"""Tests of a pipelined connection to Redis, against a real server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from controlplane.contract.redis_address import RedisAddress
from proxy.transports.redis_line import LINE_TROUBLE, LineLost, RedisLine, open_line
from tests.proxy.redis_server import RedisNotStarted, RedisServer

TIMEOUT_S = 10.0
ACL_USER = "--user heph on >secret resetkeys ~heph:cache:* resetchannels -@all +getrange +set +ping +select"  # no more than stored answers need


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Redis."""
    started = await RedisServer(tmp_path).start()
    yield started
    started.kill()


async def _line(server: RedisServer, lost: list[str] | None = None) -> RedisLine:
    return await open_line(
        RedisAddress("127.0.0.1", server.port),
        password=None,
        timeout_s=TIMEOUT_S,
        on_lost=lambda: None if lost is None else lost.append("lost"),
    )


async def test_answers_belong_to_their_questions(server: RedisServer) -> None:
    """Many questions at once on one connection get each its own answer, refusals among them."""
    line = await _line(server)
    await asyncio.gather(*(line.ask("SET", f"k{number}", b"%d" % number) for number in range(100)))
    answers = await asyncio.gather(
        *(line.ask("GET", f"k{number}") if number % 10 else line.ask("NONSENSE") for number in range(100)),
        return_exceptions=True,
    )
    for number, answer in enumerate(answers):
        if number % 10:
            assert b"%d" % number == answer
        else:
            assert isinstance(answer, ResponseError)
    assert 0 == line.waiting
    await line.aclose()


async def test_who_stops_waiting_leaves_the_line_usable(server: RedisServer) -> None:
    """A cancelled question's answer is thrown away, and the next question gets its own."""
    lost: list[str] = []
    line = await _line(server, lost)
    await line.ask("SET", "k", "v")
    server.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await line.ask("GET", "nothing")
    assert 1 == line.waiting
    server.thaw()
    assert b"v" == await line.ask("GET", "k")
    assert (0, []) == (line.waiting, lost)
    await line.aclose()


async def test_a_lost_line_answers_nobody_and_says_so_once(server: RedisServer) -> None:
    """Whoever waits is told, whoever asks later is told at once, and the owner hears of it one time."""
    lost: list[str] = []
    line = await _line(server, lost)
    server.freeze()
    asked = [asyncio.ensure_future(line.ask("GET", "k")) for _ in range(3)]
    await asyncio.sleep(0)
    server.kill()
    for future in asked:
        with pytest.raises(LineLost):
            await future
    with pytest.raises(LineLost):
        await line.ask("GET", "k")
    await line.aclose()
    assert ["lost"] == lost


async def test_closing_is_no_loss(server: RedisServer) -> None:
    """A line that its owner closes, twice even, does not report itself lost, and answers nobody any more."""
    lost: list[str] = []
    line = await _line(server, lost)
    assert b"PONG" == await line.ask("PING")
    await line.aclose()
    await line.aclose()
    assert [] == lost
    with pytest.raises(LineLost):
        await line.ask("PING")


async def test_refused_and_frozen_servers(server: RedisServer) -> None:
    """A closed port, and a server that accepts but does not answer in time, are both trouble of the known kinds."""
    address = RedisAddress("127.0.0.1", server.port, database=1)
    server.freeze()
    with pytest.raises(LINE_TROUBLE):
        await open_line(address, password=None, timeout_s=0.05, on_lost=lambda: None)
    server.kill()
    with pytest.raises(LINE_TROUBLE):
        await open_line(address, password=None, timeout_s=TIMEOUT_S, on_lost=lambda: None)


async def test_user_and_database(tmp_path: Path) -> None:
    """A user with no more rights than stored answers need logs in and works in the database of the address; a wrong password does not."""
    server = await RedisServer(tmp_path, *ACL_USER.split()).start()
    address = RedisAddress("127.0.0.1", server.port, database=3, username="heph")
    line = await open_line(address, password="secret", timeout_s=TIMEOUT_S, on_lost=lambda: None)
    assert b"PONG" == await line.ask("PING")
    await line.ask("SET", "heph:cache:x", "answer", "PX", 60_000)
    assert b"ans" == await line.ask("GETRANGE", "heph:cache:x", 0, 2)
    with pytest.raises(NoPermissionError):
        await line.ask("SET", "other", "1")
    with server.client() as client:
        client.select(3)
        assert 1 == client.dbsize()
    with pytest.raises(AuthenticationError):
        await open_line(address, password="other", timeout_s=TIMEOUT_S, on_lost=lambda: None)
    await line.aclose()
    server.kill()


async def test_a_socket_of_this_machine(tmp_path: Path) -> None:
    """`unix://` addresses work."""
    with tempfile.TemporaryDirectory(prefix="heph-") as folder:  # a socket's path may not be long
        server = await RedisServer(tmp_path, "--unixsocket", f"{folder}/redis").start()
        await _pinged(RedisAddress(path=f"{folder}/redis"))
        server.kill()


async def _pinged(address: RedisAddress) -> None:
    line = await open_line(address, password=None, timeout_s=TIMEOUT_S, on_lost=lambda: None)
    assert b"PONG" == await line.ask("PING")
    await line.aclose()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *command.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that the system trusts is accepted; any other is not, and nothing is sent unencrypted instead."""
    key, certificate = _certificate(tmp_path)
    tls_port = RedisServer(tmp_path).port
    options = (
        f"--tls-port {tls_port} --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate}"
    )
    server = RedisServer(tmp_path, *options.split(), "--tls-auth-clients", "no")
    try:
        await server.start()
    except RedisNotStarted:
        pytest.skip("this redis-server was built without TLS")
    address = RedisAddress("127.0.0.1", tls_port, tls=True)
    with pytest.raises(LINE_TROUBLE):
        await open_line(address, password=None, timeout_s=TIMEOUT_S, on_lost=lambda: None)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    await _pinged(address)
    server.kill()

"""TLS to upstreams, with a certificate authority of the test's own: who is trusted, and what an operator hears when nobody is."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import structlog

from controlplane.contract.records import AttemptError, Outcome
from tests.proxy.fakes import World, answer, completion, replies, sends_then_hangs, whole_stream

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
GOOD = replies(answer(completion()))
LOCAL = "DNS:localhost,IP:127.0.0.1"


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def _authority(directory: Path, name: str) -> None:
    """A certificate authority that signs itself: `<name>.pem` and `<name>.key`."""
    _openssl(
        directory, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.pem", "-addext", "basicConstraints=critical,CA:TRUE",
    )  # fmt: skip


def _server(directory: Path, authority: str, names: str) -> ssl.SSLContext:
    """A server's certificate for these names, signed by the authority."""
    (directory / "names").write_text(f"subjectAltName={names}\n")
    _openssl(
        directory,
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=upstream",
        "-keyout",
        "up.key",
        "-out",
        "up.csr",
    )
    _openssl(
        directory, "x509", "-req", "-in", "up.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
        "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "up.pem",
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "up.pem", directory / "up.key")
    return context


@pytest.fixture
def certificates(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an authority that this process trusts, as an operator says it: by `SSL_CERT_FILE`."""
    directory = tmp_path_factory.mktemp("tls")
    _authority(directory, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(directory / "trusted.pem"))
    return directory


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_upstream_with_a_trusted_certificate_is_served_over_tls(
    world: World, certificates: Path, host: str
) -> None:
    """Whole answers and streams, by name and by address, over one connection that is kept."""
    tls = _server(certificates, "trusted", LOCAL)
    upstream = await world.upstream(GOOD, replies(whole_stream("Hel", "lo")), tls=tls)
    world.apply(urls=(f"https://{host}:{upstream.port}/v1",))
    assert 200 == (await world.chat()).status_code
    assert "Hel" in (await world.chat(stream=True)).text
    assert (1, "Bearer sk-upstream-secret") == (upstream.connections, upstream.received[0].headers["authorization"])


@pytest.mark.parametrize(
    ("authority", "names", "reason"),
    [("trusted", "DNS:other.example", "match"), ("stranger", LOCAL, "certificate verify failed")],
)
async def test_a_certificate_that_does_not_fit_is_a_failure_to_connect(
    world: World, certificates: Path, authority: str, names: str, reason: str
) -> None:
    """A wrong name and an unknown authority: no request is sent, the operator hears why, the client does not."""
    _authority(certificates, "stranger")
    upstream = await world.upstream(GOOD, tls=_server(certificates, authority, names))
    world.apply(urls=(f"https://127.0.0.1:{upstream.port}/v1",), route={"attempts_max": 1})
    with structlog.testing.capture_logs() as lines:
        response = await world.chat()
    assert (502, "exhausted") == (response.status_code, response.json()["error"]["code"])
    assert "certificate" not in response.text
    assert reason in lines[0]["reasons"][0]
    (record,) = world.records()
    assert (Outcome.EXHAUSTED, AttemptError.CONNECT) == (record.outcome, record.attempts[0].error)
    assert [] == upstream.received


async def test_an_upstream_that_speaks_no_tls_is_a_failure_to_connect(world: World, certificates: Path) -> None:
    """https to a port that speaks plain HTTP: the credential never leaves."""
    upstream = await world.upstream(GOOD)
    world.apply(
        urls=(f"https://127.0.0.1:{upstream.port}/v1",), route={"attempts_max": 1}, upstream={"connect_timeout_s": 0.5}
    )
    assert 502 == (await world.chat()).status_code
    assert AttemptError.CONNECT == world.records()[0].attempts[0].error
    assert [] == upstream.received


async def test_a_handshake_that_never_ends_is_given_up_in_time(world: World, certificates: Path) -> None:
    """The time to connect includes the handshake."""
    upstream = await world.upstream(sends_then_hangs(b""))
    world.apply(
        urls=(f"https://127.0.0.1:{upstream.port}/v1",), route={"attempts_max": 1}, upstream={"connect_timeout_s": 0.2}
    )
    assert 502 == (await world.chat()).status_code
    (record,) = world.records()
    assert AttemptError.CONNECT == record.attempts[0].error
    assert record.latency_us < 5_000_000

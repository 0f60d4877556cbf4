"""Snapshots compiled for look-ups: credentials, identities, leases, order."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.contract.snapshot import (
    Deployment,
    KeyEntry,
    Lease,
    LeaseKind,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from proxy.runtime import Runtime, compile_runtime


def compiled(
    environ: dict[str, str] | None = None, *, credential: str | None = None, url: str = "https://api.example.com/v1"
) -> Runtime:
    """A runtime with one upstream and one deployment."""
    snapshot = Snapshot(
        version=1,
        created_us=0,
        upstreams=(Upstream(id="u", dialect="openai", base_url=url, credential=credential),),
        routes=(Route(alias="gpt", deployments=(Deployment(id="d", upstream="u", model="m"),)),),
    )
    return compile_runtime(snapshot, environ or {})


@pytest.mark.parametrize(
    ("host", "port", "tls", "line", "url"),
    [
        ("api.example.com", 443, True, "POST /v1/chat/completions HTTP/1.1", "https://api.example.com/v1"),
        ("api.example.com", 443, True, "POST /v1/chat/completions HTTP/1.1", "https://api.example.com/v1/"),
        ("127.0.0.1", 8000, False, "POST /chat/completions HTTP/1.1", "http://127.0.0.1:8000"),
        ("::1", 80, False, "POST /a/b/v1/chat/completions HTTP/1.1", "http://[::1]/a/b/v1"),
    ],
)
def test_base_urls(host: str, port: int, tls: bool, line: str, url: str) -> None:
    """As the OpenAI SDK writes them, with and without port, path and slash."""
    found = compiled(url=url).routes["gpt"].groups[0][0].endpoint
    assert found is not None
    assert (host, port, tls) == (found.host, found.port, found.tls)
    assert found.wires["chat"].head.decode().startswith(line + "\r\n")


def test_a_credential_from_the_environment_stands_in_the_head_and_is_never_shown() -> None:
    """It is in the bytes that go out, and in no representation."""
    found = compiled({"K": " sk-secret\n"}, credential="env:K")
    assert b"authorization: Bearer sk-secret\r\n" in found.routes["gpt"].groups[0][0].endpoint.wires["chat"].head  # type: ignore[union-attr]
    assert "sk-secret" not in repr(found)


def test_a_credential_from_a_file(tmp_path: Path) -> None:
    """The file's text, without the line end."""
    path = tmp_path / "key"
    path.write_text("sk-file\n")
    assert (
        b"Bearer sk-file\r\n"
        in compiled(credential=f"file:{path}").routes["gpt"].groups[0][0].endpoint.wires["chat"].head
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("environ", "credential", "says"),
    [
        ({}, "env:K", "set the environment variable K"),
        ({"K": ""}, "env:K", "set the environment variable K"),
        ({"K": "a\r\nx-evil: 1"}, "env:K", "set the environment variable K"),
        ({}, "file:/does/not/exist", "put the credential into the file"),
        ({}, "sk-plain", "env:NAME or file:/path"),
    ],
)
def test_a_credential_that_cannot_be_had_says_what_to_do(environ: dict[str, str], credential: str, says: str) -> None:
    """Missing, empty, unfit for a header or not a reference; the value itself is not repeated."""
    runtime = compiled(environ, credential=credential)
    (sentence,) = runtime.missing_credentials
    assert sentence.startswith("u: ")
    assert says in sentence


@pytest.mark.parametrize(
    ("expected", "tenant", "key"),
    [
        (None, None, None),
        ({"a", "b"}, ("a", "b"), None),
        ({"b"}, None, ("b",)),
        ({"b"}, ("a", "b"), ("b", "c")),
        (set(), ("a",), ("b",)),
        (set(), (), None),
    ],
)
def test_a_key_may_use_what_both_allow(
    expected: set[str] | None, tenant: tuple[str, ...] | None, key: tuple[str, ...] | None
) -> None:
    """The intersection; no list at all means everything."""
    snapshot = Snapshot(
        version=1,
        created_us=0,
        tenants=(TenantPolicy(id="t", models=tenant),),
        keys=(KeyEntry(hash="h", id="k", tenant="t", models=key), KeyEntry(hash="g", id="l", tenant="gone")),
    )
    keys = compile_runtime(snapshot, {}).keys
    assert expected == keys["h"].models
    assert {"h"} == set(keys)


def test_a_drain_counts_before_a_share() -> None:
    """Of several leases on one deployment the strongest decides."""
    leases = tuple(
        Lease(id=kind, kind=kind, deployment="d", expires_us=expires)
        for kind, expires in ((LeaseKind.DRAIN, 5), (LeaseKind.SHARE, 9))
    )
    snapshot = Snapshot(
        version=1,
        created_us=0,
        upstreams=(Upstream(id="u", dialect="openai", base_url="http://h/v1"),),
        routes=(Route(alias="gpt", deployments=(Deployment(id="d", upstream="u", model="m"),)),),
        leases=leases,
    )
    entry = compile_runtime(snapshot, {}).routes["gpt"]
    assert entry.groups[0][0].lease == leases[0]
    assert entry.plain is None

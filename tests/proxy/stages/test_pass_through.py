"""Paths that are passed through: whatever is let through means the same to every reader, and stays where it was granted."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from hypothesis import example, given
from hypothesis import strategies as st

from controlplane.contract.snapshot import (
    Deployment,
    KeyEntry,
    PassthroughGrant,
    Route,
    Snapshot,
    TenantPolicy,
    Upstream,
)
from proxy.call import Call
from proxy.runtime import compile_runtime, identity_of
from proxy.stages.pass_through import PassThrough

TENANT = TenantPolicy("acme", passthrough=(PassthroughGrant("up", ("/files",)),))
RUNTIME = compile_runtime(
    Snapshot(
        version=1,
        created_us=0,
        tenants=(TENANT,),
        upstreams=(Upstream("up", "openai", "http://h/base/v1", credential="env:K"),),
        routes=(Route("gpt", (Deployment("up/m", "up", "m"),)),),
    ),
    {"K": "sk-secret"},
)
IDENTITY = identity_of(TENANT, KeyEntry("0" * 32, "key_1", "acme"))
PIECES = st.sampled_from(
    [
        "files",
        "admin",
        "..",
        ".",
        "/",
        "//",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        "%25",
        "%252e",
        "%252f",
        ";",
        "..;",
        "%00",
        "%0d%0a",
        "~",
        "@",
        "?",
        "a b",
        "#",
        "é",
        "%c3%a9",
    ]
)


def sent(target: bytes, *, method: bytes = b"GET", headers: dict[bytes, bytes] | None = None) -> bytes | None:
    """The head that an upstream would get; None: refused."""
    call = Call(
        RUNTIME, "passthrough", "/passthrough", headers or {}, b"", call_id="call_1", started_us=1, started_ns=1
    )
    call.identity = IDENTITY
    call.request_line = (method, target)
    if PassThrough(timeout_s=1.0).enter(call) is not None:
        return None
    endpoint = call.candidates[0].endpoint
    assert endpoint is not None
    return endpoint.wires["passthrough"].head


@given(st.lists(PIECES, max_size=8))
@example(["files", "/", "%252e", "%252e", "/", "admin"])
@example(["files", "/", "..;", "/", "admin"])
@example(["files", "/", "%2e", "%2E%2e", "/"])
def test_no_path_leaves_its_grant(pieces: list[str]) -> None:
    """However often an upstream decodes and however it tidies up, what it gets lies below what was granted."""
    head = sent(b"/passthrough/up/files/" + "".join(pieces).encode())
    if head is None:
        return
    lines = head.split(b"\r\n")
    method, target, version = lines[0].decode().split(" ")
    assert ("GET", "HTTP/1.1") == (method, version)
    path = target.partition("?")[0]
    for _ in range(4):
        plain = posixpath.normpath("/".join(part.partition(";")[0] for part in path.replace("\\", "/").split("/")))
        assert plain == "/base/v1/files" or plain.startswith("/base/v1/files/")
        path = unquote(path)
    assert [b"host: h"] == [line for line in lines if line.lower().startswith(b"host:")]


@given(st.dictionaries(st.sampled_from([
    b"authorization", b"x-api-key", b"api-key", b"cookie", b"proxy-authorization", b"host", b"connection", b"transfer-encoding",
    b"content-length", b"upgrade", b"x-heph-agent", b"x-forwarded-for", b"expect", b"te", b"content-encoding",
]), st.just(b"sk-heph-client")))  # fmt: skip
def test_nothing_of_the_client_goes_on_that_was_not_named(headers: dict[bytes, bytes]) -> None:
    """Credentials, framing, hops and labels stay here; ours is the only credential."""
    head = sent(b"/passthrough/up/files", headers=headers)
    assert head is not None
    assert b"sk-heph-client" not in head
    assert 1 == head.count(b"authorization: Bearer sk-secret\r\n")

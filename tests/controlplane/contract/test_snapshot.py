"""Tests of the snapshot as a document."""

import msgspec
import pytest

from controlplane.contract.pricing import Price
from controlplane.contract.snapshot import (
    Budget,
    Deployment,
    KeyEntry,
    Lease,
    LeaseKind,
    Route,
    Snapshot,
    TenantPolicy,
    Unpriced,
    Upstream,
    Window,
    decode_snapshot,
    encode_snapshot,
)

FULL = Snapshot(
    version=7,
    created_us=1_700_000_000_000_000,
    hash="abc",
    tenants=(
        TenantPolicy(
            "acme",
            models=("small",),
            tokens_per_minute=10,
            budgets=(Budget("b1", Window.MONTH, nanousd=5),),
            unpriced=Unpriced.REFUSE,
        ),
    ),
    keys=(KeyEntry("0" * 32, "key_1", "acme", expires_us=9),),
    upstreams=(Upstream("openai", "openai", "https://api.openai.com/v1", credential="env:OPENAI_API_KEY"),),
    routes=(Route("small", (Deployment("openai/m", "openai", "m", price=Price(1, 2)),), cache_ttl_s=0),),
    leases=(Lease("lease_1", LeaseKind.SHARE, "openai/m", expires_us=3, share=0.5),),
)


def test_a_snapshot_survives_the_wire() -> None:
    """What the control plane encodes is what the proxy decodes."""
    assert decode_snapshot(encode_snapshot(FULL)) == FULL


def test_what_a_newer_control_plane_adds_is_ignored() -> None:
    """Unknown fields, at the top and below, do not keep an older proxy from reading."""
    document = msgspec.json.decode(encode_snapshot(FULL))
    document["invented_later"] = {"x": 1}
    document["tenants"][0]["invented_later"] = True
    assert FULL == decode_snapshot(msgspec.json.encode(document))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"version":"7","created_us":1}',
        b'{"version":7}',
        b'{"version":7,"created_us":1,"leases":[{"id":"a","kind":"explode","deployment":"d","expires_us":1}]}',
        b'{"version":7,"created_us":1,"tenants":[{"id":"a","budgets":[{"id":"b","window":"week"}]}]}',
        b'{"version":7,"created_us":1',
    ],
)
def test_a_bad_document_is_refused(document: bytes) -> None:
    """A document with a missing field, a wrong type or a word outside a closed set cannot be decoded."""
    with pytest.raises(msgspec.DecodeError):
        decode_snapshot(document)

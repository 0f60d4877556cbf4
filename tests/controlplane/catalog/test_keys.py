"""Virtual keys are shown once, stored as a keyed hash, and revoked for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.catalog.keys import Keys
from controlplane.clock import ManualClock
from controlplane.contract.keys import KEY_PREFIX, hash_key
from controlplane.errors import BadRequest, NotFound
from controlplane.journal.journal import Journal

PEPPER = b"p" * 32


@pytest.fixture
def keys(journal: Journal, clock: ManualClock) -> Keys:
    """Keys of two tenants."""
    return Keys(
        journal, pepper=PEPPER, now_us=clock.now_us, tenants=lambda: {"acme", "beta"}, models=lambda: {"gpt-4o"}
    )


def test_a_key_is_shown_once_and_kept_as_its_hash(keys: Keys, journal: Journal, tmp_path: Path) -> None:
    """The secret is in the answer alone; the journal's file holds its keyed hash and nothing of the secret."""
    issued = keys.create("acme", name="ci", models=("gpt-4o",), actor="ana")
    secret = issued.secret.reveal()
    assert secret.startswith(KEY_PREFIX)
    assert "***" in repr(issued)
    assert hash_key(secret.encode(), PEPPER) == issued.record.hash
    assert [issued.record] == keys.list()
    journal.close()
    for file in tmp_path.iterdir():
        assert secret.removeprefix(KEY_PREFIX).encode() not in file.read_bytes()


def test_keys_are_listed_by_tenant_in_order_of_making(keys: Keys, clock: ManualClock) -> None:
    """A tenant's keys come oldest first, and other tenants' are left out."""
    first = keys.create("acme").record
    clock.move(1)
    keys.create("beta")
    clock.move(1)
    second = keys.create("acme", expires_us=clock.now_us() + 1).record
    assert [first, second] == keys.list(tenant="acme")
    assert 3 == len(keys.list())


def test_revoking_is_final_and_harmless_to_repeat(keys: Keys, journal: Journal, clock: ManualClock) -> None:
    """A revoked key says when; a second revocation appends nothing."""
    key = keys.create("acme").record
    clock.move(5)
    revoked = keys.revoke(key.id, actor="ana")
    assert clock.now_us() == revoked.revoked_us
    clock.move(5)
    before = journal.position()
    assert revoked == keys.revoke(key.id)
    assert before == journal.position()
    assert [revoked] == keys.list()


def test_who_did_it_is_in_the_journal(keys: Keys, journal: Journal) -> None:
    """Each event of a key names its actor and tenant."""
    key = keys.create("acme", actor="ana").record
    keys.revoke(key.id, actor="bo")
    assert [("key.created", "ana", "acme"), ("key.revoked", "bo", "acme")] == [
        (e.type, e.actor, e.tenant) for e in journal.load(f"key/{key.id}")
    ]


def test_nonsense_is_refused_with_what_to_do(keys: Keys, clock: ManualClock) -> None:
    """Unknown tenants, models and keys are named with the nearest there is; an expiry in the past is refused."""
    with pytest.raises(NotFound, match="did you mean `acme`"):
        keys.create("acne")
    with pytest.raises(NotFound, match="did you mean `gpt-4o`"):
        keys.create("acme", models=("gpt-4",))
    with pytest.raises(BadRequest, match="before it is made"):
        keys.create("acme", expires_us=clock.now_us())
    with pytest.raises(BadRequest, match="at most"):
        keys.create("acme", name="x" * 201)
    with pytest.raises(NotFound, match="keys list"):
        keys.revoke("key_nope")
    assert [] == keys.list()

"""Virtual keys are shown once, stored as a keyed hash, and revoked for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.catalog.compile import key_entries
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


def test_a_rotated_key_has_two_secrets_for_a_while(keys: Keys, clock: ManualClock) -> None:
    """After a rotation both secrets are good, after the grace only the new one; the first of three is worthless at once."""
    first = keys.create("acme")
    hour_us = 3_600_000_000
    second = keys.rotate(first.record.id, grace_us=hour_us, actor="ana")
    assert first.record.id == second.record.id
    assert first.secret.reveal() != second.secret.reveal()
    entries = list(key_entries(second.record))
    assert [
        (hash_key(second.secret.reveal().encode(), PEPPER), None),
        (first.record.hash, clock.now_us() + hour_us),
    ] == [(entry.hash, entry.expires_us) for entry in entries]
    third = keys.rotate(first.record.id, grace_us=hour_us)
    assert [third.record.hash, second.record.hash] == [entry.hash for entry in key_entries(third.record)]
    assert [third.record] == keys.list()


def test_the_grace_ends_with_the_key(keys: Keys, clock: ManualClock) -> None:
    """A former secret is never good for longer than its key."""
    key = keys.create("acme", expires_us=clock.now_us() + 10).record
    rotated = keys.rotate(key.id, grace_us=1_000_000).record
    assert [clock.now_us() + 10] * 2 == [entry.expires_us for entry in key_entries(rotated)]


def test_only_a_good_key_can_be_rotated(keys: Keys, clock: ManualClock) -> None:
    """A revoked, an expired and an unknown key, and a grace without sense, are refused with what to do."""
    revoked, expired = keys.create("acme").record, keys.create("acme", expires_us=clock.now_us() + 1).record
    good = keys.create("acme").record
    keys.revoke(revoked.id)
    clock.move(1)
    for key_id in (revoked.id, expired.id):
        with pytest.raises(BadRequest, match="make a new one"):
            keys.rotate(key_id, grace_us=0)
    with pytest.raises(NotFound):
        keys.rotate("key_nobody", grace_us=0)
    for grace_us in (-1, 31 * 86_400_000_000):
        with pytest.raises(BadRequest, match="0 to 30 days"):
            keys.rotate(good.id, grace_us=grace_us)


def test_addresses_are_kept_as_networks(keys: Keys) -> None:
    """A key may be limited to networks; what is none, or has bits behind its prefix, is refused."""
    key = keys.create("acme", addresses=("10.0.0.0/8", "192.0.2.1", "192.0.2.1/32")).record
    assert ("10.0.0.0/8", "192.0.2.1/32") == key.addresses
    assert [key.addresses] == [entry.addresses for entry in key_entries(key)]
    for wrong in (("10.0.0.1/8",), ("somewhere",), ()):
        with pytest.raises(BadRequest, match="address"):
            keys.create("acme", addresses=wrong)

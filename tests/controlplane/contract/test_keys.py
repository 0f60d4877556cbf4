"""Tests of virtual keys."""

import re

from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.keys import KEY_PREFIX, PEPPER_BYTES, hash_key, new_key

PEPPER = st.binary(min_size=PEPPER_BYTES, max_size=PEPPER_BYTES)


def test_a_new_key_has_the_prefix_and_enough_chance() -> None:
    """Keys start with sk-heph-, carry 192 random bits in URL-safe characters, and never repeat."""
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(re.escape(KEY_PREFIX) + r"[A-Za-z0-9_-]{32}", key) for key in keys)


@given(st.binary(), PEPPER, PEPPER)
def test_the_hash_depends_on_key_and_pepper(key: bytes, pepper: bytes, other: bytes) -> None:
    """The same key under the same pepper hashes to the same 32 hex digits, under another pepper to others."""
    digest = hash_key(key, pepper)
    assert digest == hash_key(key, pepper)
    assert re.fullmatch("[0-9a-f]{32}", digest)
    assert (pepper == other) == (digest == hash_key(key, other))
    assert digest != hash_key(key + b"x", pepper)

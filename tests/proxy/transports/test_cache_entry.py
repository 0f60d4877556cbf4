"""Tests of stored answers as bytes."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controlplane.contract.pricing import Tokens
from proxy.transports.cache_entry import BLOCK_BYTES, CacheEntry, decode_entry, encode_entry, joined
from proxy.transports.cache_memory import MemoryTier

ENTRY = CacheEntry(
    tenant="acme",
    created_us=5,
    ttl_s=60,
    content_type="text/event-stream",
    blocks=(b"data: 1\n\n", b"data: [DONE]\n\n"),
    stream=True,
    deployment="sim/m",
    model="m",
    finish_reason="stop",
    tokens=Tokens(input=3, output=4),
    nanousd=11,
)


def test_an_entry_survives_the_disk() -> None:
    """What is read is what was written."""
    assert ENTRY == decode_entry(encode_entry(ENTRY))


def test_any_damage_is_a_miss() -> None:
    """A flipped bit or a cut anywhere gives nothing, never another answer."""
    data = encode_entry(ENTRY)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert decode_entry(bytes(damaged)) is None
        assert decode_entry(data[:at]) is None


def test_labels_weigh_what_they_take() -> None:
    """A client may give its calls dozens of them, each longer than the answer: they are held against the bound of memory as well."""
    tags = {f"{number:02}" * 32: "\U0001f600" * 256 for number in range(32)}
    labelled = msgspec.structs.replace(ENTRY, tags=tags)
    assert 32 * 256 * 4 < labelled.size_bytes - ENTRY.size_bytes < 75_000
    memory = MemoryTier(bytes_max=20 * labelled.size_bytes)
    for number in range(30):
        memory.put(b"%d" % number, labelled)
    assert (20, 20 * labelled.size_bytes, 10) == (len(memory), memory.bytes_used, memory.evicted_total)


@given(st.binary(max_size=300))
def test_garbage_is_a_miss(data: bytes) -> None:
    """Any bytes can be read."""
    assert decode_entry(data) is None


@given(st.lists(st.integers(0, BLOCK_BYTES + 10), max_size=12))
def test_joining_keeps_the_bytes_and_makes_few_blocks(sizes: list[int]) -> None:
    """The same bytes come in blocks of at least the given size, the last aside, cut only between chunks."""
    chunks = [bytes([index]) * size for index, size in enumerate(sizes)]
    blocks = joined(chunks)
    assert b"".join(chunks) == b"".join(blocks)
    assert all(len(block) >= BLOCK_BYTES for block in blocks[:-1])
    assert all(len(block) < 2 * BLOCK_BYTES + 10 for block in blocks)


def test_times_and_sizes() -> None:
    """An entry knows when it ends, and counts all its bytes."""
    assert (60_000_005, True) == (ENTRY.expires_us, ENTRY.size_bytes > sum(map(len, ENTRY.blocks)))


def test_an_entry_weighs_the_same_when_it_goes_as_when_it_came() -> None:
    """A text that is written once takes more memory from then on: what is taken off the sum must be what was added to it."""
    labelled = msgspec.structs.replace(ENTRY, tags={"team": "\u00e4" * 300})
    memory = MemoryTier(bytes_max=10**6)
    memory.put(b"key", labelled)
    encode_entry(labelled)
    memory.remove(b"key")
    assert 0 == memory.bytes_used

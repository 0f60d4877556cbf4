"""Tests of the memory tier: bounded in bytes whatever happens."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.transports.cache_entry import OVERHEAD_BYTES, CacheEntry
from proxy.transports.cache_memory import MemoryTier

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
BYTES_MAX = 4 * OVERHEAD_BYTES


def _entry(size: int, tenant: str = "acme") -> CacheEntry:
    return CacheEntry(tenant, 0, 60, "application/json", body=b"x" * size)


class MemoryMachine(RuleBasedStateMachine):
    """The tier beside a list in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = MemoryTier(bytes_max=BYTES_MAX)
        self.model: list[tuple[bytes, CacheEntry]] = []  # least recently used first

    def _drop(self, key: bytes) -> None:
        self.model = [pair for pair in self.model if pair[0] != key]

    @rule(key=KEYS, size=st.integers(0, BYTES_MAX))
    def put(self, key: bytes, size: int) -> None:
        """An answer comes; exactly the least recently used ones go for it."""
        entry = _entry(size)
        self._drop(key)
        self.model.append((key, entry))
        expected = []
        while sum(kept.size_bytes for _, kept in self.model) > BYTES_MAX:
            expected.append(self.model.pop(0))
        assert expected == self.tier.put(key, entry)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        """A look-up finds what is there and makes it the most recently used."""
        expected = dict(self.model).get(key)
        assert expected is self.tier.get(key)
        if expected is not None:
            self._drop(key)
            self.model.append((key, expected))

    @rule(key=KEYS)
    def remove(self, key: bytes) -> None:
        """What is removed is gone."""
        self._drop(key)
        self.tier.remove(key)

    @invariant()
    def it_is_bounded_and_counted(self) -> None:
        """Bytes, number and order are those of the model, within the limit."""
        assert sum(entry.size_bytes for _, entry in self.model) == self.tier.bytes_used <= BYTES_MAX
        assert self.model[::-1] == list(self.tier.newest_first())
        assert len(self.model) == len(self.tier)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_one_tenant_cannot_drop_what_all_others_have() -> None:
    """Who has more than an equal part makes room out of its own, whatever it stores; a quiet tenant keeps its answers."""
    size_bytes = _entry(0).size_bytes
    tier = MemoryTier(bytes_max=10 * size_bytes)
    for number in range(3):
        tier.put(b"quiet%d" % number, _entry(0, "quiet"))
    for number in range(100):
        tier.put(b"loud%d" % number, _entry(0, "loud"))
    assert [True] * 3 == [tier.get(b"quiet%d" % number) is not None for number in range(3)]
    assert (10, 10 * size_bytes) == (len(tier), tier.bytes_used)
    for number in range(100):
        tier.put(b"more%d" % number, _entry(0, "quiet"))
    assert 5 == sum(tier.get(b"loud%d" % number) is not None for number in range(100))

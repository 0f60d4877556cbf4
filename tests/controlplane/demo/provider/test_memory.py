"""The memory of answers stays within its bytes."""

from __future__ import annotations

from controlplane.demo.provider.answer import NOTHING, Answer, filled
from controlplane.demo.provider.memory import Memory


def answer(size: int) -> Answer:
    """An answer of about so many bytes."""
    return Answer("m", NOTHING, None, bytes(max(0, size - 512)))


def test_unused_answers_are_forgotten_first() -> None:
    """Beyond its bytes the memory forgets what was unused for the longest time, and counts it."""
    memory: Memory[Answer] = Memory(5_000)
    for name in (b"a", b"b", b"c", b"d"):
        memory.keep((name, b""), answer(1_000))
    assert memory.get((b"a", b"")) is not None
    memory.keep((b"e", b""), answer(1_200))
    assert (4, 1) == (len(memory), memory.evicted)
    assert memory.get((b"b", b"")) is None
    assert memory.kept_bytes <= 5_000


def test_large_answers_are_not_kept() -> None:
    """What would push out more than a quarter is not kept at all."""
    memory: Memory[Answer] = Memory(4_000)
    memory.keep((b"a", b""), answer(1_500))
    assert (0, 0) == (len(memory), memory.kept_bytes)


def test_marks_are_filled_in() -> None:
    """The id, the seconds and the moment of an answer take the place of their marks."""
    assert b"id-7 at 1800000000, 2027-01-15T08:00:00Z" == filled(b"id-\x00 at \x01, \x02", b"7", 1_800_000_000)

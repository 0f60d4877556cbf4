"""Numbers of snapshots only grow, whoever gives them out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.catalog.versions import CatalogPublished, Versions
from controlplane.contract.snapshot import Snapshot
from controlplane.journal.events import Codec
from controlplane.journal.journal import Journal


def content(name: str) -> Snapshot:
    """A compiled snapshot with some content."""
    return Snapshot(version=0, created_us=0, hash=name)


def test_numbers_grow_by_one_with_each_content(journal: Journal) -> None:
    """New content gets the next number, content that is published keeps its own, and going back is a new publication."""
    versions = Versions(journal)
    numbers = [versions.number(content(name), now_us=7).version for name in "aabba"]
    assert [1, 1, 2, 2, 3] == numbers
    assert 7 == versions.number(content("a"), now_us=7).created_us


def test_a_restart_goes_on_where_it_was(journal: Journal) -> None:
    """A new process keeps the number of what was published last, and never gives out a number twice."""
    Versions(journal).number(content("a"), now_us=1)
    assert 1 == Versions(journal).number(content("a"), now_us=2).version
    assert 2 == Versions(journal).number(content("b"), now_us=3).version


def test_a_long_history_is_read_from_a_checkpoint(journal: Journal) -> None:
    """After many publications a restart finds the last one, and the checkpoint is near it."""
    versions = Versions(journal)
    for number in range(250):
        versions.number(content(str(number)), now_us=number)
    assert 200 == journal.checkpoint("catalog")
    assert 251 == Versions(journal).number(content("new"), now_us=1).version


def test_numbers_can_be_made_to_jump(journal: Journal) -> None:
    """A proxy's higher number is passed, with the same content too, and counting goes on from there."""
    versions = Versions(journal)
    versions.number(content("a"), now_us=1)
    assert 501 == versions.number(content("a"), now_us=1, above=500).version
    assert 502 == versions.number(content("b"), now_us=1).version


def test_processes_never_share_a_number(journal: Journal) -> None:
    """Eight publishers at once, each with content of its own, get eight numbers in a row."""
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: Versions(journal).number(content(f"c{n}"), now_us=n).version, range(8)))
    assert list(range(1, 9)) == sorted(numbers)


def test_another_process_with_the_same_content_takes_its_number(journal: Journal) -> None:
    """Two replicas that compile the same say the same number, and it is published once."""
    one, other = Versions(journal), Versions(journal)
    assert 1 == one.number(content("a"), now_us=1).version
    assert 1 == other.number(content("a"), now_us=2).version
    assert 2 == other.number(content("b"), now_us=3).version
    assert 2 == one.number(content("b"), now_us=4).version
    assert [1, 2] == [
        Codec[CatalogPublished](CatalogPublished).decode(event).version for event in journal.load("catalog")
    ]


def test_what_changed_is_kept_within_bounds(journal: Journal) -> None:
    """The event says what changed, at most a hundred lines of it."""
    Versions(journal).number(
        content("a"), now_us=1, changed=tuple(f"tenants: added t{n}" for n in range(500)), actor="reload"
    )
    (event,) = journal.load("catalog")
    assert (100, "reload") == (len(Codec[CatalogPublished](CatalogPublished).decode(event).changed), event.actor)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.sampled_from([0, 0, 0, 40])), max_size=15))
def test_no_interleaving_lets_a_number_fall(tmp_path_factory, steps: list[tuple[int, str, int]]) -> None:  # type: ignore[no-untyped-def]
    """However three processes interleave, a number stands for one content, and new content gets a greater number than all before."""
    journal = Journal.open(f"sqlite:///{tmp_path_factory.mktemp('v')}/journal.db")
    processes, seen = [Versions(journal) for _ in range(3)], dict[int, str]()
    for process, name, above in steps:
        version = processes[process].number(content(name), now_us=1, above=above).version
        assert above < version
        assert name == seen.setdefault(version, name)
        assert version == max(seen)
    journal.close()

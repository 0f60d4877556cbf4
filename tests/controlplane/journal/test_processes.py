"""Several real processes on one journal, and processes that die in the middle of an append."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from controlplane.journal.journal import Journal

ROOT = Path(__file__).parents[3]


def start(url: str, name: str, rounds: int) -> subprocess.Popen[str]:
    """A writer process."""
    command = [sys.executable, "-m", "tests.controlplane.journal.writer_process", url, name, str(rounds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_append_at_once_lose_and_tear_nothing(url: str) -> None:
    """Three processes open a journal that does not exist yet and append to it together: all is there, in order."""
    writers = [start(url, name, 25) for name in "abc"]
    outputs = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [["open", *map(str, range(25))]] * 3 == outputs
    journal = Journal.open(url)
    for name in "abc":
        assert ["account.opened", "account.paid"] * 25 == [event.type for event in journal.load(f"own-{name}")]
    shared = journal.load("shared")
    assert list(range(1, 76)) == [event.version for event in shared]
    assert 3 * 25 == len({(event.actor, event.data) for event in shared})
    assert 3 * 75 == journal.verify_chain().events
    assert 75 == len(journal.due_timers(10**9, 1000))
    assert 75 == len(journal.due_outbox(10**18, 1000))
    journal.close()


def test_a_killed_writer_leaves_no_torn_append(url: str) -> None:
    """Writers are killed (SIGKILL) at random moments: acknowledged appends are there, half ones never are."""
    chance = random.Random(7)
    acknowledged = 0
    for life in range(8):
        writer = start(url, f"life{life}", 10_000)
        assert writer.stdout is not None
        stop_after = chance.randrange(1, 12)
        for line in writer.stdout:
            if line.strip() != "open" and int(line) >= stop_after:
                break
        writer.kill()
        tail = [line for line in writer.stdout.read().split() if line.isdigit()]
        writer.wait()
        done = stop_after + 1 + len(tail)
        acknowledged += done
        journal = Journal.open(url)
        own = journal.load(f"own-life{life}")
        assert done * 2 <= len(own)
        assert 0 == len(own) % 2
        events = journal.verify_chain().events
        assert acknowledged * 3 <= events
        pairs = len(journal.due_outbox(10**18, 100_000))
        assert (pairs, pairs) == (
            len(journal.due_timers(10**9, 100_000)),
            sum(len(journal.load(stream)) // 2 for stream in journal.streams("own-")),
        )
        journal.close()

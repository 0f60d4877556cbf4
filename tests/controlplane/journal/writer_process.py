"""A process that appends as fast as it can; tests run several at once, and kill some."""

from __future__ import annotations

import sys

from controlplane.journal.events import Codec, NewEvent, NewOutbox, NewTimer
from controlplane.journal.fold import Changes, execute
from controlplane.journal.journal import Journal
from tests.controlplane.journal.conftest import Opened, Paid

CODEC: Codec[Opened | Paid] = Codec(Opened | Paid)


def count(state: int, _event: Opened | Paid) -> int:
    """How many events there were."""
    return state + 1


def say(line: str) -> None:
    """Tell the test how far this process is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(url: str, name: str, rounds: int) -> None:
    """Append pairs of events to a stream of its own and single ones to a shared stream, each acknowledged on a line."""
    journal = Journal.open(url)
    say("open")
    for number in range(rounds):
        extras = Changes(
            [NewEvent(Opened(name)), NewEvent(Paid(number))],
            timers=[NewTimer(f"{name}-{number}", number, "k")],
            outbox=[NewOutbox(f"{name}-{number}", "ops", b"x")],
        )

        def decide(_count: int, changes: Changes = extras) -> Changes:
            return changes

        execute(journal, f"own-{name}", decide, initial=0, evolve=count, codec=CODEC)
        journal.append("shared", None, [NewEvent(Paid(number), actor=name)])
        say(str(number))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

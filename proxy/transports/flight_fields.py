"""What stands in a flight's hash in Redis: seats, the bill, and what was booked of it; each sealed, so that nobody else's words count.

A field's seal is made under the installation's secret, for the flight's hash (which is named for its tag and token) and the field's name (which
is the worker's inbox). So one that somebody made up, changed, or took from another flight or worker is refused. A seat says until when it
counts, and counts only for a worker that has told the leader, in a sealed message too, that it follows, and not that it has left. So one that
somebody puts back after its worker has gone is worth nothing; and one put back while its worker follows is paid by that worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from controlplane.contract.records import AttemptRecord
from proxy.savings import split_attempt
from proxy.shared import Answer
from proxy.transports.flight_words import Bill, Seals

BILL, PAID = b"!bill", b"$"  # a field that is no inbox's, and what stands before an inbox where it has booked
FIELDS_MAX = 1_024  # of one hash; one with more was not made by us, and is not read
TAKEN = b"!taken"  # who counts: any word, unsealed; who writes it hides what was orphaned, and pays for nothing less

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Bill).decode


class Fields(NamedTuple):
    """What was read of a hash."""

    texts: dict[bytes, bytes]  # by name, without their seals
    refused: int  # fields that no proxy of ours has written there


def sealed_field(seals: Seals, key: bytes, name: bytes, text: bytes) -> bytes:
    """A field's value."""
    return seals.seal(_place(key, name), text)


def opened_fields(seals: Seals, key: bytes, answer: Answer) -> Fields:
    """A hash as Redis tells it, names and values in turn."""
    items = [item for item in answer if isinstance(item, bytes)] if isinstance(answer, list) else []
    texts: dict[bytes, bytes] = {}
    refused = 0
    for name, value in zip(items[::2], items[1::2], strict=False):
        text = seals.unseal(_place(key, name), value)
        if text is not None:
            texts[name] = bytes(text)
        else:
            refused += name != TAKEN
    return Fields(texts, refused)


def opened_number(seals: Seals, key: bytes, name: bytes, value: bytes) -> int:
    """A field that is a number; 0 if no proxy of ours has written it."""
    text = seals.unseal(_place(key, name), value)
    return 0 if text is None else int(bytes(text))


def seat_text(count: int, until_ms: int) -> bytes:
    """So many calls of a worker follow, and say so again before this time."""
    return b"%d %d" % (count, until_ms)


def offer_text(
    attempts: Sequence[AttemptRecord], *, leader: bytes, count: int, followers: Iterable[bytes], now_ms: int
) -> bytes:
    """The bill as its leader's worker closes it: with its own calls, and who may have a seat."""
    return _encode(Bill(tuple(attempts), ((leader, count), *((inbox, 0) for inbox in sorted(followers))), now_ms))


def bill_of(texts: dict[bytes, bytes]) -> Bill | None:
    """The bill, with all who pay; None if there is none."""
    try:
        offered = _decode(texts[BILL])
    except (KeyError, msgspec.DecodeError):
        return None
    leader, *followers = offered.shares
    seats = ((inbox, _calls(texts.get(inbox, b""), offered.closed_ms)) for inbox, _ in followers)
    return Bill(offered.attempts, (leader, *(seat for seat in seats if seat[1])), offered.closed_ms)


def parts_of(bill: Bill) -> dict[bytes, list[AttemptRecord]]:
    """Each worker's part: all tries, whose tokens and costs sum to the bill's."""
    counts = [count for _, count in bill.shares]
    split = [split_attempt(attempt, counts) for attempt in bill.attempts]
    return {inbox: [parts[at] for parts in split] for at, (inbox, _) in enumerate(bill.shares)}


def _calls(seat: bytes, at_ms: int) -> int:
    count, _, until_ms = seat.partition(b" ")
    return int(count) if until_ms and int(until_ms) >= at_ms else 0


def _place(key: bytes, name: bytes) -> bytes:
    return b"%b\x00%b\x00" % (key, name)

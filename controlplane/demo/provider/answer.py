"""An answer as bytes, encoded once and sent as often as the same request comes back, in whatever protocol.

Only the id and the time differ between two answers to the same request. They stand in the bytes as marks, which no JSON can contain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

ID = b"\x00"  # the number of the answer, without the protocol's own beginning of an id
SECONDS = b"\x01"  # the time in seconds since 1970
MOMENT = b"\x02"  # the time as RFC 3339 has it
JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. cached, written_5m and written_1h are part of prompt, reasoning is part of completion."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    written_5m: int = 0  # into the provider's prompt cache, for five minutes
    written_1h: int = 0

    @property
    def fresh(self) -> int:
        """Prompt tokens that were neither read from a prompt cache nor written into one."""
        return self.prompt - self.cached - self.written_5m - self.written_1h


NOTHING = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded answer.

    events: of a stream; steps[i] is how many of them are out once token i is there, and produced[i] how many completion tokens
    that makes. start: what stands before each event. end: what follows the last one.
    """

    model: str  # "": not a call of a model, so nothing is billed
    usage: Usage
    reported: Usage | None  # what the usage fields say; None: nothing
    body: bytes = b""  # of an answer that is no stream
    content_type: bytes = JSON
    events: tuple[bytes, ...] = ()
    steps: tuple[int, ...] = ()
    produced: tuple[int, ...] = ()
    start: bytes = b""
    end: bytes = b""
    marked: bool = False  # the body, or the events themselves, contain marks
    hidden: int = 0  # tokens that are produced before the first event
    waits: bool = True  # False: it is there before the model is done

    @property
    def streamed(self) -> bool:
        """Whether it is a stream of events."""
        return bool(self.events)

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.body) + sum(map(len, self.events)) + 64 * (len(self.events) + 8)


def plain(body: bytes, *, content_type: bytes = JSON) -> Answer:
    """An answer that costs nothing: a list, a state, an acknowledgement."""
    return Answer("", NOTHING, NOTHING, body, content_type)


def filled(data: bytes, answer_id: bytes, now_s: int) -> bytes:
    """Bytes with the marks of an answer filled in."""
    data = data.replace(ID, answer_id).replace(SECONDS, b"%d" % now_s)
    return data.replace(MOMENT, moment(now_s)) if MOMENT in data else data


def moment(now_s: float) -> bytes:
    """A time as RFC 3339 has it, in whole seconds."""
    return datetime.fromtimestamp(int(now_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()

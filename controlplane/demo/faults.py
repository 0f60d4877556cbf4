"""Faults that break a simulated upstream on purpose: scripted on a time line, or switched while it runs.

A fault is a value; `Faults` owns the ones that are set, decides which of them meets a call, and knows when the listening
socket has to be closed. It reads the time from the clock it is given and never waits.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

FAULTS_MAX = 1_000  # set at the same time; a script that needs more is a mistake


class FaultError(ValueError):
    """A fault that cannot be set; the message says what to change."""


class FaultKind(StrEnum):
    """The ways in which an upstream can fail."""

    OUTAGE_REFUSED = "outage_refused"  # the listening socket is closed, open connections are reset
    OUTAGE_500 = "outage_500"
    OUTAGE_503 = "outage_503"
    RATE_LIMITED = "rate_limited"
    SLOW_FIRST_TOKEN = "slow_first_token"  # noqa: S105 - a token of text
    STALLED_STREAM = "stalled_stream"  # 200, some chunks, then silence
    TRUNCATED_STREAM = "truncated_stream"  # 200, some chunks, then the connection is closed
    MALFORMED_JSON = "malformed_json"
    WRONG_USAGE = "wrong_usage"
    REVOKED_KEY = "revoked_key"
    QUOTA_EXHAUSTED = "quota_exhausted"
    HANG = "hang"  # the request is read and never answered
    RESET = "reset"  # the request is read, then its connection is reset
    OVERLOADED = "overloaded"  # 529 at Anthropic, 503 elsewhere
    STATUS = "status"  # any status, with the protocol's error body
    CONTEXT_EXCEEDED = "context_exceeded"  # 400: the prompt is longer than the model's context
    CONTENT_POLICY = "content_policy"  # 400: the prompt is against the provider's policy
    CONTENT_FILTERED = "content_filtered"  # 200: the answer is stopped by the provider's filter
    STREAM_ERROR = (
        "stream_error"  # 200, some chunks, then the protocol's error event; 500 for an answer that is no stream
    )


class UsageLie(StrEnum):
    """How a `wrong_usage` fault misreports the tokens."""

    INFLATED = "inflated"  # ten times the truth
    ZERO = "zero"
    NEGATIVE = "negative"
    MISSING = "missing"  # no usage at all


Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class FaultMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The calls that a fault meets; a field that is not given matches every call.

    model, path: shell patterns such as `gpt-4o*`. key: the provider key itself. share: this part of the matching calls, drawn
    from the seed, so that the same sequence of calls meets the same faults.
    """

    model: str | None = None
    key: str | None = None
    path: str | None = None
    share: Share = 1.0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault: what breaks, when, for whom.

    at_s counts from the start of the provider for a scripted fault and from now for one that is set while it runs.
    """

    kind: FaultKind
    id: str = ""  # given by the provider when empty
    upstream: str = ""  # the name or the port of a simulated upstream; empty: all of them
    at_s: Seconds = 0.0
    for_s: Seconds | None = None  # None: until it is cleared
    match: FaultMatch = FaultMatch()
    retry_after_s: Seconds = 1.0  # rate_limited, outage_503, overloaded; told to the client
    delay_s: Seconds = 5.0  # slow_first_token
    after_chunks: Annotated[int, msgspec.Meta(ge=0)] = (
        3  # stalled_stream, truncated_stream, malformed_json, stream_error
    )
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500  # status
    usage: UsageLie = UsageLie.INFLATED  # wrong_usage


class FaultScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document of a faults file."""

    faults: tuple[Fault, ...] = ()


class FaultStatus(msgspec.Struct, frozen=True):
    """A set fault and where it stands on the time line."""

    fault: Fault
    active: bool
    starts_in_s: float  # 0 when it has started
    ends_in_s: float | None  # None: until it is cleared
    hits: int  # calls it has met


def load_fault_script(path: Path) -> tuple[Fault, ...]:
    """The faults of a YAML file. Raises FaultError that names the file and the place."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FaultError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise FaultError(f"{path}: not YAML: {error}") from error
    try:
        script = msgspec.convert({} if document is None else document, FaultScript)
        for fault in script.faults:
            check_fault(fault)
    except (msgspec.ValidationError, FaultError) as error:
        raise FaultError(f"{path}: {error}") from error
    return script.faults


def check_fault(fault: Fault) -> Fault:
    """The fault itself when it makes sense. Raises FaultError when its fields contradict each other."""
    if fault.kind is FaultKind.OUTAGE_REFUSED and fault.match != FaultMatch():
        raise FaultError(
            "outage_refused closes the socket for every call: leave out `match`, or use outage_503 for a part of the calls"
        )
    return fault


class Faults:
    """The faults that are set. Not safe to use from two threads."""

    def __init__(self, script: Sequence[Fault], *, seed: int, now: Callable[[], float]) -> None:
        self._seed = seed
        self._now = now
        self._count = 0
        self._entries: list[_Entry] = []
        for fault in script:
            self.add(fault)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, fault: Fault) -> Fault:
        """Sets a fault and returns it with its id; one with the same id is replaced. Raises FaultError."""
        check_fault(fault)
        self._count += 1
        if not fault.id:
            fault = msgspec.structs.replace(fault, id=f"fault-{self._count}")
        kept = [entry for entry in self._entries if entry.fault.id != fault.id]
        if len(kept) >= FAULTS_MAX:
            raise FaultError(f"{FAULTS_MAX} faults are set already; clear some first")
        self._entries = [*kept, _Entry(fault, now=self._now(), seed=self._seed)]
        return fault

    def clear(self, fault_id: str | None = None) -> int:
        """Takes one fault away, or all of them, and says how many."""
        kept = [] if fault_id is None else [entry for entry in self._entries if entry.fault.id != fault_id]
        cleared = len(self._entries) - len(kept)
        self._entries = kept
        return cleared

    def status(self) -> list[FaultStatus]:
        """Every fault that is set, in the order in which they were."""
        now = self._now()
        return [entry.status(now) for entry in self._entries]

    def pick(self, *, upstream: str, port: int, path: str, key: str, model: Callable[[], str]) -> Fault | None:
        """The first active fault that meets this call, counted as a hit; model is asked for only if a fault names one."""
        now = self._now()
        for entry in self._entries:
            if entry.active(now) and entry.addresses(upstream, port) and entry.meets(path, key, model):
                entry.hits += 1
                return entry.fault
        return None

    def refused(self, *, upstream: str, port: int) -> bool:
        """Whether connections to this upstream are to be refused now."""
        now = self._now()
        return any(
            entry.fault.kind is FaultKind.OUTAGE_REFUSED and entry.active(now) and entry.addresses(upstream, port)
            for entry in self._entries
        )


class _Entry:
    """A fault that is set, with its place in time and its own random numbers."""

    __slots__ = ("_ends", "_random", "_starts", "fault", "hits")

    def __init__(self, fault: Fault, *, now: float, seed: int) -> None:
        self.fault = fault
        self.hits = 0
        self._starts = now + fault.at_s
        self._ends = None if fault.for_s is None else self._starts + fault.for_s
        self._random = random.Random(f"{seed}/{fault.id}")

    def active(self, now: float) -> bool:
        return self._starts <= now and (self._ends is None or now < self._ends)

    def addresses(self, upstream: str, port: int) -> bool:
        return self.fault.upstream in ("", upstream, str(port))

    def meets(self, path: str, key: str, model: Callable[[], str]) -> bool:
        if self.fault.kind is FaultKind.OUTAGE_REFUSED:
            return False
        match = self.fault.match
        if match.path is not None and not fnmatch.fnmatchcase(path, match.path):
            return False
        if match.key is not None and match.key != key:
            return False
        if match.model is not None and not fnmatch.fnmatchcase(model(), match.model):
            return False
        return match.share >= 1 or self._random.random() < match.share

    def status(self, now: float) -> FaultStatus:
        return FaultStatus(
            fault=self.fault,
            active=self.active(now),
            starts_in_s=max(0.0, self._starts - now),
            ends_in_s=None if self._ends is None else max(0.0, self._ends - now),
            hits=self.hits,
        )

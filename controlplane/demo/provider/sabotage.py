"""What a fault does to one answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from controlplane.demo.faults import Fault, FaultKind, UsageLie
from controlplane.demo.provider import problems
from controlplane.demo.provider.composition import Usage
from controlplane.demo.provider.encoding import Answer
from controlplane.demo.provider.exchange import Cut
from controlplane.demo.provider.problems import Problem

INFLATION = 10  # of a usage that is inflated
_KEPT = 2 / 3  # of an event or a body that malformed_json breaks
_COUNT = re.compile(rb'("(?:prompt|completion|total)_tokens": ?)(\d+)')
_USAGE_FIELD = re.compile(rb',\s*"usage": ?\{(?:[^{}]|\{[^{}]*\})*\}')
_OPENING_USAGE = re.compile(rb'"choices":\[\],"usage":')


def refusal(fault: Fault, *, model: Callable[[], str], key: str, organization: str, limit: int) -> Problem | None:
    """The error that a fault answers instead of the truth; None for the faults that let an answer begin."""
    match fault.kind:
        case FaultKind.OUTAGE_500:
            return problems.server_error()
        case FaultKind.OUTAGE_503:
            return problems.overloaded(fault.retry_after_s)
        case FaultKind.RATE_LIMITED:
            return problems.rate_limited(
                model(), organization, kind="requests", limit=limit, retry_after_s=fault.retry_after_s
            )
        case FaultKind.REVOKED_KEY:
            return problems.bad_key(key)
        case FaultKind.QUOTA_EXHAUSTED:
            return problems.quota_exhausted()
        case _:
            return None


def cut_of(fault: Fault) -> Cut | None:
    """Where a fault cuts a stream off, if it does."""
    if fault.kind is FaultKind.STALLED_STREAM:
        return Cut(fault.after_chunks, close=False)
    if fault.kind is FaultKind.TRUNCATED_STREAM:
        return Cut(fault.after_chunks, close=True)
    return None


def spoiled(answer: Answer, fault: Fault) -> Answer:
    """The answer with its JSON broken or its usage false; the one that is kept in memory stays as it is."""
    if fault.kind is FaultKind.MALFORMED_JSON:
        return _malformed(answer, fault.after_chunks)
    if fault.kind is FaultKind.WRONG_USAGE:
        return _misreported(answer, fault.usage)
    return answer


def _malformed(answer: Answer, after_events: int) -> Answer:
    """One event, or the whole body, loses its end."""
    if not answer.streamed:
        return replace(answer, tail=answer.tail[: int(len(answer.tail) * _KEPT)])
    index = min(after_events, len(answer.events) - 1)
    event = answer.events[index]
    broken = event[: int(len(event) * _KEPT)].rstrip() + b"\n\n"
    return replace(answer, events=(*answer.events[:index], broken, *answer.events[index + 1 :]))


def _misreported(answer: Answer, lie: UsageLie) -> Answer:
    """The usage says something else than what is billed."""
    told = _told(answer.usage, lie)
    if lie is UsageLie.MISSING:
        events = tuple(event for event in answer.events if not _OPENING_USAGE.search(event))
        steps = tuple(min(step, len(events)) for step in answer.steps)
        return replace(answer, reported=None, tail=_USAGE_FIELD.sub(b"", answer.tail), events=events, steps=steps)

    def lied(found: re.Match[bytes]) -> bytes:
        return found[1] + b"%d" % _lie(int(found[2]), lie)

    events = tuple(_COUNT.sub(lied, event) if _OPENING_USAGE.search(event) else event for event in answer.events)
    start = answer.tail.rfind(b'"usage":')
    tail = answer.tail[:start] + _COUNT.sub(lied, answer.tail[start:]) if start >= 0 else answer.tail
    return replace(answer, reported=told, tail=tail, events=events)


def _told(usage: Usage, lie: UsageLie) -> Usage:
    return replace(usage, prompt=_lie(usage.prompt, lie), completion=_lie(usage.completion, lie))


def _lie(count: int, lie: UsageLie) -> int:
    return {UsageLie.INFLATED: count * INFLATION, UsageLie.NEGATIVE: -count}.get(lie, 0)

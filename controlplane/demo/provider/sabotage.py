"""What a fault does to one answer, whatever its protocol."""

from __future__ import annotations

import re
from dataclasses import replace

from controlplane.demo.faults import Fault, FaultKind, UsageLie
from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import Answer
from controlplane.demo.provider.exchange import Cut
from controlplane.demo.provider.foreign import event_stream
from controlplane.demo.provider.problems import Problem

INFLATION = 10  # of a usage that is inflated
CONTEXT_SHOWN_TOKENS = 128_000  # what the error of context_exceeded says the model has
_KEPT = 2 / 3  # of an event or a body that malformed_json breaks
_COUNTS = (
    b"prompt_tokens|completion_tokens|total_tokens"
    b"|input_tokens|output_tokens|cache_(?:creation|read)_input_tokens|ephemeral_(?:5m|1h)_input_tokens"
    b"|(?:prompt|candidates|total)TokenCount|(?:prompt_)?eval_count|(?:input|output|total)Tokens"
)
_COUNT = re.compile(rb'("(?:' + _COUNTS + rb')": ?)(\d+)')
_USAGE = re.compile(rb'"usage": ?\{|"usageMetadata": ?\{|"prompt_eval_count": ?\d')
_USAGE_FIELD = re.compile(
    rb',\s*"(?:usage|usageMetadata)": ?\{(?:[^{}]|\{[^{}]*\})*\}|,\s*"(?:prompt_)?eval_count": ?\d+'
)
_USAGE_ALONE = re.compile(rb'"choices":\[\],"usage":')


def refusal(fault: Fault, *, model: str, key: str, organization: str, limit: int) -> Problem | None:
    """The error that a fault answers instead of the truth, in OpenAI's words; None for the faults that let an answer begin."""
    match fault.kind:
        case FaultKind.OUTAGE_500:
            return problems.server_error()
        case FaultKind.OUTAGE_503 | FaultKind.OVERLOADED:
            return problems.overloaded(fault.retry_after_s)
        case FaultKind.RATE_LIMITED:
            return problems.rate_limited(
                model, organization, kind="requests", limit=limit, retry_after_s=fault.retry_after_s
            )
        case FaultKind.REVOKED_KEY:
            return problems.bad_key(key)
        case FaultKind.QUOTA_EXHAUSTED:
            return problems.quota_exhausted()
        case FaultKind.CONTEXT_EXCEEDED:
            return problems.context_exceeded(CONTEXT_SHOWN_TOKENS, CONTEXT_SHOWN_TOKENS + 1)
        case FaultKind.CONTENT_POLICY:
            return problems.against_policy()
        case FaultKind.STATUS:
            return problems.of_status(fault.status)
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
        return replace(answer, body=answer.body[: int(len(answer.body) * _KEPT)])
    index = min(after_events, len(answer.events) - 1)
    event = answer.events[index]
    text = event.rstrip(b"\r\n")
    broken = text[: int(len(text) * _KEPT)].rstrip() + event[len(text) :]
    return replace(answer, events=(*answer.events[:index], broken, *answer.events[index + 1 :]))


def _misreported(answer: Answer, lie: UsageLie) -> Answer:
    """The usage says something else than what is billed."""
    if lie is UsageLie.MISSING:
        events = tuple(_without_usage(event, answer) for event in answer.events if not _USAGE_ALONE.search(event))
        steps = tuple(min(step, len(events)) for step in answer.steps)
        body, end = _USAGE_FIELD.sub(b"", answer.body), _USAGE_FIELD.sub(b"", answer.end)
        return replace(answer, reported=None, body=body, events=events, steps=steps, end=end)

    def lied(found: re.Match[bytes]) -> bytes:
        return found[1] + b"%d" % _lie(int(found[2]), lie)

    def told(data: bytes) -> bytes:
        found = list(_USAGE.finditer(data))
        if not found:
            return data
        if answer.content_type == event_stream.CONTENT_TYPE:
            return event_stream.changed(data, lambda payload: _COUNT.sub(lied, payload))
        start = found[-1].start()
        return data[:start] + _COUNT.sub(lied, data[start:])

    usage = answer.usage
    return replace(
        answer,
        reported=replace(usage, prompt=_lie(usage.prompt, lie), completion=_lie(usage.completion, lie)),
        body=told(answer.body),
        events=tuple(map(told, answer.events)),
        end=told(answer.end),
    )


def _without_usage(event: bytes, answer: Answer) -> bytes:
    if answer.content_type != event_stream.CONTENT_TYPE:
        return _USAGE_FIELD.sub(b"", event)
    return event_stream.changed(event, lambda payload: _USAGE_FIELD.sub(b"", payload))


def _lie(count: int, lie: UsageLie) -> int:
    return {UsageLie.INFLATED: count * INFLATION, UsageLie.NEGATIVE: -count}.get(lie, 0)

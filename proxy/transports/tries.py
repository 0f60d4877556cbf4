"""What the tries of one call have come to, and what the client hears when none brought an answer."""

from __future__ import annotations

import msgspec

from controlplane.contract.records import AttemptError, Outcome
from controlplane.contract.routing import Again, FallbackKind
from proxy import refusals
from proxy.call import Reply
from proxy.refusals import refuse
from proxy.runtime import Candidate
from proxy.transports.attempt import Attempt, AttemptFailed

_OVERLOADED = 529  # Anthropic's; its clients know what to make of it
_OVERLOADED_IN_OPENAI = (503, "overloaded")  # the same as clients of OpenAI's are told it
_CONTEXT_CODES = frozenset(("context_length_exceeded", "string_above_max_length", "request_too_large"))
# As OpenAI, Anthropic, Bedrock and Gemini say it; the last three have no code for it.
_CONTEXT_WORDS = (
    "prompt is too long",
    "input is too long",
    "maximum context length",
    "context window",
    "exceed context limit",
    "exceeds the maximum number of tokens",
)
_POLICY_CODES = frozenset(("content_policy_violation", "content_filter", "moderation_blocked"))
_POLICY_WORDS = ("content filtering policy", "content management policy", "safety system", "usage policies")
_POLICY_REASONS = frozenset(("content_filter", "refusal"))


class _Detail(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _Body(msgspec.Struct):
    error: _Detail | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class Tries:
    """What the tries of one call have come to so far. leg: tries of the model that is being tried now, asked for or fallen back to."""

    __slots__ = (
        "begun", "blocked", "count", "failures", "leg", "lost", "open_retry_after_s", "reasons", "refused", "saturated", "upstreams",
    )  # fmt: skip

    def __init__(self, begun: Reply | tuple[Attempt, Exception] | None = None) -> None:
        self.begun = begun  # what became of the first try, which was made before anybody kept count
        self.count = 0
        self.leg = 0
        self.lost: dict[str, Again] = {}  # deployments that failed in a race, and where to go from there
        self.failures: list[AttemptFailed] = []
        self.blocked = 0  # breakers that were open
        self.reasons: list[str] = []  # why they were
        self.open_retry_after_s = 0.0
        self.upstreams: list[str] = []  # of the failures
        self.saturated: list[Candidate] = []  # deployments that had no place free
        self.refused: Reply | None = None  # what a queue said

    def failed(self, candidate: Candidate, failure: AttemptFailed) -> None:
        """One try has failed."""
        self.count += 1
        self.leg += 1
        self.failures.append(failure)
        self.upstreams.append(candidate.deployment.upstream)

    def was_open(self, reason: str, retry_after_s: float) -> None:
        """A breaker did not let a try through."""
        self.blocked += 1
        if reason and reason not in self.reasons:
            self.reasons.append(reason)
        waits = [wait for wait in (self.open_retry_after_s, retry_after_s) if wait > 0.0]
        self.open_retry_after_s = min(waits, default=0.0)

    @property
    def only_open(self) -> bool:
        """Whether nothing was tried since every breaker was open."""
        return self.blocked > 0 and not self.failures and not self.saturated and self.refused is None

    def of_class(self, error: AttemptError) -> int:
        """How many tries failed this way."""
        return sum(failure.error is error for failure in self.failures)


def fallback_kind(reply: Reply) -> FallbackKind | None:
    """Whether another model could do better with what this upstream refused: a longer window, or another policy."""
    if reply.outcome is not Outcome.UPSTREAM_REFUSED:
        if reply.stream is None and reply.finish_reason in _POLICY_REASONS and reply.outcome is Outcome.OK:
            return FallbackKind.CONTENT_POLICY
        return None
    try:
        detail = _decode_body(reply.body).error or _Detail()
    except (msgspec.DecodeError, RecursionError):
        return None
    names, said = {detail.code, detail.type}, (detail.message or "").lower()
    if names & _CONTEXT_CODES or any(words in said for words in _CONTEXT_WORDS):
        return FallbackKind.CONTEXT_WINDOW
    if names & _POLICY_CODES or any(words in said for words in _POLICY_WORDS):
        return FallbackKind.CONTENT_POLICY
    return None


def given_up(alias: str, call_id: str, tries: Tries, *, late: bool) -> Reply:
    """What the client hears when no try brought an answer; late: the deadline has passed."""
    if not tries.failures:
        if tries.refused is not None:
            return tries.refused
        why = f" ({tries.reasons[0]})" if tries.reasons else ""
        message = f"no healthy deployment for model `{alias}`: every breaker is open{why}; try again later"
        return refuse(refusals.UNAVAILABLE, message, retry_after_s=max(1.0, tries.open_retry_after_s))
    last = tries.failures[-1]
    errors = {failure.error for failure in tries.failures}
    overloaded = all(_is_overloaded(failure.reply) for failure in tries.failures if failure.reply is not None)
    if last.reply is not None and (errors == {AttemptError.STATUS_429} or overloaded):
        return passed_through(last.reply, Outcome.EXHAUSTED)
    if errors == {AttemptError.REJECTED} and last.reply is not None:
        return passed_through(last.reply, Outcome.UPSTREAM_REFUSED)
    if AttemptError.DEADLINE in errors or late:
        return refuse(refusals.TIMED_OUT, f"no answer for model `{alias}` within the call's deadline: {last}")
    if errors <= {AttemptError.FIRST_BYTE_TIMEOUT, AttemptError.IDLE_TIMEOUT}:
        return refuse(refusals.TIMED_OUT, f"no deployment of model `{alias}` answered in time: {last}")
    if errors == {AttemptError.AUTH} and last.reply is None:
        message = f"model `{alias}` is not set up completely; its operator finds the reason under {call_id}"
        return refuse(refusals.MISCONFIGURED, message)
    often = "1 try" if tries.count == 1 else f"{tries.count} tries"
    message = f"all deployments of model `{alias}` failed after {often}; the last: {last}"
    return refuse(refusals.EXHAUSTED, message)


def _is_overloaded(reply: Reply) -> bool:
    """Whether an upstream of Anthropic's says that it has too much to do, in either language: its client may come again."""
    if reply.status == _OVERLOADED:
        return True
    try:
        detail = _decode_body(reply.body).error or _Detail()
    except (msgspec.DecodeError, RecursionError):
        return False
    return (reply.status, detail.code) == _OVERLOADED_IN_OPENAI


def passed_through(reply: Reply, outcome: Outcome) -> Reply:
    """An upstream's own error, body unmodified; or our refusal of what its language cannot say."""
    if reply.refusal is not None:
        return reply
    reply.outcome = outcome
    reply.error_code = "upstream_refused" if outcome is Outcome.UPSTREAM_REFUSED else "exhausted"
    return reply

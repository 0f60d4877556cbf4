"""Anthropic's wire language, as far as the proxy must read and write it: the usage of an answer and the shape of an error."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.contract.pricing import Tokens
from proxy.dialects.hosted_tools import Used, as_used, use_of
from proxy.dialects.openai import TOKENS_MAX

_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_NO_CREDIT = "credit balance is too low"
_encode = msgspec.json.Encoder().encode


_IN_SUMS = frozenset(("message", "fallback_message", ""))
_SUMMED = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_Count = Annotated[int, Meta(ge=0)] | None


class CacheCreation(msgspec.Struct):
    """Parts of `cache_creation_input_tokens`, by how long they are kept."""

    ephemeral_5m_input_tokens: _Count = None
    ephemeral_1h_input_tokens: _Count = None


class OutputDetails(msgspec.Struct):
    """Parts of `output_tokens`."""

    thinking_tokens: _Count = None


class Counts(msgspec.Struct):
    """What was used at one time: `input_tokens` holds neither what a prompt cache gave nor what it took."""

    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation: CacheCreation | None = None


class Iteration(Counts):
    """One of the model's runs for an answer. Those of type `message` are in the sums, all others beside them."""

    type: str = ""


class Usage(Counts):
    """Usage as Anthropic reports it."""

    output_tokens_details: OutputDetails | None = None
    server_tool_use: msgspec.Raw = _NOTHING
    iterations: msgspec.Raw = _NOTHING


class _ErrorDetail(msgspec.Struct):
    type: str | None = None
    message: str | None = None


class _ErrorFields(msgspec.Struct):
    error: _ErrorDetail | str | None = None


_decode_usage = msgspec.json.Decoder(Usage).decode
_decode_iterations = msgspec.json.Decoder(list[Iteration] | None).decode
_decode_error = msgspec.json.Decoder(_ErrorFields).decode


class UsageSum:
    """What a stream has said of its usage so far.

    Its counts are cumulative, so of each the largest is the latest. A later report of the whole input takes the place of the one before,
    as it does in the vendor's own clients: at first Kimi and Qwen count everything as input, and only at the end what of it was cached.
    """

    __slots__ = (
        "_beside",
        "_code_unread",
        "_searches_unread",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "cache_write_5m",
        "input",
        "output",
        "ran_code",
        "searches",
        "searches_seen",
        "thinking",
    )

    def __init__(self) -> None:
        self.input = self.output = self.thinking = self.searches = 0
        self.searches_seen = 0  # by their results: what is assumed where the count cannot be read
        self._searches_unread = self._code_unread = False  # some report counts them in a way that cannot be read
        self.ran_code = False
        self._beside: UsageSum | None = None  # runs that are in no sum: a compaction of the context, an advisor
        self.cache_read = self.cache_write = self.cache_write_5m = self.cache_write_1h = 0

    def add(self, usage: Usage | None) -> None:
        """Takes one more report, if it is one; what it does not mention stays."""
        if usage is None:
            return
        self.output = max(self.output, usage.output_tokens or 0)
        given, read, written = usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        if given is not None and given + (read or 0) + (written or 0):
            self.input = given
            self.cache_read = self.cache_read if read is None else read
            if written is not None:
                if written < self.cache_write:  # else what was written for an hour is still among it
                    self.cache_write_5m = self.cache_write_1h = 0
                self.cache_write = written
        else:
            self.input = max(self.input, given or 0)
            self.cache_read = max(self.cache_read, read or 0)
            self.cache_write = max(self.cache_write, written or 0)
        if usage.cache_creation is not None:
            self.cache_write_5m = max(self.cache_write_5m, usage.cache_creation.ephemeral_5m_input_tokens or 0)
            self.cache_write_1h = max(self.cache_write_1h, usage.cache_creation.ephemeral_1h_input_tokens or 0)
        if usage.output_tokens_details is not None:
            self.thinking = max(self.thinking, usage.output_tokens_details.thinking_tokens or 0)
        if bytes(usage.iterations) not in _EMPTY:
            self._add_beside(_iterations(usage.iterations))
        if usage.server_tool_use:
            use = use_of(usage.server_tool_use)
            self._searches_unread = self._searches_unread or use.searches is None
            self._code_unread = self._code_unread or use.ran_code is None
            self.searches = max(self.searches, use.searches or 0)
            self.ran_code = self.ran_code or bool(use.ran_code)

    def _add_beside(self, iterations: list[Iteration]) -> None:
        """Takes the latest list of runs, which holds those of the lists before."""
        beside = UsageSum()
        for run in iterations:
            if run.type in _IN_SUMS:
                continue
            one = UsageSum()
            one.add(msgspec.convert(run, Usage, from_attributes=True))
            for name in _SUMMED:
                setattr(beside, name, getattr(beside, name) + getattr(one, name))
            beside.cache_write_5m += max(0, one.cache_write - one.cache_write_5m - one.cache_write_1h)
        self._beside = beside

    @property
    def used(self) -> Used:
        """What the provider's own tools did; a guess where a report of it cannot be read."""
        searches, containers = self.searches, int(self.ran_code)
        if self._searches_unread:
            searches = -max(1, searches, self.searches_seen)
        if self._code_unread and not containers:
            containers = -1
        return as_used({"search": searches, "container": containers})

    def tokens(self) -> Tokens | None:
        """Tokens by disjoint kinds, which sum to the provider's counts; None if they make no sense, as an answer to nothing does not.

        What was written to a prompt cache counts for five minutes unless the parts say an hour. Where the parts are more than their
        sum, they are believed: a provider that leaves the sum out still bills them.
        """
        written = max(self.cache_write, self.cache_write_5m + self.cache_write_1h)
        thinking = min(self.thinking, self.output)
        tokens = Tokens(
            input=self.input,
            cache_read=self.cache_read,
            cache_write=written - self.cache_write_1h,
            cache_write_1h=self.cache_write_1h,
            output=self.output - thinking,
            reasoning=thinking,
        )
        if self._beside is not None:
            more = self._beside
            tokens = Tokens(
                input=tokens.input + more.input,
                cache_read=tokens.cache_read + more.cache_read,
                cache_write=tokens.cache_write + more.cache_write_5m,
                cache_write_1h=tokens.cache_write_1h + more.cache_write_1h,
                output=tokens.output + more.output,
                reasoning=tokens.reasoning,
            )
        return tokens if tokens.total_input and tokens.total <= TOKENS_MAX else None


def read_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """A `usage` object; None if there is none or it makes no sense, as counts below zero or of half a token do not."""
    try:
        return _decode_usage(raw) if bytes(raw) not in _EMPTY else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _iterations(raw: msgspec.Raw) -> list[Iteration]:
    """The runs that a usage lists; none if they make no sense, for the sums are known all the same."""
    try:
        return _decode_iterations(raw) or []
    except (msgspec.DecodeError, RecursionError):
        return []


def tokens_of(raw: bytes | msgspec.Raw) -> Tokens | None:
    """Tokens of a whole answer's usage; None if there is none or it makes no sense."""
    usage = read_usage(raw)
    summed = UsageSum()
    summed.add(usage)
    return summed.tokens()


def read_error(body: bytes) -> tuple[str, str]:
    """Type and message of an error body; empty strings where it says nothing we understand.

    An account without credit is an invalid request there; here it is what OpenAI calls `insufficient_quota`.
    """
    try:
        detail = _decode_error(body).error
    except (msgspec.DecodeError, RecursionError):
        return "", ""
    if detail is None:
        return "", ""
    if isinstance(detail, str):
        return "", detail
    message = detail.message or ""
    return "insufficient_quota" if _NO_CREDIT in message else detail.type or "", message


def error_body(*, message: str, kind: str, request_id: str, details: str = "") -> bytes:
    """An error as Anthropic's clients expect it. details: a code that says more than its kind."""
    error: dict[str, object] = {"type": kind, "message": message}
    if details:
        error["details"] = {"error_code": details}
    return _encode({"type": "error", "error": error, "request_id": request_id})


def error_event(*, message: str, kind: str, request_id: str) -> bytes:
    """The same inside a stream."""
    return b"event: error\ndata: " + error_body(message=message, kind=kind, request_id=request_id) + b"\n\n"

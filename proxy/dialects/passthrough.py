"""What the proxy understands of traffic that it only passes through: a model's name on the way in, usage on the way out, if there is any.

Nothing is required of it: a body that is no JSON and an answer without usage are as good as any.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects import anthropic, openai
from proxy.dialects.anthropic import UsageSum, read_usage
from proxy.dialects.dialect import RequestView
from proxy.dialects.events import EventCutter, data_of, events_in
from proxy.dialects.hosted_tools import Used, used_in
from proxy.dialects.openai_usage import read_io_usage
from proxy.dialects.service_class import MARK

_NOTHING = msgspec.Raw(b"")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_DIGITS_MAX = 6
_BLANK_LINE = b"\n"  # what ends a stream whose own last event nobody knows: SSE readers skip it


class _RequestFields(msgspec.Struct):
    model: str
    stream: msgspec.Raw = _NOTHING  # whatever else it may be, the model counts
    n: msgspec.Raw = _NOTHING


class _Part(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING


class _Answer(msgspec.Struct):
    """An answer or an event, wherever its usage may be."""

    usage: msgspec.Raw = _NOTHING
    message: _Part | str | list[msgspec.Raw] | None = None
    response: _Part | str | list[msgspec.Raw] | None = None


_decode_request = msgspec.json.Decoder(_RequestFields).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def read_passthrough(body: bytes) -> RequestView:
    """The view of any request. Where it names no model nothing is known of its tokens, and its bytes are none.

    Its own ceiling for an answer does not count: which of the names for it the endpoint reads, only the endpoint knows.
    """
    try:
        fields = _decode_request(body)
    except (msgspec.DecodeError, RecursionError):
        return RequestView(model="", include_usage=True, max_output_tokens=0, file_bytes=len(body))
    n = bytes(fields.n)
    return RequestView(
        model=fields.model,
        stream=bytes(fields.stream) == b"true",
        include_usage=True,
        n=min(max(int(n), 1), openai.CHOICES_MAX) if n.isdigit() and len(n) < _DIGITS_MAX else 1,
        ambiguous=openai.is_ambiguous(body),
    )


class PassthroughDialect:
    """Whatever an upstream answers, its usage in the words of its dialect."""

    name: ClassVar[str] = "passthrough"

    def __init__(self, upstream_dialect: str) -> None:
        self._anthropic = upstream_dialect == "anthropic"

    def read_view(self, body: bytes) -> RequestView:
        """The view of any request."""
        return read_passthrough(body)

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The request as it came; written anew where an upstream might find another model in it than the one that is billed."""
        return openai.rewritten(body, model=view.model, include_usage=False) if view.ambiguous else body

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage, if there is one that we understand; never a finish reason."""
        usage = UsageReader(anthropic=self._anthropic)
        usage.read(body)
        return usage.tokens, ""

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return anthropic.read_error(body) if self._anthropic else openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> PassthroughScanner:  # noqa: ARG002 - the seam's
        """A reader for one stream."""
        return PassthroughScanner(UsageReader(anthropic=self._anthropic), event_bytes_max)


class UsageReader:
    """Collects the usage of an answer or of the events of a stream."""

    __slots__ = ("_anthropic", "_sum", "tokens", "used")

    def __init__(self, *, anthropic: bool) -> None:
        self._anthropic = anthropic
        self._sum = UsageSum()
        self.tokens: Tokens | None = None  # None: nothing was said
        self.used: Used = ()  # by the upstream's own tools, as its last word has it

    def read(self, data: bytes) -> None:
        """Learns from a JSON document; from anything else, nothing."""
        if b'"usage"' not in data:
            return
        self.used = used_in(data) or self.used
        try:
            answer = _decode_answer(data)
            for part in (answer, answer.message, answer.response):
                if isinstance(part, _Answer | _Part) and bytes(part.usage) not in _EMPTY:
                    self._add(part.usage)
        except (msgspec.DecodeError, RecursionError):
            return

    def _add(self, raw: msgspec.Raw) -> None:
        if self._anthropic:
            self._sum.add(read_usage(raw))
            self.tokens = self._sum.tokens()
        else:
            said = openai.read_usage(raw) or read_io_usage(raw)
            self.tokens = said if said is not None else self.tokens


class PassthroughScanner:
    """The state of one stream that goes on as it came, event by event, until its bytes end."""

    __slots__ = (
        "_cutter", "_reader", "content_seen", "done", "ending", "error_event", "events", "finish_reason", "said", "tokens", "used",
    )  # fmt: skip

    def __init__(self, reader: UsageReader, event_bytes_max: int) -> None:
        """event_bytes_max: an event larger than this is malformed."""
        self._cutter = EventCutter(event_bytes_max)
        self._reader = reader
        self.content_seen = False  # anything at all
        self.done = False
        self.ending = b""
        self.error_event = b""
        self.events = 0
        self.finish_reason = ""
        self.tokens: Tokens | None = None
        self.used: Used = ()
        self.said = b""  # the last event that names a service class

    def feed(self, data: bytes) -> bytes:
        """The whole events that there are; b"" if none is whole yet. Raises Malformed."""
        block = self._cutter.feed(data)
        return self._examine(block) if block else b""

    def finish(self) -> bytes:
        """The end of the bytes is the end of the stream."""
        block = self._cutter.finish()
        shown = self._examine(block) if block else b""
        self.done = True
        self.ending = _BLANK_LINE
        return shown

    def _examine(self, block: bytes) -> bytes:
        self.content_seen = True
        for event in events_in(block):
            self.events += 1
            data = data_of(event)
            if data is not None:
                self._reader.read(data)
                if MARK in data:
                    self.said = data
        self.tokens, self.used = self._reader.tokens, self._reader.used
        return block

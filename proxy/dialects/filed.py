"""Files of requests, batches of them, and their results: what the proxy reads of each. They cost nothing by themselves; their lines do."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects import anthropic, openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_media_stream import SoundScanner
from proxy.dialects.passthrough import UsageReader

LINE_URLS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/completions": "completions",
}
"""What a line of a file may ask for, by the operation that asks for the same."""
_OK_STATUS = 200
_ENDED = frozenset(("completed", "failed", "expired", "cancelled", "ended"))
_NOTHING = msgspec.Raw(b"")


class Line(msgspec.Struct):
    """One request of a file, as OpenAI wants it."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class Request(msgspec.Struct):
    """One request of a batch, as Anthropic wants it."""

    custom_id: str
    params: msgspec.Raw


class Requests(msgspec.Struct):
    """The body that makes a batch at Anthropic."""

    requests: list[Request]


class Create(msgspec.Struct):
    """The body that makes a batch at OpenAI."""

    input_file_id: str
    endpoint: str


class Filed(msgspec.Struct, frozen=True):
    """What is said about a file or a batch, by either vendor. usage: of the whole batch, where OpenAI says it."""

    id: str = ""
    status: str | None = None
    processing_status: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = _NOTHING

    @property
    def ended(self) -> bool:
        """Whether a batch will not change any more."""
        return (self.processing_status or self.status) in _ENDED

    @property
    def files(self) -> tuple[str, ...]:
        """What it has left behind: answers first, then errors."""
        return tuple(name for name in (self.output_file_id, self.error_file_id) if name)


class Page(msgspec.Struct):
    """A part of a list of files or batches."""

    data: list[msgspec.Raw] = []
    has_more: bool = False


class _Named(msgspec.Struct):
    id: str = ""


class _Response(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = _NOTHING


class _Result(msgspec.Struct):
    type: str = ""
    message: msgspec.Raw = _NOTHING


class _ResultLine(msgspec.Struct):
    response: _Response | None = None
    result: _Result | None = None


class _Answer(msgspec.Struct):
    model: str = ""


class Answered(msgspec.Struct, frozen=True):
    """What one line of results says of an answer. model: in the upstream's words. tokens: None: it does not say."""

    model: str
    tokens: Tokens | None
    body: msgspec.Raw


decode_line = msgspec.json.Decoder(Line).decode
decode_requests = msgspec.json.Decoder(Requests).decode
decode_create = msgspec.json.Decoder(Create).decode
decode_filed = msgspec.json.Decoder(Filed).decode
decode_page = msgspec.json.Decoder(Page).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_result = msgspec.json.Decoder(_ResultLine).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class FiledDialect:
    """An operation on files or batches: nothing of it is read on its way, and nothing is billed for it."""

    name: ClassVar[str] = "filed"

    def __init__(self, *, of_anthropic: bool = False) -> None:
        self._anthropic = of_anthropic

    def read_view(self, body: bytes) -> RequestView:
        """The view of any request: all its bytes are a file's."""
        return RequestView(model="", include_usage=True, max_output_tokens=0, free=True, file_bytes=len(body))

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The body as it came: `transports.batches` has written anew what had to be."""
        return body

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """No usage; the status of a batch. Raises Malformed."""
        if not body:
            return NO_TOKENS, ""
        try:
            said = decode_filed(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        return NO_TOKENS, said.processing_status or said.status or ""

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return anthropic.read_error(body) if self._anthropic else openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> SoundScanner:  # noqa: ARG002 - the seam's
        """A reader for the bytes of a file."""
        return SoundScanner(free=view.free)


def id_of(item: bytes | msgspec.Raw) -> str:
    """The id of an item of a list; empty if it has none."""
    try:
        return _decode_named(item).id
    except (msgspec.DecodeError, RecursionError):
        return ""


def with_results_here(body: bytes | msgspec.Raw) -> bytes:
    """A batch of Anthropic's whose `results_url` leads here and not to the upstream: a path, which clients take below their base URL."""
    if b'"results_url"' not in bytes(body):
        return bytes(body)
    fields = _decode_shallow(body)
    found = fields.get("results_url", _NOTHING)
    if bytes(found).startswith(b'"'):
        fields["results_url"] = msgspec.Raw(_encode(f"/v1/messages/batches/{id_of(body)}/results"))
    return _encode(fields)


def read_result(text: bytes, *, of_anthropic: bool) -> Answered | None:
    """What a line of results says; None if it tells of no answer. Raises Malformed."""
    try:
        line = _decode_result(text)
        if line.result is not None:
            body = line.result.message if line.result.type == "succeeded" else _NOTHING
        else:
            response = line.response
            body = _NOTHING if response is None or response.status_code != _OK_STATUS else response.body
        if not bytes(body):
            return None
        reader = UsageReader(anthropic=of_anthropic)
        reader.read(bytes(body))
        return Answered(_decode_answer(body).model, reader.tokens, body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"a line of a batch's results is not valid: {error}") from error


class Lines:
    """Cuts a file into its lines, whatever pieces it comes in. Lines longer than line_bytes_max are left out, and counted."""

    __slots__ = ("_held", "_line_bytes_max", "_skipping", "left_out")

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._held = bytearray()
        self._skipping = False
        self.left_out = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now; blank ones are none."""
        *whole, rest = data.split(b"\n")
        found: list[bytes] = []
        for part in whole:
            self._hold(part)
            found += self._taken()
        self._hold(rest)
        return found

    def finish(self) -> list[bytes]:
        """The last line, where it had no end of its own."""
        return self._taken()

    def _hold(self, part: bytes) -> None:
        if self._skipping or not part:
            return
        self._held += part
        if len(self._held) > self._line_bytes_max:
            self._skipping = True
            self._held.clear()
            self.left_out += 1

    def _taken(self) -> list[bytes]:
        line = bytes(self._held).strip()
        self._held.clear()
        self._skipping = False
        return [line] if line else []

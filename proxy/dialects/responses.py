"""OpenAI's responses: the request, the answer and the error, as far as the proxy must read them. Streams: `responses_stream`."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_usage import read_io_usage
from proxy.dialects.responses_state import check_id, ids_named, names_ids, written_anew
from proxy.dialects.responses_stream import ResponsesScanner

_NOTHING = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")
_NONE = msgspec.Raw(b"[]")
_EMPTY: frozenset[bytes] = frozenset((b"", b"null", b"{}"))
_IMAGE_PART = b'"input_image"'
# Names at the top level of a request that decide about money or about whose state it touches.
_DECISIVE = (
    b'"max_output_tokens"',
    b'"previous_response_id"',
    b'"conversation"',
    b'"store"',
    b'"background"',
    b'"stream"',
    b'"tools"',
    b'"max_tool_calls"',
)
_NESTED = ("conversation", "input", "tools")


class _RequestFields(msgspec.Struct):
    model: str
    stream: bool | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = _NULL
    store: bool | None = None
    background: bool | None = None
    input: msgspec.Raw = _NONE
    tools: msgspec.Raw = _NONE
    user: msgspec.Raw = _NOTHING
    safety_identifier: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING


class _Reason(msgspec.Struct):
    reason: str | None = None


class _ReplyFields(msgspec.Struct):
    status: str | None = None
    incomplete_details: _Reason | None = None
    usage: msgspec.Raw = _NOTHING


class _ErrorDetail(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Failed(msgspec.Struct):
    error: _ErrorDetail | None = None


class _EventError(msgspec.Struct):
    """Of a stream: the error itself, or the response that failed with one."""

    code: str | int | None = None
    message: str | None = None
    response: _Failed | None = None
    error: _ErrorDetail | None = None


_decode_request = msgspec.json.Decoder(_RequestFields).decode
_decode_reply = msgspec.json.Decoder(_ReplyFields).decode
_decode_event_error = msgspec.json.Decoder(_EventError).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Responses:
    """`POST /v1/responses`, and what else takes the same body."""

    name: ClassVar[str] = "responses"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = _decode_request(body)
        if not fields.model:
            raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
        ceiling = fields.max_output_tokens
        if ceiling is not None and not 1 <= ceiling <= openai.TOKENS_MAX:
            raise Malformed(f"`max_output_tokens` must be between 1 and {openai.TOKENS_MAX}", "max_output_tokens")
        continues: tuple[tuple[str, str], ...] = ()
        if fields.previous_response_id is not None:
            continues = (("previous_response_id", check_id(fields.previous_response_id, "previous_response_id")),)
        nested = names_ids(body)
        if nested or bytes(fields.conversation) != b"null":
            continues += ids_named(conversation=fields.conversation, items=fields.input, tools=fields.tools)
        user, metadata = openai.labels_of(
            fields.user if bytes(fields.user) not in _EMPTY else fields.safety_identifier, fields.metadata
        )
        return RequestView(
            model=fields.model,
            stream=bool(fields.stream),
            include_usage=True,  # it always says what it used
            max_output_tokens=ceiling,
            image_parts=body.count(_IMAGE_PART),
            user=user,
            metadata=metadata,
            ambiguous=nested or _is_ambiguous(body),
            continues=continues,
            kept=fields.store is not False or bool(fields.background),
            background=bool(fields.background),
        )

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request with its upstream's name of the model and a ceiling; what names ids below the top level is written anew."""
        fields = _decode_shallow(body)
        fields["model"] = msgspec.Raw(_encode(model))
        if view.continues or names_ids(body):
            fields.update({name: written_anew(fields[name]) for name in _NESTED if name in fields})
        if output_ceiling is not None:
            fields["max_output_tokens"] = msgspec.Raw(b"%d" % output_ceiling)
        return _encode(fields)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage and finish reason of a complete answer. Raises Malformed."""
        try:
            fields = _decode_reply(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        tokens = read_io_usage(fields.usage) if bytes(fields.usage) not in _EMPTY else None
        why = fields.incomplete_details
        return tokens, (None if why is None else why.reason) or fields.status or ""

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body, of an error event, or of an event that says that the response failed."""
        code, message = openai.read_error(body)
        if code or message:
            return code, message
        try:
            event = _decode_event_error(body)
        except (msgspec.DecodeError, RecursionError):
            return "", ""
        failed = event.response.error if event.response is not None else None
        if failed is not None:
            return str(failed.code or failed.type or ""), failed.message or ""
        return str(event.code or ""), event.message or ""

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> ResponsesScanner:
        """A reader for one stream. One of a response in the background is committed to at once: the upstream has it already."""
        return ResponsesScanner(event_bytes_max=event_bytes_max, committed=view.background)


class InputTokens(Responses):
    """`POST /v1/responses/input_tokens`: what a response would take in. It costs nothing."""

    name: ClassVar[str] = "responses_input_tokens"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        return msgspec.structs.replace(super().read_view(body), free=True, kept=False)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:  # noqa: ARG002 - the seam's
        """No usage: a count was asked for, nothing was used."""
        return NO_TOKENS, ""


def _is_ambiguous(body: bytes) -> bool:
    """Whether two readers could find different values: a name that is there twice, or one written with escapes."""
    return openai.is_ambiguous(body) or any(body.count(name) > 1 for name in _DECISIVE)

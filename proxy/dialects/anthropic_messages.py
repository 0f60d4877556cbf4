"""Messages and the counting of their tokens: what Anthropic's SDKs and Claude Code ask for.

Nothing of a request is changed but its model's name: of the other values every byte stays where it was, `system` above all, because
its order is part of the provider's prompt cache and of its clients' attribution.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from controlplane.contract.pricing import NO_TOKENS, Tokens
from proxy.dialects import anthropic, openai
from proxy.dialects.anthropic_stream import MessagesScanner
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.responses_state import check_id, written_anew

_IMAGE = b'"image"'
_CODE = b'"code_execution_2'  # the tool's type, with its date: it leaves a container behind, for later requests
_SEARCH, _FETCH = b'"web_search_2', b'"web_fetch_2'  # these may run code of their own
_NOTHING = msgspec.Raw(b"")


class _Fields(msgspec.Struct):
    """What is read of a request; everything else is forwarded unseen."""

    model: str
    messages: msgspec.Raw
    max_tokens: int
    stream: bool | None = None
    metadata: msgspec.Raw = _NOTHING
    container: msgspec.Raw = _NOTHING
    thread: msgspec.Raw = _NOTHING


class _Thread(msgspec.Struct):
    """A conversation that the upstream keeps: it begins with this request, or goes on from the answer of an earlier one."""

    type: Literal["create", "continue"]
    previous_message_id: str = ""


class _CountFields(msgspec.Struct):
    model: str
    messages: msgspec.Raw


class _ReplyFields(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING
    stop_reason: str | None = None


class _CountReply(msgspec.Struct):
    input_tokens: int


_decode = msgspec.json.Decoder(_Fields).decode
_decode_thread = msgspec.json.Decoder(_Thread | None).decode
_decode_count = msgspec.json.Decoder(_CountFields).decode
_decode_reply = msgspec.json.Decoder(_ReplyFields).decode
_decode_count_reply = msgspec.json.Decoder(_CountReply).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_NAMING = ("thread", "container")


class AnthropicMessages:
    """`POST /v1/messages`."""

    name: ClassVar[str] = "messages"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = _decode(body)
        _check(fields.model, fields.messages)
        if not 0 <= fields.max_tokens <= openai.TOKENS_MAX:
            raise Malformed(f"`max_tokens` must be between 0 and {openai.TOKENS_MAX}", "max_tokens")
        _, metadata = openai.labels_of(_NOTHING, fields.metadata)
        view = RequestView(
            model=fields.model,
            stream=bool(fields.stream),
            include_usage=True,  # it is always there
            max_output_tokens=fields.max_tokens,
            image_parts=body.count(_IMAGE),
            user=metadata.get("user_id", ""),
            ambiguous=None,
        )
        runs = _CODE in body
        if runs or fields.container is not _NOTHING or _SEARCH in body or _FETCH in body:
            view = _contained(view, fields.container, runs=runs)
        return view if fields.thread is _NOTHING else _in_thread(view, fields.thread)

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The request with the upstream's name of the model; it always has a ceiling of its own. What names an id names it once."""
        written = openai.rewritten(body, model=model, include_usage=False)
        if not (view.threaded or view.contained):
            return written
        fields = _decode_shallow(written)
        fields.update({name: written_anew(fields[name]) for name in _NAMING if name in fields})
        return _encode(fields)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage and stop reason of a complete reply. Raises Malformed."""
        try:
            fields = _decode_reply(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        return anthropic.tokens_of(fields.usage), fields.stop_reason or ""

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Type and message of an error body."""
        return anthropic.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> MessagesScanner:  # noqa: ARG002 - the seam's
        """A reader for one stream."""
        return MessagesScanner(event_bytes_max)


class AnthropicCountTokens(AnthropicMessages):
    """`POST /v1/messages/count_tokens`: the same request without a ceiling; the answer is a number and costs nothing."""

    name: ClassVar[str] = "count_tokens"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = _decode_count(body)
        _check(fields.model, fields.messages)
        return RequestView(
            model=fields.model,
            include_usage=True,
            max_output_tokens=0,
            free=True,
            ambiguous=None,
        )

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """No usage, for none is billed. Raises Malformed."""
        try:
            _decode_count_reply(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Malformed(f"the upstream's reply is not valid: {error}") from error
        return NO_TOKENS, ""


def _in_thread(view: RequestView, raw: msgspec.Raw) -> RequestView:
    """The view of a request that names a thread, or says that it is in none. Raises Malformed for one whose ids nobody can find."""
    view = msgspec.structs.replace(view, ambiguous=True)  # named twice, it could be another one to another reader
    try:
        thread = _decode_thread(raw)
    except msgspec.DecodeError as error:
        raise Malformed(f"`thread` must be of type `create` or `continue`: {error}", "thread") from error
    if thread is None:
        return view
    continues = view.continues
    if thread.type == "continue" or thread.previous_message_id:
        continues += (("thread", check_id(thread.previous_message_id, "thread.previous_message_id")),)
    return msgspec.structs.replace(view, kept=True, threaded=True, continues=continues)


def _contained(view: RequestView, raw: msgspec.Raw, *, runs: bool) -> RequestView:
    """The view of a request whose answer may leave a container behind, or that goes on in one: its files are others each time.

    runs: with a tool that runs code. Skills alone name no container. Raises Malformed for one whose id cannot be read.
    """
    found: object = msgspec.json.decode(raw) if bytes(raw) else None
    name = found.get("id") if isinstance(found, dict) else found
    if name is None:
        ambiguous = None if raw is _NOTHING else True  # named twice, it could be another one to another reader
        return msgspec.structs.replace(view, contained=True, kept=runs, ambiguous=ambiguous)
    if not isinstance(name, str):
        raise Malformed("`container` must be an id, or an object with one", "container")
    continues = (("container", check_id(name, "container")),)
    return msgspec.structs.replace(view, contained=True, kept=True, ambiguous=True, continues=continues)


def _check(model: str, messages: msgspec.Raw) -> None:
    if not model:
        raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
    if memoryview(messages)[:1].tobytes() != b"[":
        raise Malformed("`messages` must be an array", "messages")

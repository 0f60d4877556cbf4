"""Chat completions: the operation of OpenAI's language that every agent framework speaks."""

from __future__ import annotations

from typing import ClassVar

from controlplane.contract.pricing import Tokens
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_stream import StreamScanner

_IMAGE_PART = b'"image_url"'
_NO_CEILING = f"`%s` must be between 1 and {openai.TOKENS_MAX}"


class OpenAiChat:
    """`POST /v1/chat/completions`."""

    name: ClassVar[str] = "chat"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = openai.decode_chat(body)
        if not fields.model:
            raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
        messages = fields.messages
        if memoryview(messages)[:1].tobytes() != b"[":
            raise Malformed("`messages` must be an array", "messages")
        ceiling = _ceiling(fields)
        n = 1 if fields.n is None else fields.n
        if not 1 <= n <= openai.CHOICES_MAX:
            raise Malformed(f"`n` must be between 1 and {openai.CHOICES_MAX}", "n")
        user, metadata = "", openai.NO_LABELS
        if fields.user is not openai.NOTHING or fields.metadata is not openai.NOTHING:
            user, metadata = openai.labels_of(fields.user, fields.metadata)
        return RequestView(
            model=fields.model,
            stream=bool(fields.stream),
            include_usage=fields.stream_options is not None and bool(fields.stream_options.include_usage),
            max_output_tokens=ceiling,
            n=n,
            image_parts=(body.count(_IMAGE_PART) + 1) // 2,
            user=user,
            metadata=metadata,
            ambiguous=None,
        )

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request as the upstream must have it: its model's name, usage switched on, a ceiling."""
        include_usage = view.stream and not view.include_usage
        return openai.rewritten(body, model=model, include_usage=include_usage, output_ceiling=output_ceiling)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage and finish reason of a complete reply. Raises Malformed."""
        return openai.read_reply(body)

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> StreamScanner:
        """A reader for one stream, which hides the usage that the client did not ask for."""
        return StreamScanner(hide_usage=not view.include_usage, event_bytes_max=event_bytes_max)


def _ceiling(fields: openai.ChatFields) -> int | None:
    """The larger of the two names for it, because upstreams differ in which one they read."""
    newer, older = fields.max_completion_tokens, fields.max_tokens
    if newer is not None and not 1 <= newer <= openai.TOKENS_MAX:
        raise Malformed(_NO_CEILING % "max_completion_tokens", "max_completion_tokens")
    if older is None:
        return newer
    if not 1 <= older <= openai.TOKENS_MAX:
        raise Malformed(_NO_CEILING % "max_tokens", "max_tokens")
    return older if newer is None else max(newer, older)

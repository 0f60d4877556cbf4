"""Embeddings, as OpenAI's clients ask for them."""

from __future__ import annotations

from typing import ClassVar

from controlplane.contract.pricing import Tokens
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_stream import StreamScanner


class OpenAiEmbeddings:
    """`POST /v1/embeddings`."""

    name: ClassVar[str] = "embeddings"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = openai.decode_embeddings(body)
        if not fields.model:
            raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
        if memoryview(fields.input)[:1].tobytes() not in (b"[", b'"'):
            raise Malformed("`input` must be a string or an array", "input")
        user, metadata = openai.labels_of(fields.user, fields.metadata)
        return RequestView(model=fields.model, max_output_tokens=0, user=user, metadata=metadata, ambiguous=None)

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:  # noqa: ARG002 - the seam's
        """The request with the upstream's name of the model; embeddings know no stream and no ceiling."""
        return openai.rewritten(body, model=model, include_usage=False)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage of a complete reply. Raises Malformed."""
        return openai.read_reply(body)

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> StreamScanner:  # noqa: ARG002 - the seam's
        """A reader for a stream that no upstream should send."""
        return StreamScanner(hide_usage=False, event_bytes_max=event_bytes_max)

"""Completions of a bare prompt: the oldest operation of OpenAI's language, which many upstreams still speak."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from controlplane.contract.pricing import Tokens
from proxy.dialects import openai
from proxy.dialects.dialect import Malformed, RequestView
from proxy.dialects.openai_stream import StreamScanner

DEFAULT_MAX_TOKENS = 16  # what upstreams take where the request names no ceiling
PROMPTS_MAX = 2048  # as embeddings
_NOTHING = msgspec.Raw(b"")
_DECISIVE = (b'"max_tokens"', b'"best_of"', b'"prompt"')


class _Fields(msgspec.Struct):
    model: str
    prompt: str | list[msgspec.Raw] | None = None
    stream: bool | None = None
    stream_options: openai.StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    user: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Fields).decode
_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class OpenAiCompletions:
    """`POST /v1/completions`."""

    name: ClassVar[str] = "completions"

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, or what msgspec raises for a body that is not JSON of this kind."""
        fields = _decode(body)
        if not fields.model:
            raise Malformed("`model` is empty; name one of the models of GET /v1/models", "model")
        ceiling = fields.max_tokens
        if ceiling is not None and not 0 <= ceiling <= openai.TOKENS_MAX:
            raise Malformed(f"`max_tokens` must be between 0 and {openai.TOKENS_MAX}", "max_tokens")
        user, metadata = openai.labels_of(fields.user, fields.metadata)
        return RequestView(
            model=fields.model,
            stream=bool(fields.stream),
            include_usage=fields.stream_options is not None and bool(fields.stream_options.include_usage),
            max_output_tokens=ceiling,
            n=_answers(fields),
            user=user,
            metadata=metadata,
            ambiguous=openai.is_ambiguous(body, n=True) or any(body.count(name) > 1 for name in _DECISIVE),
        )

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request as the upstream must have it; a ceiling never raises what would have been generated without it."""
        body = openai.rewritten(body, model=model, include_usage=view.stream and not view.include_usage)
        if output_ceiling is None:
            return body
        fields = _decode_shallow(body)
        fields["max_tokens"] = msgspec.Raw(b"%d" % min(output_ceiling, DEFAULT_MAX_TOKENS))
        return _encode(fields)

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage and finish reason of a complete reply. Raises Malformed."""
        return openai.read_reply(body)

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code and message of an error body."""
        return openai.read_error(body)

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> StreamScanner:
        """A reader for one stream, which hides the usage that the client did not ask for."""
        return StreamScanner(hide_usage=not view.include_usage, event_bytes_max=event_bytes_max)


def _answers(fields: _Fields) -> int:
    """How many texts are generated, shown or not: for each prompt, `n` or `best_of`."""
    counts = [1]
    for param, value in (("n", fields.n), ("best_of", fields.best_of)):
        if value is not None:
            if not 1 <= value <= openai.CHOICES_MAX:
                raise Malformed(f"`{param}` must be between 1 and {openai.CHOICES_MAX}", param)
            counts.append(value)
    prompts = 1
    if isinstance(fields.prompt, list) and fields.prompt and bytes(fields.prompt[0])[:1] in (b'"', b"["):
        prompts = len(fields.prompt)  # else it is one prompt, as a list of tokens
    if prompts > PROMPTS_MAX:
        raise Malformed(f"`prompt` may hold at most {PROMPTS_MAX} prompts", "prompt")
    return prompts * max(counts)

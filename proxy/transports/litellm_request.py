"""What litellm may be told of a client's request: OpenAI's own fields and nothing else.

litellm takes addresses, keys, callbacks and headers from the same arguments as the request. A field that is not in these lists never gets
there, whoever sends it; nor does an address from which litellm would fetch something itself.
"""

from __future__ import annotations

import array
import base64
import sys
from typing import Any, Literal

import msgspec

from proxy.dialects import translate_chat_words as chat
from proxy.dialects.dialect import Malformed
from proxy.dialects.translate_chat_request import ChatRequest
from proxy.dialects.translate_errors import malformed

# Said by the transport itself, or matters between the client and us.
_OURS = frozenset(
    (
        "metadata",
        "model",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "store",
        "stream",
        "stream_options",
    )
)
_REFUSED = ("audio", "moderation")
_DATA = "data:"


class _EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: msgspec.Raw
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    metadata: msgspec.Raw = chat.NOTHING


class _Vector(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0
    object: str = "embedding"


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    model: str = ""
    object: str = "list"
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Format(msgspec.Struct):
    encoding_format: str | None = None


Arguments = dict[str, Any]  # of any JSON value, as litellm takes them
_decode_chat = msgspec.json.Decoder(ChatRequest).decode
_decode_embedding = msgspec.json.Decoder(_EmbeddingRequest).decode
_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_format = msgspec.json.Decoder(_Format).decode
_decode_any = msgspec.json.Decoder(Arguments).decode
_encode = msgspec.json.Encoder().encode


def chat_arguments(body: bytes, *, output_ceiling: int | None) -> Arguments:
    """A chat completion request as arguments. Raises Malformed, naming the field that cannot be said."""
    try:
        asked = _decode_chat(body)
        said = _decode_any(_encode(asked))  # only what was read: nothing that we do not know goes on, at no depth
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(error) from error
    for name in _REFUSED:
        if name in said:
            raise Malformed(f"`{name}` cannot be had from this model; leave it out", name)
    _check_files(asked.messages)
    arguments = {name: value for name, value in said.items() if name not in _OURS and value is not None}
    ceiling = arguments.pop("max_completion_tokens", None) or arguments.get("max_tokens") or output_ceiling
    if ceiling is not None:
        arguments["max_tokens"] = ceiling  # the name that litellm translates for every provider
    return arguments


def embedding_arguments(body: bytes) -> Arguments:
    """An embeddings request as arguments. Raises Malformed, naming the field that cannot be said."""
    try:
        asked = _decode_embedding(body)
        given = msgspec.json.decode(asked.input)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(error) from error
    arguments: Arguments = {"input": given}
    if asked.dimensions is not None:
        arguments["dimensions"] = asked.dimensions
    if asked.user is not None:
        arguments["user"] = asked.user
    return arguments


def floats_as_asked(body: bytes, request: bytes) -> bytes:
    """An embeddings reply in the encoding that the client asked for; most providers know only numbers, SDKs ask for base64.

    Raises Malformed for a reply that is none.
    """
    try:
        if _decode_format(request).encoding_format != "base64":
            return body
        reply = _decode_vectors(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(f"the upstream's reply is not valid: {error}") from error
    for vector in reply.data:
        if not isinstance(vector.embedding, str):
            numbers = array.array("f", vector.embedding)
            if sys.byteorder == "big":
                numbers.byteswap()
            vector.embedding = base64.b64encode(numbers.tobytes()).decode()
    return _encode(reply)


def _check_files(messages: list[chat.Message]) -> None:
    """Images and files must come with their bytes: litellm would fetch them from inside our network."""
    for place, message in enumerate(messages):
        content = message.content
        if content is None or isinstance(content, str):
            continue
        for at, part in enumerate(content):
            param = f"messages.{place}.content.{at}"
            if isinstance(part, chat.ImagePart) and not part.image_url.url.startswith(_DATA):
                raise Malformed("an image must be a data URL for this model", f"{param}.image_url.url")
            if isinstance(part, chat.FilePart):
                if part.file.file_id is not None:  # litellm takes an address for one
                    raise Malformed("a file must come with its bytes for this model", f"{param}.file.file_id")
                if not (part.file.file_data or "").startswith(_DATA):
                    raise Malformed("a file must be a data URL for this model", f"{param}.file.file_data")

"""Images: made, edited and varied. Each is a valid PNG of one pixel, whose colour the prompt decides."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from typing import Annotated, Any, Literal

import msgspec

from controlplane.demo.provider import problems
from controlplane.demo.provider.answer import EVENTS, SECONDS, Answer, Usage
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.inference import Inference
from controlplane.demo.provider.models import MODELS, Model
from controlplane.demo.provider.multipart import read_form
from controlplane.demo.provider.request import converted, missing, read

PICTURE_TOKENS = 323  # of an input picture; about what a square one in low fidelity costs
# Output tokens by quality, then by shape. Source: OpenAI's guide to image generation, "Cost and latency".
OUTPUT_TOKENS = {
    "low": {"1024x1024": 272, "1024x1536": 408, "1536x1024": 400},
    "medium": {"1024x1024": 1056, "1024x1536": 1584, "1536x1024": 1568},
    "high": {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208},
}
_TIME = 4_102_444_799  # stands for the time until the JSON is made
Json = dict[str, Any]  # JSON on its way to bytes


class ImagesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/images/generations, and the fields of the forms of the other two."""

    model: str = "dall-e-2"
    prompt: str = ""
    n: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = None
    moderation: Literal["low", "auto"] | None = None
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    style: Literal["vivid", "natural"] | None = None
    stream: bool | None = None
    user: str | None = None


def generation(request: Request, inference: Inference) -> Answer:
    """Images for a prompt. Raises Problem."""
    asked = read(request.body, ImagesRequest, model_needed=False)
    if not asked.prompt:
        raise missing("prompt")
    return _answer(asked, inference, pictures=0, event="image_generation")


def edit(request: Request, inference: Inference) -> Answer:
    """Images made from others. Raises Problem."""
    form = read_form(request)
    form.file("image")
    asked = converted(form.fields, ImagesRequest, strict=False)
    if not asked.prompt:
        raise missing("prompt")
    given = sum(len(files) for name, files in form.files.items() if name.removesuffix("[]") == "image")
    return _answer(asked, inference, pictures=given, event="image_edit")


def variation(request: Request, inference: Inference) -> Answer:
    """Variations of an image. Raises Problem."""
    form = read_form(request)
    content = form.file("image").content
    fields = form.fields | {"prompt": hashlib.blake2b(content, digest_size=8).hexdigest()}
    return _answer(converted(fields, ImagesRequest, strict=False), inference, pictures=1, event="image_edit")


def _answer(asked: ImagesRequest, inference: Inference, *, pictures: int, event: str) -> Answer:
    model = MODELS.get(asked.model)
    if model is None or model.kind != "images":
        raise problems.unknown_model(asked.model)
    count = asked.n or 1
    made = [_png(f"{inference.seed}/{model.name}/{index}/{asked.prompt}") for index in range(count)]
    encoded = [base64.b64encode(image).decode() for image in made]
    if not model.name.startswith("gpt-image"):
        return _by_the_piece(asked, model, encoded)
    quality = asked.quality if asked.quality is not None and asked.quality in OUTPUT_TOKENS else "high"
    size = asked.size if asked.size is not None and asked.size in OUTPUT_TOKENS[quality] else "1024x1024"
    text_tokens = inference.tokenizer(model).count(asked.prompt)
    usage = Usage(text_tokens + PICTURE_TOKENS * pictures, count * OUTPUT_TOKENS[quality][size])
    told = _usage(usage, text_tokens)
    common = {
        "background": "transparent" if asked.background == "transparent" else "opaque",
        "output_format": asked.output_format or "png",
        "quality": quality,
        "size": size,
    }
    if asked.stream:
        return _streamed(asked, model, encoded[0], usage, told, common, event)
    document = {"created": _TIME} | common | {"data": [{"b64_json": image} for image in encoded], "usage": told}
    return Answer(model.name, usage, usage, _laid_out(document), marked=True)


def _by_the_piece(asked: ImagesRequest, model: Model, encoded: list[str]) -> Answer:
    """The older models: no tokens, and a link unless the image itself was asked for."""
    as_links = asked.response_format != "b64_json"
    data: list[Json] = []
    for image in encoded:
        digest = hashlib.blake2b(image.encode(), digest_size=12).hexdigest()
        one: Json = {"url": f"https://images.example.com/{digest}.png"} if as_links else {"b64_json": image}
        data.append(({"revised_prompt": asked.prompt} if model.name == "dall-e-3" else {}) | one)
    return Answer(model.name, Usage(0, 0), None, _laid_out({"created": _TIME, "data": data}), marked=True)


def _streamed(
    asked: ImagesRequest, model: Model, image: str, usage: Usage, told: Json, common: Json, event: str
) -> Answer:
    """Partial images, then the whole one with the usage."""
    documents: list[Json] = [
        {"type": f"{event}.partial_image", "partial_image_index": index, "b64_json": image, "created_at": _TIME}
        | common
        for index in range(asked.partial_images or 0)
    ]
    documents.append({"type": f"{event}.completed", "b64_json": image, "created_at": _TIME} | common | {"usage": told})
    events = tuple(
        b"event: %b\ndata: %b\n\n" % (document["type"].encode(), _marked(msgspec.json.encode(document)))
        for document in documents
    )
    return Answer(
        model.name,
        usage,
        usage,
        content_type=EVENTS,
        events=events,
        steps=tuple(range(1, len(events) + 1)),
        produced=tuple(usage.completion * (index + 1) // len(events) for index in range(len(events))),
        marked=True,
    )


def _usage(usage: Usage, text_tokens: int) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"image_tokens": usage.prompt - text_tokens, "text_tokens": text_tokens},
        "output_tokens": usage.completion,
        "output_tokens_details": {"image_tokens": usage.completion, "text_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }


def _laid_out(document: Json) -> bytes:
    return _marked(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"


def _marked(data: bytes) -> bytes:
    return data.replace(b"%d" % _TIME, SECONDS)


def _png(identity: str) -> bytes:
    """A PNG of one pixel."""
    colour = hashlib.blake2b(identity.encode(errors="replace"), digest_size=3).digest()
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\x00" + colour)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

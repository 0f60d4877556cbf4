"""Images as the official client sees them."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import openai
import pytest
from openai.types import ImagesResponse

from tests.controlplane.demo.fakes import RawClient, post
from tests.controlplane.demo.provider.vendor_types import strictly


def is_png(data: str | None) -> bool:
    """Whether a text is the base64 of a PNG whose only picture data can be read."""
    content = base64.b64decode(data or "")
    start = content.index(b"IDAT") + 4
    return content.startswith(b"\x89PNG\r\n\x1a\n") and len(zlib.decompress(content[start:-16])) == 4


async def test_images_are_real_and_cost_tokens(client: openai.AsyncOpenAI) -> None:
    """Each image is a PNG; the newer models count the prompt and, by quality and shape, the images."""
    made = await client.images.generate(model="gpt-image-1", prompt="a bicycle", n=2, quality="low", size="1024x1024")
    assert made.usage is not None
    assert (544, 2) == (made.usage.output_tokens, made.usage.input_tokens_details.text_tokens)
    assert [True, True] == [is_png(image.b64_json) for image in made.data or ()]


async def test_older_models_have_links(client: openai.AsyncOpenAI) -> None:
    """The older models send a link, or the image when it is asked for, and no usage."""
    linked = await client.images.generate(model="dall-e-3", prompt="a bicycle")
    assert linked.data is not None
    assert linked.data[0].url is not None
    assert ("a bicycle", None) == (linked.data[0].revised_prompt, linked.usage)
    sent = await client.images.generate(model="dall-e-2", prompt="a bicycle", response_format="b64_json")
    assert sent.data is not None
    assert is_png(sent.data[0].b64_json)


async def test_edits_and_variations_take_pictures(client: openai.AsyncOpenAI) -> None:
    """Pictures come in a form; each one costs input tokens."""
    picture = ("a.png", b"png", "image/png")
    one = await client.images.edit(model="gpt-image-1", image=picture, prompt="a hat", quality="low")
    two = await client.images.edit(model="gpt-image-1", image=[picture, picture], prompt="a hat", quality="low")
    assert one.usage is not None
    assert two.usage is not None
    assert 2 * one.usage.input_tokens_details.image_tokens == two.usage.input_tokens_details.image_tokens > 0
    varied = await client.images.create_variation(image=picture, response_format="b64_json", n=2)
    assert len(varied.data or ()) == 2


async def test_streamed_image_comes_in_parts(client: openai.AsyncOpenAI) -> None:
    """Partial images come first; the last event carries the usage."""
    stream: Any = await client.images.generate(model="gpt-image-1", prompt="a bicycle", stream=True, partial_images=2)
    events = [event async for event in stream]
    assert ["image_generation.partial_image"] * 2 + ["image_generation.completed"] == [event.type for event in events]
    assert 4160 == events[-1].usage.output_tokens


async def test_answers_parse_into_the_vendors_type(raw: RawClient) -> None:
    """An answer has the fields of the SDK's type and no others."""
    await raw.send(post({"model": "gpt-image-1", "prompt": "a hat"}, path="/v1/images/generations"))
    strictly(ImagesResponse, json.loads((await raw.answer())[2]))


@pytest.mark.parametrize(
    ("fields", "status"), [({"prompt": ""}, 400), ({"model": "gpt-4o"}, 404), ({"n": 11}, 400), ({"nonsense": 1}, 400)]
)
async def test_mistakes_are_told(raw: RawClient, fields: dict[str, Any], status: int) -> None:
    """Each mistake has its status."""
    await raw.send(post({"prompt": "a hat"} | fields, path="/v1/images/generations"))
    assert status == (await raw.answer())[0]

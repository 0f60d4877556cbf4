"""Moderations as the official client sees them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types import ModerationCreateResponse

from tests.controlplane.demo.fakes import RawClient, post
from tests.controlplane.demo.provider.vendor_types import strictly


async def test_text_is_flagged_by_its_own_words(client: openai.AsyncOpenAI) -> None:
    """A text that says `flag:violence` is flagged for that alone; each text of a list gets its verdict."""
    made = await client.moderations.create(input=["Hello.", "Well flag:violence done"])
    assert [False, True] == [result.flagged for result in made.results]
    assert made.results[1].categories.violence
    assert not made.results[1].categories.hate
    assert made.results[1].category_scores.violence > 0.9 > 0.1 > made.results[1].category_scores.hate
    assert made.model == "omni-moderation-2024-09-26"
    assert made.id.startswith("modr-")


async def test_parts_of_a_message_are_judged_together(client: openai.AsyncOpenAI) -> None:
    """Text and picture of one message get one verdict."""
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]
    made = await client.moderations.create(model="omni-moderation-latest", input=parts)
    assert 1 == len(made.results)
    assert made.results[0].category_applied_input_types.violence == ["text", "image"]


async def test_answers_parse_into_the_vendors_type(raw: RawClient) -> None:
    """An answer has the fields of the SDK's type and no others."""
    await raw.send(post({"input": "Hi"}, path="/v1/moderations"))
    strictly(ModerationCreateResponse, json.loads((await raw.answer())[2]))


@pytest.mark.parametrize(("body", "status"), [({}, 400), ({"input": "a", "model": "gpt-4o"}, 404)])
async def test_mistakes_are_told(raw: RawClient, body: dict[str, Any], status: int) -> None:
    """An empty input or another kind of model is refused."""
    await raw.send(post(body, path="/v1/moderations"))
    assert status == (await raw.answer())[0]

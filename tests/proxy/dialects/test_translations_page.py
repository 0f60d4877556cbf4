"""The page about translations says the fate of every field that is read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proxy.dialects.translate_chat_request import ChatRequest
from proxy.dialects.translate_messages_request import MessagesRequest
from proxy.dialects.translate_responses_request import ResponsesRequest
from proxy.dialects.translations import TRANSLATIONS

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "translations.md").read_text()


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("## Chat to Messages", ChatRequest),
        ("## Messages to chat", MessagesRequest),
        ("## Responses to chat", ResponsesRequest),
    ],
)
def test_every_field_has_a_fate(title: str, struct: type[msgspec.Struct]) -> None:
    """A field that is added to a translation without a line on its page fails here."""
    table = PAGE.partition(title)[2].partition("\n## ")[0]
    rows = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert [] == [name for name in struct.__struct_fields__ if f"`{name}`" not in rows]


def test_every_translation_is_in_the_table() -> None:
    """Operation by operation."""
    for operation, _ in TRANSLATIONS:
        assert f"| `{operation}` |" in PAGE

"""The tokenizer finds its vocabulary without a network and without importing litellm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.demo.provider.tokens import Tokenizer

ENCODINGS = ("o200k_base", "cl100k_base")


@pytest.fixture(scope="module", params=ENCODINGS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the two tokenizers."""
    return Tokenizer(request.param)


@given(st.text(max_size=200))
def test_pieces_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    """The pieces of a text put together are the text, also where a character takes several tokens."""
    tokens = tokenizer.encode(text)
    pieces = tokenizer.pieces(tokens)
    assert len(tokens) == len(pieces) == tokenizer.count(text) == tokenizer.count(text)
    assert text == "".join(pieces) == tokenizer.decode(tokens)


def test_character_cut_in_half(tokenizer: Tokenizer) -> None:
    """A text that ends inside a character ends with the replacement character, in its pieces too."""
    tokens = tokenizer.encode("\U0001f9ff")
    assert len(tokens) > 1
    assert "�" in tokenizer.decode(tokens[:1])
    assert "�" in "".join(tokenizer.pieces(tokens[:1]))


def test_special_tokens_are_plain_text(tokenizer: Tokenizer) -> None:
    """A prompt cannot smuggle control tokens in."""
    assert tokenizer.count("<|endoftext|>") > 1


def test_nothing_is_left_behind() -> None:
    """Loading changes no environment variable and imports neither litellm nor anything that fetches."""
    script = (
        "import os, sys; before = dict(os.environ)\n"
        "from controlplane.demo.provider.tokens import Tokenizer\n"
        "assert Tokenizer('o200k_base').count('hello world') == 2\n"
        "assert before == dict(os.environ)\n"
        "assert not {'litellm', 'requests'} & set(sys.modules), 'imported too much'\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TIKTOKEN_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)

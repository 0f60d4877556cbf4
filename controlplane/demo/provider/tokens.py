"""Token counts of a real tokenizer, without a network: the vocabularies ship inside the litellm distribution.

litellm itself is not imported; only its folder is looked up.
"""

from __future__ import annotations

import importlib.util
import os
from collections import OrderedDict
from pathlib import Path

import tiktoken

COUNTS_MAX = 20_000  # texts whose count is remembered, per tokenizer
COUNTED_CHARS_MAX = 4_096  # longer texts are counted again each time
VARIABLE = "TIKTOKEN_CACHE_DIR"


class VocabularyMissing(RuntimeError):
    """The vocabulary files are not where litellm ships them."""


class Tokenizer:
    """Encodes text as one family of models does. Safe to share; counts of short texts are remembered."""

    def __init__(self, encoding_name: str) -> None:
        """encoding_name: `o200k_base` or `cl100k_base`. Raises VocabularyMissing."""
        self._encoding = _load(encoding_name)
        self._counts: OrderedDict[str, int] = OrderedDict()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; special tokens are plain text here."""
        return self._encoding.encode_ordinary(text)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        known = self._counts.get(text)
        if known is not None:
            return known
        count = len(self._encoding.encode_ordinary(text))
        if len(text) <= COUNTED_CHARS_MAX:
            self._counts[text] = count
            if len(self._counts) > COUNTS_MAX:
                self._counts.popitem(last=False)
        return count

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; a character cut in half becomes U+FFFD."""
        return self._encoding.decode(tokens, errors="replace")

    def pieces(self, tokens: list[int]) -> list[str]:
        """The text token by token; a token that ends inside a character gives "" and its text comes with the one that completes it."""
        pieces: list[str] = []
        held = b""
        for token in tokens:
            held += self._encoding.decode_single_token_bytes(token)
            try:
                piece = held.decode()
            except UnicodeDecodeError:
                pieces.append("")
                continue
            pieces.append(piece)
            held = b""
        if held:
            pieces[-1] = held.decode(errors="replace")
        return pieces


def _load(encoding_name: str) -> tiktoken.Encoding:
    """The encoding from litellm's folder; tiktoken is pointed there for the length of the load only."""
    found = importlib.util.find_spec("litellm")
    if found is None or found.origin is None:
        raise VocabularyMissing("litellm is not installed; its distribution carries the tokenizer vocabularies")
    folder = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
    if not folder.is_dir():
        raise VocabularyMissing(f"{folder} does not exist; this version of litellm ships no tokenizer vocabularies")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        return tiktoken.get_encoding(encoding_name)
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before

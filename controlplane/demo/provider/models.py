"""The models that the simulated provider serves."""

from __future__ import annotations

import msgspec

from controlplane.demo.provider import problems


class Model(msgspec.Struct, frozen=True):
    """One model: the name that answers carry, and what it can do."""

    name: str
    created: int
    kind: str = "chat"  # or "embeddings", "completions", "moderation", "speech", "transcription", "images"
    encoding: str = "o200k_base"
    context_tokens_max: int = 128_000
    output_tokens_max: int = 16_384
    reasons: bool = False  # spends hidden tokens before it answers
    dimensions: int = 0  # of an embedding
    shortens: bool = False  # takes `dimensions`
    cache_from_tokens: int = 1024  # of Anthropic: shorter prefixes are not written to the prompt cache


_CHAT = (
    Model("gpt-3.5-turbo-0125", 1706048358, encoding="cl100k_base", context_tokens_max=16_385, output_tokens_max=4_096),
    Model("gpt-4-0613", 1686588896, encoding="cl100k_base", context_tokens_max=8_192, output_tokens_max=8_192),
    Model("gpt-4o-2024-08-06", 1722814719),
    Model("gpt-4o-mini-2024-07-18", 1721172717),
    Model("gpt-4o-search-preview-2025-03-11", 1741388170),
    Model("gpt-4.1-2025-04-14", 1744315746, context_tokens_max=1_047_576, output_tokens_max=32_768),
    Model("gpt-4.1-mini-2025-04-14", 1744317547, context_tokens_max=1_047_576, output_tokens_max=32_768),
    Model("gpt-4.1-nano-2025-04-14", 1744321025, context_tokens_max=1_047_576, output_tokens_max=32_768),
    Model("o3-2025-04-16", 1744133301, context_tokens_max=200_000, output_tokens_max=100_000, reasons=True),
    Model("o3-mini-2025-01-31", 1738010200, context_tokens_max=200_000, output_tokens_max=100_000, reasons=True),
    Model("o4-mini-2025-04-16", 1744133506, context_tokens_max=200_000, output_tokens_max=100_000, reasons=True),
    Model("gpt-5-2025-08-07", 1754425777, context_tokens_max=400_000, output_tokens_max=128_000, reasons=True),
    Model("gpt-5-mini-2025-08-07", 1754425867, context_tokens_max=400_000, output_tokens_max=128_000, reasons=True),
    Model("gpt-5-nano-2025-08-07", 1754425928, context_tokens_max=400_000, output_tokens_max=128_000, reasons=True),
)
_EMBEDDINGS = (
    Model("text-embedding-ada-002", 1671217299, "embeddings", "cl100k_base", 8_192, dimensions=1536),
    Model("text-embedding-3-small", 1705948997, "embeddings", "cl100k_base", 8_192, dimensions=1536, shortens=True),
    Model("text-embedding-3-large", 1705953180, "embeddings", "cl100k_base", 8_192, dimensions=3072, shortens=True),
)
_OTHERS = (
    Model("gpt-3.5-turbo-instruct", 1692901427, "completions", "cl100k_base", 4_096, 4_096),
    Model("davinci-002", 1692634301, "completions", "cl100k_base", 16_384, 4_096),
    Model("babbage-002", 1692634615, "completions", "cl100k_base", 16_384, 4_096),
    Model("omni-moderation-2024-09-26", 1731689265, "moderation"),
    Model("tts-1", 1681940951, "speech"),
    Model("tts-1-hd", 1699046015, "speech"),
    Model("gpt-4o-mini-tts", 1742403959, "speech"),
    Model("whisper-1", 1677532384, "transcription"),
    Model("gpt-4o-transcribe", 1742068463, "transcription"),
    Model("gpt-4o-mini-transcribe", 1742068596, "transcription"),
    Model("dall-e-2", 1698798177, "images"),
    Model("dall-e-3", 1698785189, "images"),
    Model("gpt-image-1", 1745517030, "images"),
    Model("gpt-image-1-mini", 1758845821, "images"),
)
_ALIASES = {
    "omni-moderation-latest": "omni-moderation-2024-09-26",
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "gpt-4": "gpt-4-0613",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4o-search-preview": "gpt-4o-search-preview-2025-03-11",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o3": "o3-2025-04-16",
    "o3-mini": "o3-mini-2025-01-31",
    "o4-mini": "o4-mini-2025-04-16",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
}
_BY_NAME = {model.name: model for model in (*_CHAT, *_EMBEDDINGS, *_OTHERS)}
MODELS = _BY_NAME | {alias: _BY_NAME[name] for alias, name in _ALIASES.items()}
_CLAUDE = (
    Model("claude-3-5-haiku-20241022", 1729555200, context_tokens_max=200_000, output_tokens_max=8_192, cache_from_tokens=2048),
    Model("claude-opus-4-1-20250805", 1754352000, context_tokens_max=200_000, output_tokens_max=32_000, reasons=True),
    Model("claude-sonnet-4-5-20250929", 1759104000, context_tokens_max=200_000, output_tokens_max=64_000, reasons=True),
    Model("claude-haiku-4-5-20251001", 1759276800, context_tokens_max=200_000, output_tokens_max=64_000, reasons=True, cache_from_tokens=4096),
    Model("claude-opus-4-5-20251101", 1761955200, context_tokens_max=200_000, output_tokens_max=64_000, reasons=True, cache_from_tokens=4096),
    Model("claude-opus-4-6", 1770249600, context_tokens_max=1_000_000, output_tokens_max=128_000, reasons=True, cache_from_tokens=4096),
    Model("claude-sonnet-4-6", 1771286400, context_tokens_max=1_000_000, output_tokens_max=128_000, reasons=True),
    Model("claude-opus-4-8", 1779840000, context_tokens_max=1_000_000, output_tokens_max=128_000, reasons=True),
    Model("claude-sonnet-5", 1782864000, context_tokens_max=1_000_000, output_tokens_max=128_000, reasons=True),
    Model("claude-opus-5", 1784678400, context_tokens_max=1_000_000, output_tokens_max=128_000, reasons=True),
)  # fmt: skip
_CLAUDE_ALIASES = {
    "claude-3-5-haiku-latest": "claude-3-5-haiku-20241022",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-opus-4-5": "claude-opus-4-5-20251101",
}
CLAUDE_LISTED = tuple(reversed(_CLAUDE))  # the newest first, as Anthropic lists them
_CLAUDE_BY_NAME = {model.name: model for model in _CLAUDE}
CLAUDE = _CLAUDE_BY_NAME | {alias: _CLAUDE_BY_NAME[name] for alias, name in _CLAUDE_ALIASES.items()}


def list_body() -> bytes:
    """The answer to GET /v1/models."""
    data = [_described(name) for name in MODELS]
    return _laid_out({"object": "list", "data": data})


def one_body(name: str) -> bytes:
    """The answer to GET /v1/models/{name}. Raises Problem for a name that is not served."""
    if name not in MODELS:
        raise problems.unknown_model_listed(name)
    return _laid_out(_described(name))


def _described(name: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": MODELS[name].created, "owned_by": "system"}


def _laid_out(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"

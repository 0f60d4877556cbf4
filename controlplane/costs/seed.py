"""Makes the price book's data file from the installed litellm's price table; run by a developer, reviewed, committed.

    python -m controlplane.costs.seed --date 2026-11-20

Nothing is fetched: the table is the one inside the litellm package that the lock file pins, and this is the only place that reads it. Its
JSON is read as decimal text, so that no price ever passes through a float. The output is sorted, one model a line, so that a review sees what
changed. Left out are models without a price, since a missing price must never become zero.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import distribution
from pathlib import Path

TARGET = Path(__file__).with_name("prices.json")
PROVIDERS = frozenset(
    {
        "anthropic", "azure", "bedrock", "bedrock_converse", "cerebras", "cohere", "cohere_chat", "deepseek", "gemini", "groq", "mistral",
        "moonshot", "openai", "vertex_ai-anthropic_models", "vertex_ai-embedding-models", "vertex_ai-language-models", "voyage", "xai",
    }
)  # fmt: skip
MODES = frozenset(
    {"audio_speech", "audio_transcription", "chat", "completion", "embedding", "image_generation", "responses"}
)
KINDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cache_read": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_input": "input_cost_per_audio_token",
    "audio_output": "output_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "image_output": "output_cost_per_image_token",
}
"""Our kinds of tokens, and what litellm calls their price."""

_NANOUSD_PER_MILLION = Decimal(10) ** 15  # US dollars a token to nano-USD a million tokens


def nanousd_per_million(usd_per_token: Decimal) -> int:
    """A price in our unit, exactly; digits that a float left behind its fifteenth place are dropped.

    Raises ValueError for a price that is not close to a whole number of nano-USD per million tokens, or not a price at all.
    """
    exact = usd_per_token * _NANOUSD_PER_MILLION
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{usd_per_token} is no price")
    whole = exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)
    if abs(exact - whole) > Decimal("0.01"):
        raise ValueError(f"{usd_per_token} USD per token is finer than a nano-USD per million tokens")
    return int(whole)


def reduced(table: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The models that we keep, each with its prices in our unit, its mode, and whether long prompts cost more."""
    models: dict[str, dict[str, object]] = {}
    for name, entry in sorted(table.items()):
        if entry.get("litellm_provider") not in PROVIDERS or entry.get("mode") not in MODES:
            continue
        prices = {
            kind: nanousd_per_million(Decimal(str(entry[theirs])))
            for kind, theirs in KINDS.items()
            if entry.get(theirs) is not None
        }
        embedding = entry["mode"] == "embedding"
        prices = {kind: price for kind, price in prices.items() if price}  # zero means that nobody filled it in
        if not prices.get("input") or not (prices.get("output") or prices.get("image_output") or embedding):
            continue
        prices.setdefault("output", 0)
        tiered = any(key.startswith("input_cost_per_token_above_") for key in entry)
        models[name.lower()] = {**prices, "mode": entry["mode"], **({"tiered": True} if tiered else {})}
    return models


def render(models: dict[str, dict[str, object]], *, date: str, source_version: str) -> str:
    """The data file's text."""
    head = {
        "version": date,
        "date": date,
        "source": "litellm model_prices_and_context_window",
        "source_version": source_version,
        "unit": "nano-USD per million tokens",
        "count": len(models),
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in models.items()]
    return json.dumps(head)[:-1] + ', "models": {\n' + ",\n".join(lines) + "\n}}\n"


def main(arguments: list[str] | None = None) -> int:
    """The command; prints what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--date", required=True, type=dt.date.fromisoformat, help="effective date of the new book, YYYY-MM-DD"
    )
    parser.add_argument("--output", type=Path, default=TARGET, help="where to write it")
    options = parser.parse_args(arguments)
    source = distribution("litellm")
    text = Path(str(source.locate_file("litellm/model_prices_and_context_window_backup.json"))).read_text()
    models = reduced(json.loads(text, parse_float=Decimal))
    options.output.write_text(render(models, date=options.date.isoformat(), source_version=source.version))
    sys.stdout.write(
        f"{len(models)} prices of litellm {source.version} written to {options.output}; review the difference\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The data file is made from litellm's table without a float in between, and is the one that is committed."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.costs.seed import TARGET, main, nanousd_per_million, reduced, render, with_history


@given(st.integers(min_value=0, max_value=10**13))
def test_prices_are_exact(units: int) -> None:
    """Any whole number of nano-USD per million tokens, written as US dollars per token, comes back."""
    assert units == nanousd_per_million(Decimal(units) / Decimal(10**15))
    assert units == nanousd_per_million(json.loads(repr(units / 10**15), parse_float=Decimal) if units else Decimal(0))


@pytest.mark.parametrize("text", ["-1e-7", "1.5e-16", "NaN", "Infinity"])
def test_what_is_no_price_stops_the_command(text: str) -> None:
    """Negative, too fine and infinite prices are not rounded into something."""
    with pytest.raises(ValueError):
        nanousd_per_million(Decimal(text))


def test_only_priced_models_of_known_providers_are_kept() -> None:
    """Free, unpriced and foreign models are left out; long prompts, service classes, pictures and tools are kept, zeros vanish."""
    table: dict[str, dict[str, object]] = {
        "Good": {
            "litellm_provider": "openai",
            "mode": "chat",
            "input_cost_per_token": Decimal("1.5e-07"),
            "output_cost_per_token": Decimal("6e-07"),
            "cache_read_input_token_cost": 0,
            "max_output_tokens": 4_096,
            "search_context_cost_per_query": {
                "search_context_size_low": Decimal("0.03"),
                "search_context_size_medium": Decimal("0.035"),
            },
        },
        "tiered": {
            "litellm_provider": "gemini",
            "mode": "chat",
            "input_cost_per_token": Decimal("1e-06"),
            "output_cost_per_token": Decimal("1e-06"),
            "input_cost_per_token_above_200k_tokens": Decimal("2e-06"),
            "input_cost_per_token_batches": Decimal("5e-07"),
            "output_cost_per_token_above_200k_tokens_batches": Decimal("7e-07"),
            "output_cost_per_token_priority": 0,
        },
        "embed": {
            "litellm_provider": "openai",
            "mode": "embedding",
            "input_cost_per_token": Decimal("2e-08"),
            "output_cost_per_token": 0,
        },
        "free": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0},
        "half": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": Decimal("1e-06")},
        "foreign": {
            "litellm_provider": "nobody",
            "mode": "chat",
            "input_cost_per_token": Decimal("1e-06"),
            "output_cost_per_token": Decimal("1e-06"),
        },
        "image": {
            "litellm_provider": "openai",
            "mode": "image_generation",
            "input_cost_per_token": Decimal("1e-06"),
            "output_cost_per_image_token": Decimal("4e-06"),
        },
        "speaker": {
            "litellm_provider": "openai",
            "mode": "audio_speech",
            "input_cost_per_character": Decimal("1.5e-05"),
        },
        "listener": {
            "litellm_provider": "openai",
            "mode": "audio_transcription",
            "input_cost_per_second": Decimal("0.000283333333"),
            "output_cost_per_second": 0,
        },
        "picture": {"litellm_provider": "xai", "mode": "image_generation", "output_cost_per_image": Decimal("0.04")},
        "by-size": {"litellm_provider": "openai", "mode": "image_generation", "output_cost_per_image": Decimal("0.04")},
        "hd/1024-x-1792/by-size": {
            "litellm_provider": "openai",
            "mode": "image_generation",
            "input_cost_per_pixel": Decimal("6.539e-08"),
        },
        "high/1024-x-1024/image": {
            "litellm_provider": "openai",
            "mode": "image_generation",
            "input_cost_per_image": Decimal("0.167"),
        },
        "1024-x-1024/image": {
            "litellm_provider": "openai",
            "mode": "image_generation",
            "input_cost_per_image": Decimal("0.011"),
        },
        "openai/container": {
            "litellm_provider": "openai",
            "mode": "chat",
            "code_interpreter_cost_per_session": Decimal("0.03"),
        },
        "video": {
            "litellm_provider": "openai",
            "mode": "video_generation",
            "input_cost_per_token": Decimal("1e-06"),
            "output_cost_per_token": Decimal("1e-06"),
        },
    }
    assert {
        "embed": {"input": 20_000_000, "output": 0, "mode": "embedding"},
        "good": {
            "input": 150_000_000,
            "output": 600_000_000,
            "mode": "chat",
            "search": 35_000_000,
            "file_search": 2_500_000,
            "container": 30_000_000,
            "output_tokens_max": 4_096,
        },
        "by-size": {
            "input": 0,
            "output": 0,
            "mode": "image_generation",
            "pictures": {"hd/1024x1792": 119_991_000},
        },
        "image": {
            "input": 10**9,
            "image_output": 4 * 10**9,
            "output": 0,
            "mode": "image_generation",
            "pictures": {"high/1024x1024": 167_000_000},
        },
        "picture": {"input": 0, "output": 0, "picture": 40_000_000, "mode": "image_generation"},
        "listener": {"input": 0, "output": 0, "second": 283_333, "mode": "audio_transcription"},
        "speaker": {"input": 0, "output": 0, "character": 15_000, "mode": "audio_speech"},
        "tiered": {
            "input": 10**9,
            "output": 10**9,
            "mode": "chat",
            "long": {"200000": {"input": 2 * 10**9}},
            "service": {"batch": {"input": 500_000_000, "long": {"200000": {"output": 700_000_000}}}},
        },
    } == reduced(table)


def test_faster_answers_and_those_of_one_country_cost_more() -> None:
    """Anthropic's factors become classes, together and with the batch class; long prompts too, and nobody else's factors count."""
    entry: dict[str, object] = {
        "litellm_provider": "anthropic",
        "mode": "chat",
        "input_cost_per_token": Decimal("1e-06"),
        "output_cost_per_token": Decimal("2e-06"),
        "input_cost_per_token_above_200k_tokens": Decimal("3e-06"),
        "input_cost_per_token_batches": Decimal("5e-07"),
        "provider_specific_entry": {"us": Decimal("1.1"), "fast": 2},
    }
    rows = reduced({"claude": entry, "other": {**entry, "litellm_provider": "openai"}})
    usual = {"input": 10**9, "output": 2 * 10**9, "long": {"200000": {"input": 3 * 10**9}}}
    assert usual.items() <= rows["claude"].items()
    assert {
        "batch": {"input": 500_000_000},
        "fast": {"input": 2 * 10**9, "output": 4 * 10**9, "long": {"200000": {"input": 6 * 10**9}}},
        "us": {"input": 1_100_000_000, "output": 2_200_000_000, "long": {"200000": {"input": 3_300_000_000}}},
        "batch+us": {"input": 550_000_000},
        "fast+us": {"input": 2_200_000_000, "output": 4_400_000_000, "long": {"200000": {"input": 6_600_000_000}}},
    } == rows["claude"]["service"]
    assert {"batch": {"input": 500_000_000}} == rows["other"]["service"]


def test_the_committed_file_is_what_the_command_makes(tmp_path: Path) -> None:
    """With the litellm of the lock file and the file's own date, the command writes the committed file to the byte."""
    head = json.loads(TARGET.read_text())
    assert 0 == main(["--date", head["date"], "--output", str(tmp_path / "prices.json")])
    assert TARGET.read_bytes() == (tmp_path / "prices.json").read_bytes()


def test_one_model_is_one_line() -> None:
    """The file can be reviewed line by line and says where it is from and how many there are."""
    text = render({"a": {"input": 1}, "b": {"input": 2}}, date="2026-01-01", source_version="1.2.3")
    assert 4 == len(text.splitlines())
    parsed = json.loads(text)
    assert ("2026-01-01", "1.2.3", 2) == (parsed["date"], parsed["source_version"], parsed["count"])


def test_a_changed_price_is_remembered() -> None:
    """What a model cost before is kept with its last day; an unchanged price keeps the history it had."""
    earlier: dict[str, dict[str, object]] = {
        "a": {"input": 1, "was": [{"input": 9, "until": "2025-01-01"}]},
        "b": {"input": 2},
    }
    models: dict[str, dict[str, object]] = {"a": {"input": 3}, "b": {"input": 2}, "c": {"input": 4}}
    once = with_history(models, earlier, until="2026-01-01")
    kept = [{"input": 9, "until": "2025-01-01"}, {"input": 1, "until": "2026-01-01"}]
    assert {"a": {"input": 3, "was": kept}, "b": {"input": 2}, "c": {"input": 4}} == once
    assert once == with_history(models, once, until="2026-02-01")
    longer = {name: {**row, "output_tokens_max": 9} for name, row in models.items()}
    assert {name: row.get("was") for name, row in once.items()} == {
        name: row.get("was") for name, row in with_history(longer, once, until="2026-03-01").items()
    }

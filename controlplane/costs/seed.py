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
import re
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
UNITS = {"second": "input_cost_per_second", "character": "input_cost_per_character"}
"""What models that hear or speak bill by when they count no tokens: our names, and what litellm calls the price of one."""
SERVICES = {"batch": "batches", "flex": "flex", "priority": "priority"}
"""Our names of service classes, which are the providers' own, and what litellm's names end with."""
ANSWERING = frozenset(("chat", "completion", "responses"))
"""Modes in which an answer has a length, and the model a longest one."""
LONGEST = "output_tokens_max"
TOOLS = ("search", "file_search", "container")
NO_HISTORY = frozenset((LONGEST, *TOOLS))
"""What is not remembered of an earlier book: a length is no price, and what tools did is not costed again."""
FILE_SEARCH_USD = {"openai": Decimal("0.0025")}
"""One search in files, by provider. Source: OpenAI's price list; litellm has it in its code, not in its table."""
CONTAINER_GIGABYTE = "code_interpreter_cost_per_session"
"""Of the rows `openai/container` and `azure/container`, which stand for one gigabyte: larger ones cost as many times as much."""
ASSISTED = frozenset(("chat", "responses"))
"""Modes of models that can use a provider's own tools."""
_PICTURE = re.compile(r"(?P<maker>azure/)?(?:(?P<quality>[a-z]+)/)?(?P<wide>\d+)-x-(?P<high>\d+)/(?P<model>[^/]+)\Z")
BY_SIZE, ONE_PICTURE = frozenset(("openai", "azure")), frozenset(("gemini", "xai"))
"""Providers whose pictures cost by quality and size, and those at which all of a model cost the same."""
_DRAWN = ("output_cost_per_image", "input_cost_per_image")
_GUIDED_QUALITIES = frozenset(("low", "medium", "high"))
_ABOVE = re.compile(r"_above_(\d+)k_tokens")

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
    """The models that we keep, each with its prices in our unit, its mode, its longest answer, and what long prompts and service classes cost."""
    models: dict[str, dict[str, object]] = {}
    for name, entry in sorted(table.items()):
        if entry.get("litellm_provider") not in PROVIDERS or entry.get("mode") not in MODES:
            continue
        if _PICTURE.match(name):
            continue  # one size of a model
        prices = _kinds(entry, "")
        if entry["mode"] == "image_generation" and not prices.get("input"):
            picture = _nanousd(next((entry[key] for key in _DRAWN if entry.get(key)), None))
            if picture and entry["litellm_provider"] in ONE_PICTURE:
                models[name.lower()] = {"input": 0, "output": 0, "picture": picture, "mode": entry["mode"]}
            continue
        if not prices and entry["mode"] in ("audio_speech", "audio_transcription"):
            if units := _units(entry):
                models[name.lower()] = {"input": 0, "output": 0, **units, "mode": entry["mode"]}
            continue
        embedding = entry["mode"] == "embedding"
        if not prices.get("input") or not (prices.get("output") or prices.get("image_output") or embedding):
            continue
        prices.setdefault("output", 0)
        row: dict[str, object] = {**prices, "mode": entry["mode"], **_long(entry, "")}
        service = {
            ours: {**_kinds(entry, f"_{theirs}"), **_long(entry, f"_{theirs}")} for ours, theirs in SERVICES.items()
        }
        service = {ours: kinds for ours, kinds in service.items() if kinds}
        if service := service | _dearer(entry, {"": {**prices, **_long(entry, "")}, **service}):
            row["service"] = service
        row |= _tools(entry, table)
        longest = entry.get("max_output_tokens")
        if entry["mode"] in ANSWERING and isinstance(longest, int) and longest > 0:
            row[LONGEST] = longest
        models[name.lower()] = row
    for name, pictures in _pictures(table).items():
        models.setdefault(name, {"input": 0, "output": 0, "mode": "image_generation"})["pictures"] = pictures
    return dict(sorted(models.items()))


def _nanousd(usd: object) -> int:
    """An amount of US dollars in nano-USD, rounded; 0: there is none."""
    return int((Decimal(str(usd)) * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_UP)) if usd else 0


def _tools(entry: dict[str, object], table: dict[str, dict[str, object]]) -> dict[str, int]:
    """What the provider's own tools cost: nano-USD for one search, one search in files, one gigabyte of a container."""
    found = {"search": _search(entry)}
    if entry["mode"] in ASSISTED:
        provider = str(entry["litellm_provider"])
        found["file_search"] = _nanousd(FILE_SEARCH_USD.get(provider))
        found["container"] = _nanousd(table.get(f"{provider}/container", {}).get(CONTAINER_GIGABYTE))
    return {kind: price for kind, price in found.items() if price}


def _pictures(table: dict[str, dict[str, object]]) -> dict[str, dict[str, int]]:
    """What one picture costs by quality and size, by model; the table has a row for each, some with the price of a pixel.

    Models whose quality is low, medium or high choose it where nobody does, so what the table has without such a quality is left out.
    """
    found: dict[str, dict[str, int]] = {}
    for name, entry in sorted(table.items()):
        match = _PICTURE.match(name.lower())
        if match is None or entry.get("litellm_provider") not in BY_SIZE or entry.get("mode") != "image_generation":
            continue
        usd = next((Decimal(str(entry[key])) for key in _DRAWN if entry.get(key)), None)
        wide, high = int(match["wide"]), int(match["high"])
        if usd is None and entry.get("input_cost_per_pixel"):
            usd = (Decimal(str(entry["input_cost_per_pixel"])) * wide * high).quantize(Decimal("0.000001"))
        if usd:
            size = f"{wide}x{high}"
            place = f"{match['quality']}/{size}" if match["quality"] else size
            found.setdefault((match["maker"] or "") + match["model"], {})[place] = _nanousd(usd)
    for pictures in found.values():
        if any(place.partition("/")[0] in _GUIDED_QUALITIES for place in pictures):
            for place in [place for place in pictures if place.partition("/")[0] not in _GUIDED_QUALITIES]:
                del pictures[place]
    return found


def _units(entry: dict[str, object]) -> dict[str, int]:
    """The prices of one second or one character, in nano-USD, rounded: published ones are fractions of a minute's."""
    found = {
        unit: int((Decimal(str(entry[theirs])) * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_UP))
        for unit, theirs in UNITS.items()
        if entry.get(theirs)
    }
    return {unit: price for unit, price in found.items() if price}


def _dearer(entry: dict[str, object], classes: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """What Anthropic's faster answers cost, and those of each class for whose data it keeps to one country: factors of the other prices."""
    factors = entry.get("provider_specific_entry")
    if entry.get("litellm_provider") != "anthropic" or not isinstance(factors, dict):
        return {}
    found: dict[str, dict[str, object]] = {}
    if "fast" in factors:
        found["fast"] = _times(classes[""], Decimal(str(factors["fast"])))
    if "us" in factors:
        for name, kinds in {**classes, **found}.items():
            found[f"{name}+us" if name else "us"] = _times(kinds, Decimal(str(factors["us"])))
    return found


def _times(kinds: dict[str, object], factor: Decimal) -> dict[str, object]:
    """The same prices, so many times as high; those of long prompts too."""
    result: dict[str, object] = {}
    for kind, amount in kinds.items():
        if isinstance(amount, int):
            result[kind] = int((amount * factor).quantize(Decimal(1), rounding=ROUND_HALF_UP))
        elif isinstance(amount, dict):
            result[kind] = {above: _times(row, factor) for above, row in amount.items()}
    return result


def _search(entry: dict[str, object]) -> int:
    """The price of one search of the web, in nano-USD, at the usual size of its context; 0: none is published."""
    sizes = entry.get("search_context_cost_per_query")
    usd = sizes.get("search_context_size_medium") if isinstance(sizes, dict) else None
    return _nanousd(usd)


def _kinds(entry: dict[str, object], ending: str) -> dict[str, int]:
    """The prices whose names end so; zero means that nobody filled it in."""
    found = {
        kind: nanousd_per_million(Decimal(str(entry[theirs + ending])))
        for kind, theirs in KINDS.items()
        if entry.get(theirs + ending) is not None
    }
    return {kind: price for kind, price in found.items() if price}


def _long(entry: dict[str, object], ending: str) -> dict[str, object]:
    """What prompts above each threshold cost."""
    marks = {match[0]: int(match[1]) * 1000 for key in entry if (match := _ABOVE.search(key))}
    rows = {
        str(above): _kinds(entry, f"{mark}{ending}") for mark, above in sorted(marks.items(), key=lambda item: item[1])
    }
    rows = {above: kinds for above, kinds in rows.items() if kinds}
    return {"long": rows} if rows else {}


def with_history(
    models: dict[str, dict[str, object]], earlier: dict[str, dict[str, object]], *, until: str
) -> dict[str, dict[str, object]]:
    """The same models, each with what it cost before under `was`, so that history can be costed again at the price of its day.

    earlier: the models of the book that this one replaces; until: the last day on which they were the published prices.
    """
    result: dict[str, dict[str, object]] = {}
    for name, row in models.items():
        before = dict(earlier.get(name, {}))
        was = before.pop("was", [])
        before = {field: amount for field, amount in before.items() if field not in NO_HISTORY}
        if before and before != {field: amount for field, amount in row.items() if field not in NO_HISTORY}:
            was = [*(was if isinstance(was, list) else []), {**before, "until": until}]
        result[name] = {**row, "was": was} if was else row
    return result


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
    if options.output.exists():
        before = json.loads(options.output.read_text())
        if before["date"] < options.date.isoformat():
            until = (options.date - dt.timedelta(days=1)).isoformat()
            models = with_history(models, before["models"], until=until)
    options.output.write_text(render(models, date=options.date.isoformat(), source_version=source.version))
    sys.stdout.write(
        f"{len(models)} prices of litellm {source.version} written to {options.output}; review the difference\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of results, `docs/reference/benchmarks.md`: goals beside what was measured, from the files under results/."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any  # result files: JSON, each benchmark its own

from benchmarks.results import FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "benchmarks.md"
PARTS = ("gateway", "streams", "workers", "profile", "soak")
_HEAD = """# What the benchmarks found

<!-- Written by benchmarks/summary.py from benchmarks/results/*.json; `make bench` measures, `make docs` writes. -->

How to run and read them: [benchmarks](../how-to/benchmarks.md).
Times are CPU time, user and system, of the gateway's processes; never compare those of two runs, only their ratios.
"""

Document = dict[str, Any]


def page() -> str:
    """The page as the result files have it."""
    found = {name: _load(name) for name in PARTS if (FOLDER / f"{name}.json").exists()}
    sections = [_HEAD, *_goals(found)]
    if "gateway" in found:
        sections += _gateways(found["gateway"])
    if "profile" in found and "profiles" in found["profile"]["figures"]:
        sections += _features(found["profile"])
    sections += _provenance(found)
    return "\n".join(sections)


def write() -> None:
    """Writes the page."""
    PAGE.write_text(page())


def _load(name: str) -> Document:
    document: Document = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: int = 0) -> str:
    """numbers: so many columns, the last ones, are set to the right."""
    names = list(head)
    marks = ["---"] * (len(names) - numbers) + ["--:"] * numbers
    lines = [names, marks, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _goals(found: dict[str, Document]) -> Iterator[str]:
    rows = [
        (goal["name"], goal["limit"], goal["reached"], "met" if goal["met"] else "**missed**")
        for document in found.values()
        for goal in document.get("goals", [])
    ]
    yield "## Goals\n"
    yield _table(("Figure", "Goal", "Measured", ""), rows)


def _gateways(document: Document) -> Iterator[str]:
    yield "## Beside other gateways\n"
    yield f"Medians of {document['figures']['rounds']} interleaved runs, one worker or process each.\n"
    for scenario, gateways in document["figures"]["scenarios"].items():
        rows = (
            (
                name,
                f"{row['cpu_us_per_call']:.0f}",
                f"{row['calls_per_s']:.0f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['rss_mib']:.0f}",
                f"{row['errors']:.0f}",
            )
            for name, row in gateways.items()
        )
        yield f"### {scenario[0].upper()}{scenario[1:]}\n"
        head = ("Gateway", "CPU µs/call", "calls/s", "p50 ms", "p99 ms", "RSS MiB", "errors")
        yield _table(head, rows, numbers=6)


def _features(document: Document) -> Iterator[str]:
    costs = document["figures"]["cpu_us_by_features"]
    yield "## What a feature costs\n"
    yield "A pass-through call on one worker with features switched off one at a time; the cache's memory is full, so that answers go to disk.\n"
    rows = ((name, f"{cost:.0f}", f"{costs['all'] - cost:.0f}") for name, cost in costs.items())
    yield _table(("Features", "CPU µs/call", "saved"), rows, numbers=2)
    profiles = document["figures"]["profiles"]
    parts = sorted({part for profile in profiles.values() for part in profile["us_by_part"]})
    parts.sort(key=lambda part: -profiles["pass-through"]["us_by_part"].get(part, 0.0))
    yield "## Where the time goes\n"
    yield "By samples of CPU time, in µs for each call; a call of `stream` has a hundred events.\n"
    shown = (
        (part, *(f"{profile['us_by_part'].get(part, 0.0):.1f}" for profile in profiles.values())) for part in parts
    )
    yield _table(("Part", *profiles), shown, numbers=len(profiles))
    yield "The dearest functions, with what they call in C and in libraries:\n"
    for name in profiles:
        functions = list(profiles[name]["us_by_function"].items())[:12]
        yield f"- {name}: " + ", ".join(f"`{function}` {cost:.1f}" for function, cost in functions)
    yield ""


def _build(document: Document) -> str:
    """What makes this Python slower than the image's, where it is known."""
    return ", built without optimizations" if document["machine"].get("python_optimized") is False else ""


def _provenance(found: dict[str, Document]) -> Iterator[str]:
    yield "## How it was measured\n"
    rows = (
        (
            f"`{document['command']}`",
            document["measured_at"],
            f"`{document['commit']}`",
            f"{document['machine']['cores']} × {document['machine']['cpu']}, Python {document['machine']['python']}{_build(document)}",
            document["what_it_does_not_show"],
        )
        for document in found.values()
    )
    yield _table(("Command", "When", "Commit", "Machine", "What it does not show"), rows)

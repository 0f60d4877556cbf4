"""What a test of a client shows: the mark from which the conformance page is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

HERE = Path(__file__).parent
_MARK = re.compile(r"^@shows\(([^)]*)\)(?=\n(?:(?!def |async def |class ).*\n)*(?:async )?def (\w+))", re.MULTILINE)
_WORD = re.compile(r'"([^"]*)"')
FEATURES = {
    "plain": "a whole answer",
    "stream": "an answer as it is made",
    "async": "the asynchronous client, of Node the only one",
    "tools": "tool calls",
    "structured": "answers that fit a schema",
    "images": "images in the request",
    "embeddings": "embeddings",
    "state": "conversations kept by the provider",
    "usage": "token counts, prompt cache included",
    "retries": "its own retries",
    "time-outs": "its own time-outs",
    "errors": "errors as its own exceptions",
    "cross": "a model of the other protocol",
    "models": "the list of models",
    "media": "sound and pictures",
    "batches": "batches, with their files",
}
"""Columns of the page, each with what it means."""


def shows(client: str, *features: str) -> Callable[[Test], Test]:
    """Marks a test: it passes only if these features of this client work through the proxy."""
    if not client or not features or not set(features) <= FEATURES.keys():
        raise ValueError(f"{client} shows {features}; known are {', '.join(FEATURES)}")

    def mark(test: Test) -> Test:
        return test

    return mark


def shown() -> dict[str, dict[str, list[str]]]:
    """Clients with their features, and for each the tests that show it, read from the sources."""
    table: dict[str, dict[str, list[str]]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for name, client, features in _marks(path):
            for feature in features:
                table.setdefault(client, {}).setdefault(feature, []).append(f"{path.stem}.{name}")
    return table


def page() -> str:
    """The conformance page."""
    table = shown()
    columns = [feature for feature in FEATURES if any(feature in cells for cells in table.values())]
    lines = [
        "# Clients that work",
        "",
        "Each mark stands for a test of the suite, in which this client, unchanged but for its base URL and key, does this through real",
        "processes: a proxy, a control plane and a simulated provider.",
        "A cell without a mark is not tested; most often the client has no such feature.",
        "This page is made from those tests by `make docs`; the tests run with `make test`.",
        "",
        "| client | " + " | ".join(columns) + " |",
        "|---|" + ":-:|" * len(columns),
    ]
    lines += [
        f"| {client} | " + " | ".join("✓" if column in cells else "" for column in columns) + " |"
        for client, cells in table.items()
    ]
    lines += ["", "## What the columns mean", ""]
    lines += [f"- *{column}*: {FEATURES[column]}" for column in columns]
    lines += ["", "## The tests", ""]
    lines += [f"- {client}: {', '.join(sorted(_tests(cells)))}" for client, cells in table.items()]
    return "\n".join(lines) + "\n"


def _tests(cells: dict[str, list[str]]) -> set[str]:
    return {f"`{test}`" for tests in cells.values() for test in tests}


def _marks(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """By the text alone: CPython 3.11 sometimes cannot make a syntax tree in a process whose stack was used up once."""
    for arguments, name in _MARK.findall(path.read_text(encoding="utf-8")):
        client, *features = _WORD.findall(arguments)
        yield name, client, features

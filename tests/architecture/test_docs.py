"""The reference is in step with the code: every setting, metric, refusal, table and command has its line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_the_reference_is_what_the_code_says(name: str) -> None:
    """Each generated page is as `make docs` would write it now."""
    page = ROOT / "docs" / "reference" / name
    assert generate.PAGES[name]() == page.read_text(), (
        f"docs/reference/{name} is out of step: run `make docs` and commit it"
    )


def test_every_row_of_the_reference_has_a_meaning() -> None:
    """No setting, metric, column or option is documented with an empty cell."""
    silent = [
        f"{name}: {line}"
        for name in generate.PAGES
        for line in generate.PAGES[name]().splitlines()
        if line.startswith("| `") and line.endswith("|  |")
    ]
    assert silent == []


def test_every_decision_is_numbered_and_has_its_parts() -> None:
    """Decisions are numbered without a gap, and say status, context, decision and consequences."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        for part in ("**Status:**", "**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, f"{page.name} lacks {part}"


def test_every_page_is_reachable() -> None:
    """The index of the documentation has a link to every page."""
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    pages = [str(page.relative_to(docs)) for page in sorted(docs.rglob("*.md")) if page.parent != docs]
    assert [] == [page for page in pages if f"({page})" not in index]

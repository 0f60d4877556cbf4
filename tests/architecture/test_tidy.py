"""The house can be seen: sizes, names, docstrings and leftovers."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("controlplane", "proxy", "detectors", "dashboards")
BANNED_NAMES = {"utils", "helpers", "common", "misc", "util", "helper", "base_utils"}
LINES_MAX = 500
TEST_LINES_MAX = 800
FUNCTION_LINES_MAX = 60


def _tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def _sources() -> list[Path]:
    return [path for path in _tracked("*.py") if path.relative_to(ROOT).parts[0] in PACKAGES]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_the_wall() -> None:
    """A source file has at most 500 lines, a test file 800."""
    long = []
    for path in _tracked("*.py"):
        lines = len(path.read_text().splitlines())
        wall = LINES_MAX if path.relative_to(ROOT).parts[0] in PACKAGES else TEST_LINES_MAX
        if lines > wall:
            long.append(f"{path.relative_to(ROOT)}: {lines}")
    assert [] == long


def test_no_function_is_longer_than_a_screen() -> None:
    """A function has at most 60 lines, its docstring left out."""
    long = []
    for path in _sources():
        for node in _functions(ast.parse(path.read_text())):
            first = node.body[0]
            has_docstring = (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            )
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if length > FUNCTION_LINES_MAX:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}")
    assert [] == long


def test_no_module_is_called_utils() -> None:
    """Files are named for their one idea."""
    assert [] == [
        str(path.relative_to(ROOT))
        for path in _tracked("*.py")
        if path.stem in BANNED_NAMES or re.search(r"_v\d+$", path.stem)
    ]


def test_nothing_is_left_for_later() -> None:
    """No reminders, no stubs and no commented-out escape hatches stand in the sources."""
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|pragma: no cover")
    here = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked("*.py")
        if path != here
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert [] == found


def test_every_test_states_its_behaviour() -> None:
    """Each test has one sentence that states the behaviour."""
    silent = []
    for path in _tracked("tests/**/test_*.py"):
        for node in _functions(ast.parse(path.read_text())):
            if node.name.startswith("test_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert [] == silent


def test_tests_do_not_sleep() -> None:
    """No test waits for wall-clock time by sleeping; polling loops and the pace of load live in the real-process harness alone."""
    allowed = {ROOT / "tests/e2e/processes.py", ROOT / "tests/e2e/load.py", Path(__file__)}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked("tests/**/*.py")
        if path not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\btime\.sleep\(|asyncio\.sleep\((?!0\))", line)
    ]
    assert [] == found


def test_the_project_speaks_of_itself_alone() -> None:
    """No tracked text names a path of the machine it was made on."""
    words = re.compile("/wo" + r"rk/|/ro" + r"ot/|\.\./sha" + r"red|/opt/wh" + "eels")
    found = []
    for path in _tracked("*"):
        if path.suffix in {".png", ".lock"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if words.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert [] == found


def test_every_markdown_page_has_one_title() -> None:
    """A documentation page has exactly one first-level heading, on its first line."""
    wrong = []
    for path in _tracked("*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        titles = [line for line in text.splitlines() if line.startswith("# ")]
        if len(titles) != 1 or not text.startswith("# "):
            wrong.append(str(path.relative_to(ROOT)))
    assert [] == wrong


def test_every_link_between_pages_leads_somewhere() -> None:
    """A relative link in the documentation points at a file that exists."""
    dead = []
    for path in _tracked("*.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)} -> {target}")
    assert [] == dead

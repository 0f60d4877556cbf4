"""Good playbooks pass, bad ones are refused with file, line and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlplane.errors import ConfigError
from controlplane.healing.lint import lint, load_library

DATA = Path(__file__).parent / "testdata"
BAD = sorted(DATA.glob("*.bad.yaml"))
EXAMPLE = (DATA / "example.yaml").read_text()


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name.removesuffix(".bad.yaml"))
def test_a_bad_playbook_is_refused_where_it_is_wrong(path: Path) -> None:
    """Each file has one mistake; its first line says at which line it is found and in which words."""
    text = path.read_text()
    match = re.match(r"# expect (\d+): (.*)\n", text)
    assert match is not None
    with pytest.raises(ConfigError) as caught:
        lint(text, path.name)
    (problem,) = caught.value.problems
    assert match[2] in str(problem)
    assert (path.name, int(match[1])) == (problem.file, problem.line)


def test_the_table_of_bad_playbooks_is_complete() -> None:
    """The table has not shrunk by accident."""
    assert len(BAD) >= 25


def test_the_example_passes() -> None:
    """What the bad files are made from is itself fine."""
    assert "example" == lint(EXAMPLE, "example.yaml").id


def test_every_problem_is_told_at_once() -> None:
    """A playbook with three mistakes gets three answers, in the order of lines."""
    text = EXAMPLE.replace("routing.drain", "routing.drian").replace("route.success_ratio", "nonsense")
    text = text.replace("risk: low", "risk: high")
    with pytest.raises(ConfigError) as caught:
        lint(text, "x.yaml")
    assert [10, 24, 33] == [problem.line for problem in caught.value.problems]


def test_the_built_in_library_loads() -> None:
    """Every playbook that ships passes its own linter and has a hash."""
    (loaded,) = load_library()
    assert ("provider-outage-failover", 16) == (loaded.playbook.id, len(loaded.hash))


def test_a_folder_adds_and_replaces_playbooks(tmp_path: Path) -> None:
    """Own playbooks stand beside the built-in ones, and one with the same id takes its place."""
    (tmp_path / "example.yaml").write_text(EXAMPLE)
    (tmp_path / "other.yaml").write_text(EXAMPLE.replace("id: example", "id: provider-outage-failover"))
    (tmp_path / "notes.txt").write_text("not a playbook")
    loaded = {entry.playbook.id: entry for entry in load_library(tmp_path)}
    assert ["example", "provider-outage-failover"] == list(loaded)
    assert loaded["provider-outage-failover"].file.endswith("other.yaml")


def test_overrides_replace_single_values_and_the_hash() -> None:
    """A value named by its path is replaced, steps by their id; the hash tells the two apart."""
    (plain,) = load_library()
    changes: dict[str, str | int | float | bool] = {"validate.bake": "11s", "steps.drain.lease.ttl": "21s"}
    (changed,) = load_library(overrides={"provider-outage-failover": changes})
    assert 11.0 == changed.playbook.validation.bake
    lease = changed.playbook.step("drain").lease
    assert lease is not None
    assert 21.0 == lease.ttl
    assert plain.hash != changed.hash


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"provider-outage-failovr": {"validate.bake": "1s"}}, "did you mean `provider-outage-failover`"),
        ({"provider-outage-failover": {"validate.bakes": "1s"}}, "unknown key `bakes`"),
        ({"provider-outage-failover": {"validate.bake": "soon"}}, "'soon' is no duration"),
        ({"provider-outage-failover": {"steps.none.timeout": "1s"}}, "not in this playbook"),
        ({"provider-outage-failover": {"autonomy.default.deeper": "1s"}}, "not in this playbook"),
        ({"provider-outage-failover": {"validate.every": "1h"}}, "`every` must be"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[str, dict[str, str]], message: str) -> None:
    """Overrides are linted as if they had been written in the file."""
    with pytest.raises(ConfigError, match=message):
        load_library(overrides=overrides)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A file that is no text is named."""
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the playbooks"):
        load_library(tmp_path)

"""Commands that need no running process: configuration, playbooks, dashboards, version."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from controlplane import __version__
from controlplane import healing as library
from controlplane.__main__ import COMMANDS, main
from controlplane.catalog.load import load
from tests.controlplane.cli.conftest import Shell


def test_every_command_helps() -> None:
    """`--help` of each command and of each of its sub-commands ends with status 0 and says what it does."""
    for name in COMMANDS:
        command = main.get_command(None, name)  # type: ignore[arg-type]  # our group needs no context
        assert command is not None
        assert command.help, name
        for sub, one in getattr(command, "commands", {}).items():
            assert one.help, f"{name} {sub}"
        assert 0 == CliRunner().invoke(main, [name, "--help"]).exit_code


def test_the_version_is_the_packages() -> None:
    """One line."""
    assert f"{__version__}\n" == CliRunner().invoke(main, ["version"]).stdout


def test_a_good_file_is_fine(shell: Shell) -> None:
    """Status 0 and a sentence; JSON for programs."""
    result = shell.run("check-config", str(shell.config), config=False)
    assert 0 == result.exit_code, result.output
    assert "2 models, 2 tenants" in result.stdout


def test_a_file_whose_calls_would_fail_is_not_fine(shell: Shell) -> None:
    """A credential that cannot be read is an error with file and line, and status 1."""
    text = shell.config.read_text().replace('/v1"}', '/v1", credential: "env:HEPH_TEST_NOT_SET"}')
    shell.config.write_text(text)
    result = shell.run("check-config", str(shell.config), config=False)
    assert 1 == result.exit_code
    assert "HEPH_TEST_NOT_SET" in result.stdout
    assert "hephaestus.yaml:5" in result.stdout
    assert "not fit to serve" in result.stdout


@pytest.mark.parametrize("words", [("check-config",), ("check-config", "/nowhere/at/all.yaml")])
def test_a_file_that_is_not_there_is_bad_usage_or_a_sentence(shell: Shell, words: tuple[str, ...]) -> None:
    """Never a traceback."""
    result = shell.run(*words, config=False)
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output


def test_playbooks_are_listed(shell: Shell) -> None:
    """The built-in ones, with the hash that runs carry."""
    listed = shell.json("playbooks", "list")
    assert isinstance(listed, list)
    assert "provider-outage-failover" in {one["id"] for one in listed}
    assert {"id", "version", "hash", "file"} == set(listed[0])
    assert "F01.provider_outage" in shell.run("playbooks", "list").stdout


def test_a_playbook_is_linted(shell: Shell, tmp_path: Path) -> None:
    """The built-in one has no mistakes; each mistake in another is told with its line."""
    listed = shell.json("playbooks", "list")
    assert isinstance(listed, list)
    name = next(Path(one["file"]).name for one in listed if one["id"] == "provider-outage-failover")
    built_in = Path(library.__file__).parent / "library" / name
    fine = shell.run("playbooks", "lint", str(built_in), config=False)
    assert (0, "1 playbook, no mistakes\n") == (fine.exit_code, fine.stdout)
    bad = tmp_path / "bad.yaml"
    bad.write_text(built_in.read_text().replace("bake: 2m", "bake: soon"))
    result = shell.run("playbooks", "lint", str(bad), str(built_in), config=False)
    assert 1 == result.exit_code
    assert f"{bad}:" in result.stderr
    assert "soon" in result.stderr


@pytest.mark.parametrize(
    "words", [("incidents", "list"), ("incidents", "show", "inc_1"), ("playbooks", "runs"), ("playbooks", "stop")]
)
def test_without_a_control_plane_it_says_how_to_start_one(shell: Shell, words: tuple[str, ...]) -> None:
    """What only the running process knows ends with status 1 and one sentence."""
    result = shell.run(*words)
    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: ")
    assert "hephaestus" in result.stderr


def test_the_dashboards_are_in_step() -> None:
    """The committed files are what would be built."""
    result = CliRunner().invoke(main, ["dashboards", "check"])
    assert (0, "the dashboards are in step\n") == (result.exit_code, result.output)


def test_dashboards_need_a_token(shell: Shell) -> None:
    """The sentence names the variable."""
    words = ("dashboards", "push", "--url", "http://127.0.0.1:9", "--token-variable", "HEPH_TEST_NOT_SET")
    result = shell.run(*words, config=False)
    assert 1 == result.exit_code
    assert "HEPH_TEST_NOT_SET is not set" in result.stderr


def test_a_litellm_configuration_is_imported(tmp_path: Path) -> None:
    """The command writes a configuration, says what became of each setting, and overwrites nothing."""
    theirs, ours = tmp_path / "config.yaml", tmp_path / "ours.yaml"
    theirs.write_text("model_list: [{model_name: m, litellm_params: {model: openai/gpt-4o}}]\nunknown: 1\n")
    done = CliRunner().invoke(main, ["import", "litellm", str(theirs), "--output", str(ours)])
    assert 0 == done.exit_code
    assert "refused" in done.output
    assert "m" == load(ours).config.models[0].name
    again = CliRunner().invoke(main, ["import", "litellm", str(theirs), "--output", str(ours)])
    assert 1 == again.exit_code
    assert "there already" in again.output

"""The command line of the provider."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from controlplane.demo.provider.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "x"], "not a valid integer"),
        (["--latency-scale", "-1"], "not in the range"),
        (["--faults", "nothing.yaml"], "cannot be read"),
        (["--surprise"], "No such option"),
    ],
)
def test_bad_usage(arguments: list[str], words: str) -> None:
    """Bad usage ends with status 2 and says what is wrong."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_scripted_fault_for_an_unknown_upstream(tmp_path: Path) -> None:
    """A script that addresses an upstream that is not there ends with status 2 and names the ones that are."""
    script = tmp_path / "faults.yaml"
    script.write_text("faults: [{kind: hang, upstream: tertiary}]")
    result = CliRunner().invoke(main, ["--port", "0", "--faults", str(script)])
    assert result.exit_code == 2
    assert "there are: primary" in result.output


def test_port_that_is_taken() -> None:
    """A port on which somebody listens ends with status 1 and a message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(main, ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "cannot listen" in result.output

"""The log goes where the settings say and holds no secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from controlplane.logs import configure, masked
from controlplane.secrets import Secret
from controlplane.settings import LogLevel, LogSettings

KEY = "sk-heph-AbCdEf0123456789AbCdEf01"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Whether people look at it."""
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        "sk-proj-abcdefghijklmnop",
        "sk-ant-api03-abcdefghijkl",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "Authorization: Bearer abc.def",
        "bearer s3cr3t-t0ken",
        "clickhouse://user:hunter2pass@host:8123/db",
        "ghp_abcdefghijklmnopqrst",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0xxxx.abc",
        "https://hooks.example.com/services?key=sk-abcdefghijkl",
    ],
)
def test_shapes_of_secrets_are_masked(text: str) -> None:
    """Known shapes of secrets are replaced in any text."""
    assert "***" in masked(text)
    for part in ("abcdefgh", "hunter2", "s3cr3t", "AbCdEf", "MfKQ", "abc.def", "eyJhbG"):
        assert part not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "disk-usage-of-the-node is high",
        "task-12345678",
        "tokens=12",
        "http://127.0.0.1:4001/x",
        "gpt-4o-mini-2024-07-18",
    ],
)
def test_plain_text_is_left_alone(text: str) -> None:
    """What only resembles a secret stays readable."""
    assert text == masked(text)


def test_json_lines_without_secrets() -> None:
    """A line is one JSON object with event, level and time; secrets in fields, nested values and exceptions are masked."""
    stream = io.StringIO()
    configure(LogSettings(), stream=stream)
    log = structlog.get_logger("controlplane.test")
    try:
        int(KEY)
    except ValueError:
        log.exception(
            "key refused",
            password="p4ss",
            nested={"api_key": "xyz", "list": [KEY]},
            secret=Secret("s"),
            tokens=7,
            other=Secret("hid"),
        )
    line = json.loads(stream.getvalue())
    assert ("key refused", "error", "controlplane.test") == (line["event"], line["level"], line["logger"])
    assert ("***", {"api_key": "***", "list": ["***"]}, "***", 7, "***") == (
        line["password"], line["nested"], line["secret"], line["tokens"], line["other"],
    )  # fmt: skip
    assert "ValueError: invalid literal for int() with base 10: '***'" in line["exception"]
    assert line["timestamp"].endswith("Z")
    for hidden in (KEY, "p4ss", "xyz", "hid"):
        assert hidden not in stream.getvalue()


def test_standard_library_loggers_are_masked_too() -> None:
    """Lines of libraries, with their arguments and tracebacks, pass through the same mask."""
    stream = io.StringIO()
    configure(LogSettings(), stream=stream)
    try:
        int(KEY)
    except ValueError:
        logging.getLogger("lib").exception("sent %s", f"Bearer {KEY}")
    line = json.loads(stream.getvalue())
    assert "sent Bearer ***" == line["event"]
    assert KEY not in stream.getvalue()
    assert "ValueError" in line["exception"]


def test_level_is_respected() -> None:
    """Lines below the level are not written."""
    stream = io.StringIO()
    configure(LogSettings(level=LogLevel.WARNING), stream=stream)
    structlog.get_logger("a").info("quiet")
    structlog.get_logger("a").warning("loud")
    assert ["loud"] == [json.loads(line)["event"] for line in stream.getvalue().splitlines()]


def test_file_is_rotated_within_its_bounds(tmp_path: Path) -> None:
    """A log file never exceeds its size, and only so many old ones are kept; every line in them is whole."""
    configure(LogSettings(file=str(tmp_path / "logs" / "heph.log"), rotate_bytes=4096, keep=2))
    for number in range(500):
        structlog.get_logger("a").info("line", number=number)
    files = sorted((tmp_path / "logs").iterdir())
    assert ["heph.log", "heph.log.1", "heph.log.2"] == [file.name for file in files]
    assert all(file.stat().st_size <= 4096 for file in files)
    numbers = [json.loads(line)["number"] for file in reversed(files) for line in file.read_text().splitlines()]
    assert list(range(500 - len(numbers), 500)) == numbers


def test_a_terminal_gets_lines_for_people() -> None:
    """On a terminal a line is no JSON but still masked, and configuring again replaces the handler."""
    configure(LogSettings(), stream=io.StringIO())
    stream = Terminal()
    configure(LogSettings(), stream=stream)
    structlog.get_logger("a").info("hello", key=KEY)
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    assert KEY not in stream.getvalue()
    assert 1 == len(logging.getLogger().handlers)

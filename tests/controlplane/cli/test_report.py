"""The period of a report as people write it."""

from __future__ import annotations

import datetime as dt

import click
import pytest

from controlplane.cli.report import _moment_us, _period
from tests.controlplane.cli.conftest import Shell

DAY_US = 86_400_000_000
NOVEMBER_US = round(dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-11-01", NOVEMBER_US),
        ("2026-11-01T00:00:00Z", NOVEMBER_US),
        ("2026-11-01T02:00:00+02:00", NOVEMBER_US),
        ("2026-11-01 00:00:00.000001", NOVEMBER_US + 1),
        ("1970-01-01", 0),
    ],
)
def test_a_moment_is_utc_to_the_microsecond(text: str, us: int) -> None:
    """A day begins at midnight UTC; a zone that is written counts."""
    assert us == _moment_us(text)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "01/11/2026", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_moment_is_bad_usage(text: str) -> None:
    """The sentence shows how to write one."""
    with pytest.raises(click.UsageError, match="say 2026-11-01"):
        _moment_us(text)


def test_a_period_is_this_month_unless_said() -> None:
    """From the first of the month until now, now included; or what was written, its end left out."""
    period = _period(None, None)
    first = dt.datetime.fromtimestamp(int(period["from_us"]) / 1e6, dt.UTC)
    assert (1, 0, 0, 0) == (first.day, first.hour, first.minute, first.microsecond)
    assert int(period["to_us"]) - int(period["from_us"]) <= 31 * DAY_US + 1
    assert {"from_us": NOVEMBER_US, "to_us": NOVEMBER_US + DAY_US} == _period("2026-11-01", "2026-11-02")


@pytest.mark.parametrize(("from_", "to"), [("2026-11-02", "2026-11-01"), ("2026-11-01", "2026-11-01")])
def test_a_period_that_is_none_is_bad_usage(shell: Shell, from_: str, to: str) -> None:
    """Status 2, before anything is asked."""
    result = shell.run("report", "costs", "--from", from_, "--to", to)
    assert 2 == result.exit_code
    assert "before it begins" in result.stderr


@pytest.mark.parametrize("command", ["costs", "savings", "reconcile"])
def test_without_a_control_plane_it_says_how_to_start_one(shell: Shell, command: str) -> None:
    """A report needs the running process; the sentence says so."""
    result = shell.run("report", command)
    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output

"""The test's own expansion of macros, against the plugin's documented results."""

from __future__ import annotations

import pytest

from tests.dashboards.macros import ALL, Request, UnknownMacro, expand

REQUEST = Request(from_s=100, to_s=200, interval_s=20, variables={"one": ["a"], "many": ["a", "it's"], "all": [ALL]})


@pytest.mark.parametrize(
    ("sql", "expanded"),
    [
        ("$__timeFilter(at)", "at >= toDateTime(100) AND at <= toDateTime(200)"),
        ("$__timeInterval(at)", "toStartOfInterval(toDateTime(at), INTERVAL 20 second)"),
        ("$__toTime - $__fromTime / $__interval_s", "toDateTime(200) - toDateTime(100) / 20"),
        ("$__conditionalAll(x IN (${one:singlequote}), $one)", "x IN ('a')"),
        ("$__conditionalAll(f(x) IN (${many:singlequote}), $many) AND 1", "f(x) IN ('a','it\\'s') AND 1"),
        ("$__conditionalAll(x IN (${all:singlequote}), $all)", "1=1"),
    ],
)
def test_expansion(sql: str, expanded: str) -> None:
    """As the data source does it."""
    assert expanded == expand(sql, REQUEST)


@pytest.mark.parametrize("sql", ["$__nope(x)", "${one}", "$one", "${none:singlequote}", "$__conditionalAll(x, $none)"])
def test_what_the_data_source_does_not_know_is_an_error(sql: str) -> None:
    """A typo must not pass as text."""
    with pytest.raises(UnknownMacro):
        expand(sql, REQUEST)

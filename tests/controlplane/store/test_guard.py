"""The guard: whatever leads out of the telemetry is refused, by names as ClickHouse itself reads them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from controlplane.store.client import Store
from controlplane.store.guard import (
    ACCESS_DENIED,
    READONLY,
    SYNTAX_ERROR,
    UNKNOWN_FORMAT,
    Guard,
    Kind,
    Refused,
    tokens_of,
)
from controlplane.store.readonly import read_guard


@pytest.fixture(scope="module")
def guard(opened_store: Store) -> Guard:
    """The guard for this engine's functions."""
    return read_guard(opened_store)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select count() from calls",
        "SELECT count() FROM hephaestus.calls WHERE tenant = 'a;b' -- ; not a second statement",
        'SELECT `user`, "agent" FROM calls;',
        "SELECT 1 ; ; ",
        "WITH x AS (SELECT 1 AS n) SELECT n FROM x",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "FROM calls SELECT count()",
        "SHOW TABLES",
        "SHOW CREATE TABLE calls",
        "DESCRIBE TABLE calls",
        "DESC calls",
        "EXISTS TABLE calls",
        "EXPLAIN SELECT 1",
        "SELECT * FROM system.tables WHERE database = 'hephaestus'",
        "SELECT name, value FROM system.settings LIMIT 10",
        "SELECT format('{} {}', tenant, agent) FROM calls",
        "SELECT number FROM numbers(10)",
        "SELECT {tenant:String}, {n:UInt64}",
        "SELECT toStartOfInterval(started, INTERVAL 60 second) AS time, count() FROM calls GROUP BY time ORDER BY time",
        "SELECT quantilesTDigestMerge(0.5, 0.95, 0.99)(latency_us) FROM calls_minute",
        "SELECT arrayMap(x -> x + 1, [1, 2])",
        "SELECT tags['team'] FROM calls",
        "SELECT 'INTO OUTFILE ''x'' SETTINGS a = 1; DROP TABLE calls; file('",
        "SELECT 'é — 日本'",
        "/* a comment; with a semicolon */ SELECT 1",
    ],
)  # fmt: skip
def test_reading_is_let_through(guard: Guard, sql: str) -> None:
    """Ordinary reading is not in the way of anyone."""
    assert "TabSeparated" == guard.check(sql, default_format="TabSeparated").format


@pytest.mark.parametrize(
    ("sql", "number"),
    [
        # files and settings through functions, however they are written
        ("SELECT file('/etc/passwd')", ACCESS_DENIED),
        ("SELECT FILE('/etc/passwd')", ACCESS_DENIED),
        ("SELECT `file`('/etc/passwd')", ACCESS_DENIED),
        ("SELECT \"file\" ('/etc/passwd')", ACCESS_DENIED),
        ("SELECT file/**/('/etc/passwd')", ACCESS_DENIED),
        ("SELECT * APPLY(file) FROM (SELECT '/etc/passwd')", ACCESS_DENIED),
        ("SELECT * APPLY file FROM (SELECT '/etc/passwd')", ACCESS_DENIED),
        ("SELECT arrayMap(file, ['/etc/passwd'])", ACCESS_DENIED),
        ("WITH file('/etc/passwd') AS x SELECT x", ACCESS_DENIED),
        ("DESCRIBE file('/etc/passwd')", ACCESS_DENIED),
        ("EXPLAIN SELECT file('/etc/passwd')", ACCESS_DENIED),
        ("SELECT getServerSetting('path')", ACCESS_DENIED),
        ("SELECT getSetting('max_memory_usage')", ACCESS_DENIED),
        ("SELECT sleep(3)", ACCESS_DENIED),
        ("SELECT hasColumnInTable('system', 'processes', 'query')", ACCESS_DENIED),
        ("SELECT dictGet('a', 'b', 1)", ACCESS_DENIED),
        ("SELECT aiGenerate('x')", ACCESS_DENIED),
        ("SELECT AIGenerate('x')", ACCESS_DENIED),
        ("SELECT showCertificate()", ACCESS_DENIED),
        ("SELECT addressToSymbol(1)", ACCESS_DENIED),
        # table functions
        ("SELECT * FROM file('x.tsv')", ACCESS_DENIED),
        ("SELECT * FROM url('http://127.0.0.1/')", ACCESS_DENIED),
        ("SELECT * FROM s3('http://127.0.0.1/')", ACCESS_DENIED),
        ("SELECT * FROM remote('127.0.0.1', system.one)", ACCESS_DENIED),
        ("SELECT * FROM merge('system', '^processes$')", ACCESS_DENIED),
        ("SELECT * FROM `merge`('system', '^processes$')", ACCESS_DENIED),
        ("SELECT * FROM cluster('x', system.one)", ACCESS_DENIED),
        ("SELECT * FROM executable('x', 'TSV', 'a String')", ACCESS_DENIED),
        ("SELECT * FROM sqlite('a', 'b')", ACCESS_DENIED),
        ("SELECT * FROM viewExplain('EXPLAIN', '', (SELECT 1))", ACCESS_DENIED),
        ("SELECT * FROM eval('SELECT 1')", ACCESS_DENIED),
        ("SELECT * FROM Python(os)", READONLY),
        ("SELECT * FROM python('x')", READONLY),
        # other people's queries
        ("SELECT * FROM system.processes", ACCESS_DENIED),
        ("SELECT * FROM `system`.`processes`", ACCESS_DENIED),
        ('SELECT * FROM "system"."query_log"', ACCESS_DENIED),
        ("SELECT * FROM system . /* */ processes", ACCESS_DENIED),
        ("SELECT 1 IN system.processes", ACCESS_DENIED),
        ("SELECT * FROM system.server_settings", ACCESS_DENIED),
        ("SELECT * FROM SYSTEM.stack_trace", ACCESS_DENIED),
        ("SELECT * FROM {d:Identifier}.processes", ACCESS_DENIED),
        ("SHOW TABLES FROM system", ACCESS_DENIED),
        ("SHOW PROCESSLIST", ACCESS_DENIED),
        ("SHOW GRANTS", ACCESS_DENIED),
        ("SHOW SETTINGS LIKE '%'", ACCESS_DENIED),
        ("SHOW", ACCESS_DENIED),
        # files by output
        ("SELECT 1 INTO OUTFILE '/tmp/x'", READONLY),
        ("SELECT 1 into/**/outfile '/tmp/x'", READONLY),
        ("EXPLAIN SELECT 1 INTO OUTFILE '/tmp/x'", READONLY),
        ("SELECT 1 FORMAT Template", UNKNOWN_FORMAT),
        ("SELECT 1 FORMAT CustomSeparated", UNKNOWN_FORMAT),
        ("SELECT 1 FORMAT Protobuf", UNKNOWN_FORMAT),
        # rights and limits
        ("SET ROLE owner", READONLY),
        ("SET max_memory_usage = 0", READONLY),
        ("SET readonly = 0", READONLY),
        ("KILL QUERY WHERE 1", READONLY),
        ("SELECT 1 SETTINGS max_execution_time = 0", READONLY),
        ("SELECT * FROM (SELECT 1 SETTINGS max_memory_usage = 0)", READONLY),
        ("SELECT 1 settings `max_memory_usage` = 0", READONLY),
        ("SELECT 1 FROM system.settings SETTINGS max_memory_usage = 0", READONLY),
        # writing
        ("INSERT INTO calls SELECT * FROM calls", READONLY),
        ("WITH x AS (SELECT 1) INSERT INTO calls SELECT * FROM x", READONLY),
        ("EXPLAIN INSERT INTO calls SELECT 1", READONLY),
        ("CREATE TABLE x (a UInt8) ENGINE = Memory", READONLY),
        ("CREATE FUNCTION f AS x -> x", READONLY),
        ("DROP TABLE calls", READONLY),
        ("ALTER TABLE calls DELETE WHERE 1", READONLY),
        ("TRUNCATE TABLE calls", READONLY),
        ("SYSTEM FLUSH LOGS", READONLY),
        ("USE system", READONLY),
        ("BACKUP TABLE calls TO File('x')", READONLY),
        ("EXECUTE AS default SELECT 1", READONLY),
        ("SELECT 1 PARALLEL WITH SELECT 2", READONLY),
        # more than one statement, or none
        ("SELECT 1; SELECT 2", SYNTAX_ERROR),
        ("SELECT 1; DROP TABLE calls", SYNTAX_ERROR),
        ("SELECT 1;;SELECT 2", SYNTAX_ERROR),
        ("SELECT 1 /* ; */ ; SELECT 2", SYNTAX_ERROR),
        ("", SYNTAX_ERROR),
        (" ; ; ", SYNTAX_ERROR),
        ("-- nothing", SYNTAX_ERROR),
        # what is not surely understood
        ("SELECT 'open", SYNTAX_ERROR),
        ("SELECT `open", SYNTAX_ERROR),
        ("SELECT /* open", SYNTAX_ERROR),
        ("SELECT $$heredoc$$", SYNTAX_ERROR),
        ("SELECT $x$ ' $x$, file('/etc/passwd') -- '", SYNTAX_ERROR),
        ("SELECT “file”('x')", SYNTAX_ERROR),
        ("SELECT ‘x’", SYNTAX_ERROR),
        ("SELECT `fi\\x6ce`('/etc/passwd')", SYNTAX_ERROR),
        ("SELECT 1 # comment", SYNTAX_ERROR),
        ("SELECT 1\0", SYNTAX_ERROR),
        ("SELECT\u00a01", SYNTAX_ERROR),
        ("SELECT " + "1," * 200_000 + "1", SYNTAX_ERROR),
    ],
)  # fmt: skip
def test_the_way_out_is_closed(guard: Guard, sql: str, number: int) -> None:
    """Each known way out of the telemetry is refused with the number a ClickHouse client understands."""
    with pytest.raises(Refused) as caught:
        guard.check(sql, default_format="TabSeparated")
    assert number == caught.value.number


def test_what_the_engine_does_not_list_as_harmless_is_forbidden(opened_store: Store, guard: Guard) -> None:
    """Every function that reads from a machine, a network or a session is forbidden, also those that come with a newer engine."""
    listed = {
        str(name)
        for (name,) in opened_store.rows(
            "SELECT name FROM system.functions WHERE categories IN ('AI', 'Introspection', 'Dictionary', 'Internal', 'Machine Learning') AND NOT is_aggregate"
        )
    }
    assert listed
    for name in listed:
        with pytest.raises(Refused):
            guard.check(f"SELECT {name}(1)", default_format="Native")


@pytest.mark.parametrize(
    ("sql", "default_format", "format_name", "runs"),
    [
        ("SELECT 1", "Native", "Native", "SELECT 1\nFORMAT Native"),
        ("SELECT 1 -- x", "JSON", "JSON", "SELECT 1 -- x\nFORMAT JSON"),
        ("SELECT 1; ", "JSON", "JSON", "SELECT 1\nFORMAT JSON"),
        ("SELECT 1 format CSV ;", "Native", "CSV", "SELECT 1 format CSV "),
        ("SELECT 1 AS format", "CSV", "CSV", "SELECT 1 AS format\nFORMAT CSV"),
    ],
)
def test_formats(guard: Guard, sql: str, default_format: str, format_name: str, runs: str) -> None:
    """A query's own format wins over the default, and both must be known."""
    checked = guard.check(sql, default_format=default_format)
    assert (runs, format_name) == (checked.sql, checked.format)
    with pytest.raises(Refused):
        guard.check("SELECT 1", default_format="Template")


PIECES = st.sampled_from(
    ["SELECT", "file", "(", ")", "'", "''", "\\", '"', "`", "--", "-", "/*", "*/", "/", "*", ";", "\n", " ", "1", "1.5", "1e5", "0x1f", ".",
     "x", "'a'", '"b"', "`c`", "settings", "$", "$$", "#", "é", "“", "”", "\t", ",", "::", "->", "!", "!=", "<>", "||", "@", "@@", "?", "{", "}",
     ":", "[", "]", "=", "==", "_", "N'x'", "b'1'", "x'41'", "\x0b", "|", "&", "^", "~", "%", "+"]
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(PIECES, max_size=14).map("".join))
@example("SELECT 1--1 file")
@example("1.file")
@example("/*/ file */ file")
@example("/* /* */ file */")
@example("'\\' file ' file")
@example('"a\\" file " file')
def test_names_are_those_that_clickhouse_reads(opened_store: Store, sql: str) -> None:
    """Whatever text the guard accepts, it has seen every name and every semicolon that ClickHouse's own lexer sees in it."""
    try:
        ours = tokens_of(sql)
    except Refused:
        return
    seen = {(token.start, token.text.lower()) for token in ours if token.is_name or token.text == ";"}
    theirs = opened_store.rows(
        "SELECT t.begin, t.end, t.type FROM (SELECT arrayJoin(tokenizeQuery({q:String})) AS t)", {"q": sql}
    )
    for begin, end, kind in theirs:
        text = sql.encode()[int(str(begin)) : int(str(end))].decode()
        start = len(sql.encode()[: int(str(begin))].decode())
        if str(kind) in ("BareWord", "Semicolon"):
            assert (start, text.lower()) in seen
        if str(kind) == "QuotedIdentifier":
            assert start in {token.start for token in ours if token.kind is Kind.QUOTED}

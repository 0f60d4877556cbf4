"""What a stranger may ask: one statement that only reads, made of functions and tables that lead nowhere else.

The engine itself refuses writes, foreign tables and network or file table functions to a handle that gave up its role and was set
read-only. This closes what it leaves open there: the functions that read files or settings, `INTO OUTFILE`, `SET ROLE`, `KILL`, several
statements at once, settings within the query, and the system tables that show other people's queries. It works on tokens: whatever it does
not understand, it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from controlplane.errors import Forbidden
from controlplane.store.embedded import DATABASE

SYNTAX_ERROR, READONLY, ACCESS_DENIED, UNKNOWN_FORMAT = 62, 164, 497, 73

STATEMENTS = frozenset({"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "("})
SHOWABLE = frozenset(
    {"TABLES", "FULL", "COLUMNS", "FIELDS", "DATABASES", "CREATE", "TABLE", "INDEX", "INDEXES", "INDICES", "KEYS"}
)
FORBIDDEN_WORDS = frozenset(
    {"OUTFILE", "INFILE", "PARALLEL", "KILL", "PROCESSLIST", "INSERT", "ALTER", "DROP", "ATTACH", "DETACH", "TRUNCATE", "GRANT",
     "REVOKE", "BACKUP", "RESTORE", "OPTIMIZE", "RENAME", "PYTHON"}
)  # fmt: skip

SYSTEM_TABLES = frozenset({"one", "numbers", "numbers_mt", "databases", "tables", "columns", "settings", "functions", "formats",
                           "data_type_families", "time_zones", "contributors"})  # fmt: skip
TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "values", "view", "generateseries", "generate_series"}
)

SAFE_CATEGORIES = frozenset({
    "Null", "Comparison", "Distance", "String", "Tuple", "NumericIndexedVector", "Geo", "Geo Polygon", "Encoding", "String Search",
    "Arrays", "Array", "Logical", "String Splitting", "Mathematical", "Time Window", "Dates and Times", "URL", "Hash", "Random Number", "Bit",
    "IP Address", "Map", "UUID", "Conditional", "Bitmap", "Financial", "Type Conversion", "Arithmetic", "JSON", "Rounding",
    "String Replacement",
})  # fmt: skip
"""Kinds of functions, as `system.functions` calls them, of which every one only computes."""

SAFE_OTHERS = frozenset(name.lower() for name in (
    "bar", "blockNumber", "blockSize", "byteSize", "countDigits", "currentDatabase", "currentUser", "defaultValueOfArgumentType",
    "digits", "displayName", "finalizeAggregation", "formatReadableDecimalSize", "formatReadableQuantity", "formatReadableSize",
    "formatReadableTimeDelta", "identity", "ignore", "indexHint", "isConstant", "isDecimalOverflow", "lowCardinalityIndices",
    "lowCardinalityKeys", "materialize", "minSampleSizeContinuous", "minSampleSizeConversion", "neighbor", "parseReadableSize",
    "parseReadableSizeOrNull", "parseReadableSizeOrZero", "parseTimeDelta", "queryID", "revision", "rowNumberInAllBlocks",
    "rowNumberInBlock", "runningAccumulate", "runningDifference", "runningDifferenceStartingWithFirstValue", "throwIf", "toColumnTypeName",
    "toTypeName", "transform", "uptime", "variantElement", "variantType", "version", "visibleWidth",
))  # fmt: skip
"""Functions of other kinds that only compute, or say what every client is told."""

FORMATS = frozenset({
    "Native", "RowBinary", "RowBinaryWithNames", "RowBinaryWithNamesAndTypes", "JSON", "JSONCompact", "JSONStrings", "JSONColumns",
    "JSONCompactColumns", "JSONColumnsWithMetadata", "JSONCompactStrings", "JSONEachRow", "JSONLines", "NDJSON", "JSONL", "JSONStringsEachRow",
    "JSONCompactEachRow", "JSONCompactEachRowWithNames", "JSONCompactEachRowWithNamesAndTypes", "JSONCompactStringsEachRow",
    "JSONCompactStringsEachRowWithNames", "JSONCompactStringsEachRowWithNamesAndTypes", "JSONObjectEachRow", "TabSeparated", "TSV",
    "TabSeparatedRaw", "TSVRaw", "TabSeparatedWithNames", "TSVWithNames", "TabSeparatedWithNamesAndTypes", "TSVWithNamesAndTypes",
    "TabSeparatedRawWithNames", "TSVRawWithNames", "CSV", "CSVWithNames", "CSVWithNamesAndTypes", "TSKV", "Values", "Vertical", "Pretty",
    "PrettyCompact", "PrettySpace", "PrettyNoEscapes", "PrettyCompactNoEscapes", "PrettyCompactMonoBlock", "Markdown", "XML", "Null",
    "Arrow", "ArrowStream", "Parquet", "MsgPack", "LineAsString", "RawBLOB",
})  # fmt: skip


class Refused(Forbidden):
    """A query that the door does not let through; carries ClickHouse's number for it."""

    def __init__(self, message: str, *, number: int) -> None:
        super().__init__(message)
        self.number = number


class Kind(Enum):
    """What a token is. Numbers are words: ClickHouse lets a name begin with a digit."""

    WORD = "word"
    QUOTED = "quoted"
    STRING = "string"
    OTHER = "other"


class Token(msgspec.Struct, frozen=True):
    """A piece of a query. text: a name without its quotes; a string is not kept."""

    kind: Kind
    text: str
    start: int

    @property
    def is_name(self) -> bool:
        """Whether it may name something."""
        return self.kind in (Kind.WORD, Kind.QUOTED)

    def says(self, *words: str) -> bool:
        """Whether it is one of these keywords."""
        return self.kind is Kind.WORD and self.text.upper() in words


class Checked(msgspec.Struct, frozen=True):
    """A query that may be run as it is, the format in which it answers, and the names of its `{name:Type}` parameters."""

    sql: str
    format: str
    parameters: frozenset[str] = frozenset()


_TOKENS = re.compile(
    r"""
      (?P<space>[ \t\r\n\f\v]+)
    | (?P<comment>--[^\n]*(?:\n|\Z) | /\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>"(?:[^"\\]|"")*" | `(?:[^`\\]|``)*`)
    | (?P<word>[A-Za-z0-9_]+)
    | (?P<other>[-+*%=<>!~^&|?:,.;(){}\[\]@] | /(?!\*))
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens_of(sql: str) -> list[Token]:
    """The query's tokens as ClickHouse reads them. Raises Refused at the first character that is not surely understood."""
    found: list[Token] = []
    at = 0
    while at < len(sql):
        match = _TOKENS.match(sql, at)
        if match is None:
            raise Refused(f"Syntax error: unexpected character at position {at + 1}", number=SYNTAX_ERROR)
        text, kind = match.group(), match.lastgroup
        if kind == "quoted":
            found.append(Token(Kind.QUOTED, text[1:-1].replace(text[0] * 2, text[0]), at))
        elif kind == "string":
            found.append(Token(Kind.STRING, "", at))
        elif kind == "word":
            found.append(Token(Kind.WORD, text, at))
        elif kind not in ("space", "comment"):
            found.append(Token(Kind.OTHER, text, at))
        at = match.end()
    return found


class Guard:
    """Decides about queries. forbidden: names of functions that may not be used, table_functions: of all that there are; lower case."""

    def __init__(
        self, *, forbidden: Iterable[str], table_functions: Iterable[str], query_bytes_max: int = 256 * 1024
    ) -> None:
        self._query_bytes_max = query_bytes_max
        self._forbidden = frozenset(name.lower() for name in forbidden)
        self._table_functions = frozenset(name.lower() for name in table_functions) - TABLE_FUNCTIONS

    def check(self, sql: str, *, default_format: str) -> Checked:
        """The query, with its format, if it may be run. Raises Refused with the reason."""
        if len(sql.encode("utf-8", "replace")) > self._query_bytes_max or "\0" in sql:
            raise Refused(f"Syntax error: a query has at most {self._query_bytes_max} bytes", number=SYNTAX_ERROR)
        tokens = tokens_of(sql)
        end = len(sql)
        while tokens and tokens[-1].text == ";" and tokens[-1].kind is Kind.OTHER:
            end = tokens.pop().start
        if not tokens:
            raise Refused("Syntax error: empty query", number=SYNTAX_ERROR)
        self._check_statement(tokens)
        for place, token in enumerate(tokens):
            if token.is_name:
                self._check_name(tokens, place)
        parameters = _parameters_of(tokens)
        format_name = _format_of(tokens)
        if format_name:
            return Checked(sql[:end], format_name, parameters)
        _check_format(default_format)
        return Checked(f"{sql[:end]}\nFORMAT {default_format}", default_format, parameters)

    @staticmethod
    def _check_statement(tokens: Sequence[Token]) -> None:
        """The statement must be one, and of a kind that reads."""
        first = tokens[0]
        if first.text.upper() not in STATEMENTS or first.kind in (Kind.QUOTED, Kind.STRING):
            raise Refused("only SELECT, SHOW, DESCRIBE, EXPLAIN and EXISTS are answered here", number=READONLY)
        if first.says("SHOW") and not (len(tokens) > 1 and tokens[1].says(*SHOWABLE)):
            raise Refused("only tables, columns and databases can be shown here", number=ACCESS_DENIED)
        if any(token.text == ";" and token.kind is Kind.OTHER for token in tokens):
            raise Refused("Syntax error: several statements in one query are not answered", number=SYNTAX_ERROR)

    def _check_name(self, tokens: Sequence[Token], place: int) -> None:
        """A word or quoted name must not lead out of the telemetry."""
        token = tokens[place]
        name, before, after = token.text.lower(), _text(tokens, place - 1), _text(tokens, place + 1)
        if token.says(*FORBIDDEN_WORDS):
            raise Refused(f"{token.text} is not allowed here", number=READONLY)
        of_system = before == "." and _text(tokens, place - 2).lower() == "system"  # the table of that name
        if token.says("SETTINGS") and not of_system and place + 1 < len(tokens) and tokens[place + 1].is_name:
            raise Refused("Cannot modify settings in readonly mode: leave the SETTINGS clause out", number=READONLY)
        if name in self._forbidden:
            raise Refused(f"Not enough privileges: function {token.text} is not allowed here", number=ACCESS_DENIED)
        if name in self._table_functions and after == "(" and name != "format":
            raise Refused(
                f"Not enough privileges: table function {token.text} is not allowed here", number=ACCESS_DENIED
            )
        if name == "identifier" and before == ":":
            raise Refused("parameters of type Identifier are not allowed here", number=ACCESS_DENIED)
        if name == "system" and (after != "." or _text(tokens, place + 2).lower() not in SYSTEM_TABLES):
            raise Refused(f"Not enough privileges: only tables of {DATABASE} can be read here", number=ACCESS_DENIED)


def _text(tokens: Sequence[Token], place: int) -> str:
    return tokens[place].text if 0 <= place < len(tokens) else ""


def _parameters_of(tokens: Sequence[Token]) -> frozenset[str]:
    """The names in `{name:Type}`. They must be written without blanks: the driver, which looks for them again, reads no others."""
    found: set[str] = set()
    for brace, name, colon in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if brace.text == "{" and brace.kind is Kind.OTHER and name.kind is Kind.WORD and colon.text == ":":
            if (name.start, colon.start) != (brace.start + 1, brace.start + 1 + len(name.text)):
                raise Refused("Syntax error: write a parameter as {name:Type}, without blanks", number=SYNTAX_ERROR)
            found.add(name.text)
    return frozenset(found)


def _format_of(tokens: Sequence[Token]) -> str:
    """The format that the query asks for at its end, or nothing."""
    if len(tokens) > 2 and tokens[-2].says("FORMAT") and tokens[-1].kind is Kind.WORD:
        _check_format(tokens[-1].text)
        return tokens[-1].text
    return ""


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise Refused(f"Unknown format {name[:64]}", number=UNKNOWN_FORMAT)

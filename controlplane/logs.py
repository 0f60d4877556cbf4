"""The log: JSON lines to a rotating file, or lines for people on a terminal; what looks like a secret never gets in.

`configure` is called once by the process that starts. Everything else asks `structlog.get_logger()` for a logger and writes events:
a short past-tense or plain name, then fields.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

MASK = "***"
_DEPTH_MAX = 8

_SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:sk|rk|pk)-[A-Za-z0-9_-]{8,}    # keys of OpenAI, Anthropic and our own
    | \bwhsec_[A-Za-z0-9+/=_-]{8,}                  # webhook secrets
    | \b(?:gh[pousr]_|xox[abprs]-|glsa_|AIza|AKIA)[A-Za-z0-9_-]{10,}  # GitHub, Slack, Grafana, Google, AWS
    | (?<=\bBearer\s)[^\s"',;]+                     # authorization headers
    | (?<=\bBasic\s)[A-Za-z0-9+/=]{8,}
    | (?<=://)[^/\s:@]*:[^/\s@]+(?=@)                # user and password in a URL
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*        # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAMES = re.compile(
    r"(?:^|_|-)(?:password|passwd|secret|authorization|api[_-]?key|credential|pepper|cookie)$|(?:^|_|-)token$",
    re.IGNORECASE,
)

CHATTY = ("watchfiles", "httpx", "httpcore", "uvicorn.access")
"""Libraries that log each thing they do at `info`; only what is wrong with them is of interest."""


class Place(Protocol):
    """Where the log goes and how it is kept; `controlplane.settings.LogSettings` is one."""

    @property
    def file(self) -> str | None:
        """A file for JSON lines; None: the stream."""
        ...

    @property
    def level(self) -> str:
        """The least important level that is logged, by its name."""
        ...

    @property
    def rotate_bytes(self) -> int:
        """A file is rotated before it grows beyond this."""
        ...

    @property
    def keep(self) -> int:
        """How many rotated files are kept."""
        ...


def configure(place: Place, *, stream: TextIO | None = None) -> None:
    """Points structlog and the standard library's logging at a place; a second call replaces the first.

    stream: where the log goes when no file is set; standard error by default. A terminal gets lines for people, anything else JSON.
    Raises OSError when the log file cannot be opened.
    """
    stream = sys.stderr if stream is None else stream
    handler: logging.Handler
    if place.file is None:
        handler = logging.StreamHandler(stream)
    else:
        path = Path(place.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=place.rotate_bytes, backupCount=place.keep, encoding="utf-8"
        )
    on_terminal = place.file is None and stream.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(on_terminal=on_terminal),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(place.level.upper())
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: replaces fields named like secrets, and parts of any text shaped like one, by `***`."""
    return {name: _masked_field(name, value) for name, value in event.items()}


def masked(text: str) -> str:
    """A text without what is shaped like a secret: keys, webhook secrets, bearer tokens, passwords in URLs."""
    return _SHAPES.sub(MASK, text)


def _renderers(*, on_terminal: bool) -> list[Processor]:
    """Masking stands last before the bytes are made, behind everything that could add text, such as tracebacks."""
    if on_terminal:
        return [structlog.processors.format_exc_info, mask_secrets, structlog.dev.ConsoleRenderer(colors=True)]
    return [structlog.processors.format_exc_info, mask_secrets, structlog.processors.JSONRenderer(default=_plain)]


def _plain(value: object) -> str:
    """How a value that JSON does not know is written; it may be a text we have not masked yet."""
    return masked(repr(value))


def _masked_field(name: str, value: object, depth: int = 0) -> object:
    if _SECRET_NAMES.search(name) and value not in (None, "", 0, False, True):
        return MASK
    return _masked_value(value, depth)


def _masked_value(value: object, depth: int) -> object:
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, int | float):
        return value
    if depth >= _DEPTH_MAX:
        return MASK
    if isinstance(value, Mapping):
        return {str(name): _masked_field(str(name), inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_masked_value(inner, depth + 1) for inner in value]
    return masked(str(value))

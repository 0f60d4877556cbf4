"""What the foreign protocols share: error bodies of any shape, and headers without rate limits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import msgspec

from controlplane.demo.provider.limits import Allowance
from controlplane.demo.provider.problems import Problem

Json = dict[str, Any]  # JSON on its way to bytes
_ID_SPACE = 1 << 48
_ODD = 0x9E3779B97F4A7C15  # odd, so that multiplying modulo 2**48 gives each number its own id


@dataclass(eq=False, slots=True)
class ShapedProblem(Problem):
    """An error answer whose body is given."""

    document: Json = field(default_factory=dict)

    def body(self, request_id: str = "") -> bytes:  # noqa: ARG002 - none of these says it in the body
        """The body, in one line."""
        return msgspec.json.encode(self.document)


def shaped(problem: Problem, document: Json, *headers: tuple[str, str], status: int = 0) -> Problem:
    """A problem with another body. status: another one too, unless 0."""
    return ShapedProblem(
        status or problem.status, problem.message, problem.type, problem.param, problem.code, headers, document
    )


class PlainHeaders:
    """Header blocks with a date and an id, whose name each protocol chooses."""

    def __init__(self, identity: str, now_s: Callable[[], int], *, id_name: str) -> None:
        self._start = hashlib.blake2b(f"{id_name}/{identity}".encode(), digest_size=5).hexdigest()
        self._now_s = now_s
        self._id_name = id_name

    def answer_id(self, call_number: int) -> bytes:
        """22 characters."""
        return f"{self._start}{call_number * _ODD % _ID_SPACE:012x}".encode()

    def request_id(self, call_number: int) -> str:
        """The id of a request, which is that of its answer too."""
        return self.answer_id(call_number).decode()

    def success(
        self,
        call_number: int,
        allowance: Allowance | None,
        *,
        delay_s: float,  # noqa: ARG002 - times are not told
        keep_alive: bool,
        content_type: bytes,
    ) -> bytes:
        """The block of a 200, without the length and the empty line at the end."""
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: %b\r\n%b" % (
            content_type,
            b"keep-alive" if keep_alive else b"close",
            self.failure(call_number, allowance),
        )

    def failure(self, call_number: int, allowance: Allowance | None = None) -> bytes:  # noqa: ARG002 - limits are not told
        """The lines that an error answer carries besides its own."""
        date = formatdate(self._now_s(), usegmt=True)
        return f"date: {date}\r\n{self._id_name}: {self.request_id(call_number)}\r\n".encode()

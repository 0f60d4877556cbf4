"""What the provider must know about a wire protocol to serve it: how it answers, names its callers, writes its headers and says no."""

from __future__ import annotations

from typing import Protocol

from controlplane.demo.faults import Fault
from controlplane.demo.provider.answer import Answer
from controlplane.demo.provider.http import Request
from controlplane.demo.provider.limits import Allowance
from controlplane.demo.provider.problems import Problem


class Headers(Protocol):
    """Writes the header blocks of one protocol."""

    def answer_id(self, call_number: int) -> bytes:
        """The number of an answer, in which every id of it ends."""
        ...

    def request_id(self, call_number: int) -> str:
        """The id of a request."""
        ...

    def success(
        self, call_number: int, allowance: Allowance | None, *, delay_s: float, keep_alive: bool, content_type: bytes
    ) -> bytes:
        """The block of a 200, without the length and the empty line at the end."""
        ...

    def failure(self, call_number: int, allowance: Allowance | None = None) -> bytes:
        """The lines that an error answer carries besides its own."""
        ...


class Wire(Protocol):
    """One protocol of an upstream."""

    @property
    def headers(self) -> Headers:
        """What writes its header blocks."""
        ...

    def key(self, request: Request) -> bytes:
        """The provider key that a request brings; b"" for none."""
        ...

    def answer(self, request: Request, call_number: int) -> Answer:
        """The answer to a request. Raises Problem, in any protocol's words."""
        ...

    def worded(self, problem: Problem) -> Problem:
        """A problem in this protocol's words."""
        ...

    def refusal(self, fault: Fault, *, model: str, key: bytes) -> Problem | None:
        """The error that a fault answers instead of the truth; None for the faults that let an answer begin."""
        ...

    def filtered(self, answer: Answer) -> Answer:
        """The answer as it is when the provider's content filter stops it."""
        ...

    def broken(self, problem: Problem, answer: Answer, events: int) -> bytes:
        """The event that tells of a problem in the middle of a stream, after so many events."""
        ...

    def model(self, request: Request) -> str:
        """The model that a request names; "" when it names none."""
        ...

"""What a wire language must be able to say about a call: the seam between the hot path and the protocols.

A dialect reads; it never waits. An *operation* is one thing a client can ask for (`chat`, `messages`, `responses`, ...); each is spoken
in one dialect. Where a deployment's upstream does not speak a client's operation, a `Translation` stands between the two.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import msgspec

from controlplane.contract.pricing import Tokens

_NO_TAGS: dict[str, str] = {}


class Malformed(ValueError):
    """Bytes that are not what the protocol says; carries the name of the field at fault, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestView(msgspec.Struct, frozen=True):
    """What the stages know of a request's body."""

    model: str
    stream: bool = False
    include_usage: bool = False  # the client itself asked for the usage of its stream
    max_output_tokens: int | None = None  # the client's own ceiling for one answer
    n: int = 1  # answers asked for
    image_parts: int = 0  # at least as many images as the request carries
    user: str = ""
    metadata: dict[str, str] = _NO_TAGS
    # The body must be written anew, so that the upstream reads what the stages read; None: to be looked at if it would go on as it came.
    ambiguous: bool | None = False
    free: bool = False  # the upstream bills nothing for it
    sound_parts: int = 0  # files with sound that the request carries
    file_bytes: int = 0  # of the body, bytes that are files and no text
    characters: int = 0  # to be spoken
    kept: bool = False  # the upstream keeps the answer under an id, for later requests: it is one caller's alone
    continues: tuple[tuple[str, str], ...] = ()  # what it builds on at the upstream: name of the field, id
    background: bool = False  # the answer comes later, and is asked for under its id
    threaded: bool = False  # its upstream keeps the conversation, for a next request that names this answer
    contained: bool = False  # its answer may leave a container behind at its upstream
    quality: str = ""  # of the pictures asked for, and their size, as the provider names them
    size: str = ""


class Scanner(Protocol):
    """Reads an event stream on its way through. What comes out, and what is learned, does not depend on where chunks were cut."""

    content_seen: bool  # the commit point: something that a client would show or act upon
    done: bool  # the protocol's end was seen
    error_event: bytes  # the upstream's own error event, in the client's protocol, once it has sent one
    ending: bytes  # the protocol's last event, held back until the call is settled; known when `done`
    events: int  # events seen, about as many as tokens
    finish_reason: str
    tokens: Tokens | None  # None: the upstream has not said

    def feed(self, data: bytes) -> bytes:
        """The whole events that can go on to the client now; b"" if none is whole yet. Raises Malformed."""
        ...

    def finish(self) -> bytes:
        """The end of the bytes: a last event that lacks its blank line is taken as whole."""
        ...


class Dialect(Protocol):
    """One wire language, as far as the proxy must read it."""

    name: ClassVar[
        str
    ]  # "chat", "messages", "responses", "embeddings", ...: one for each operation that has a body of its own

    def read_view(self, body: bytes) -> RequestView:
        """The view of a request. Raises Malformed, with what to correct."""
        ...

    def rewritten(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The request as the upstream must have it: its model's name, usage switched on, a ceiling; every other value as it came."""
        ...

    def read_reply(self, body: bytes) -> tuple[Tokens | None, str]:
        """Usage (None if it was not reported) and finish reason of a complete reply. Raises Malformed."""
        ...

    def read_error(self, body: bytes) -> tuple[str, str]:
        """Code (or else type) and message of an error body; empty strings where it says nothing we understand."""
        ...

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> Scanner:
        """A reader for one stream in this language."""
        ...


class Translation(Protocol):
    """Lets a client that speaks one dialect be served by a deployment that speaks another. Made once, shared by all calls."""

    upstream: Dialect  # what the deployment speaks: its reader meters the call

    def request(self, body: bytes, *, view: RequestView, model: str, output_ceiling: int | None) -> bytes:
        """The client's request in the upstream's words. Raises Malformed, naming the field, for what cannot be said there."""
        ...

    def reply(self, body: bytes, *, alias: str) -> bytes:
        """A complete reply in the client's words. Raises Malformed."""
        ...

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An upstream's error status and body in the client's words."""
        ...

    def scanner(self, *, view: RequestView, event_bytes_max: int) -> Scanner:
        """Reads the upstream's stream, returns the client's; `tokens` are the upstream's."""
        ...

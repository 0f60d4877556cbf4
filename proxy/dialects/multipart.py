"""Reads the fields of a multipart form and writes it anew with another model, without ever decoding its files.

Two readers of one form can see two different ones: a name given twice, a boundary inside of a file, a header folded or quoted in a way that
only one of them knows. What is refused here and what is written anew leaves an upstream nothing else to read than what the stages read.
"""

from __future__ import annotations

import re

import msgspec

from proxy.dialects.dialect import Malformed

PARTS_MAX = 128
FIELD_BYTES_MAX = 64 * 1024  # of a value that is no file and that we read
_HEAD_BYTES_MAX = 4096
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=?]{1,70}")
_DISPOSITION = re.compile(
    rb"content-disposition[ \t]*:[ \t]*form-data[ \t]*;[ \t]*name=(?:\"([^\"\\\r\n]{1,128})\"|([0-9A-Za-z_\-\[\].]{1,128}))"
    rb"(?:[ \t]*;[ \t]*filename=(?:\"((?:[^\"\\\r\n]|\\[^\r\n]){0,512})\"|([^\s;\"]{1,512})))?(?:[ \t]*;[ \t]*filename\*=[^\s;\"]{1,1024})?[ \t]*",
    re.IGNORECASE,
)
_TYPE = re.compile(rb"content-type[ \t]*:[ \t]*([\x21-\x7e][\x20-\x7e]{0,255})", re.IGNORECASE)


class Part(msgspec.Struct, frozen=True):
    """One field of a form. start, end: where its value is in the body. kind: its content type, as it came; b"" if it has none."""

    name: bytes
    start: int
    end: int
    filename: bytes | None
    kind: bytes


class Form(msgspec.Struct, frozen=True):
    """A form as it stands in a body."""

    boundary: bytes
    parts: tuple[Part, ...]

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.end - part.start for part in self.parts if part.filename is not None)

    def value(self, body: bytes, name: bytes) -> str | None:
        """The one value of a field that is no file. Raises Malformed if it is there twice, is too long or not text."""
        found = [part for part in self.parts if part.name == name]
        if not found:
            return None
        shown = name.decode("latin-1")
        if len(found) > 1 or found[0].filename is not None:
            raise Malformed(f"`{shown}` must be there once, and no file", shown)
        if found[0].end - found[0].start > FIELD_BYTES_MAX:
            raise Malformed(f"`{shown}` is longer than {FIELD_BYTES_MAX} bytes", shown)
        try:
            return body[found[0].start : found[0].end].decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"`{shown}` is not UTF-8", shown) from error


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a `content-type` header names. Raises Malformed."""
    kind, _, parameters = content_type.partition(b";")
    if kind.strip().lower() != b"multipart/form-data":
        raise Malformed("the body must be sent as multipart/form-data")
    named = [item.strip() for item in parameters.split(b";") if item.strip().lower().startswith(b"boundary=")]
    boundary = named[0][9:].strip(b'"') if len(named) == 1 else b""
    if not _BOUNDARY.fullmatch(boundary):
        raise Malformed("the content-type must name one boundary of at most 70 characters")
    return boundary


def check_boundary(content_type: bytes, body: bytes) -> None:
    """Raises Malformed unless a header names the boundary with which the body begins: the upstream reads it by the header."""
    if not body.startswith(b"--%b\r\n" % boundary_of(content_type)):
        raise Malformed("the body does not begin with the boundary that the content-type names")


def read_form(body: bytes) -> Form:
    """The fields of a form and where they are. Raises Malformed, with what to correct."""
    first = body[:80].partition(b"\r\n")[0]
    boundary = first[2:]
    if not first.startswith(b"--") or not _BOUNDARY.fullmatch(boundary):
        raise Malformed("the body must begin with its boundary")
    mark = b"--" + boundary
    delimiter = b"\r\n" + mark
    parts: list[Part] = []
    at = len(mark)
    while not body.startswith(b"--", at):
        if len(parts) >= PARTS_MAX:
            raise Malformed(f"the form has more than {PARTS_MAX} fields")
        if not body.startswith(b"\r\n", at):
            raise Malformed("a boundary of the form is not followed by a line end")
        head_end = body.find(b"\r\n\r\n", at, at + _HEAD_BYTES_MAX)
        end = body.find(delimiter, head_end + 2)
        if head_end < 0 or end < 0:
            raise Malformed("the form is not complete")
        parts.append(_part(body[at + 2 : head_end], start=head_end + 4, end=max(end, head_end + 4)))
        at = end + len(delimiter)
    if body[at + 2 :].strip():
        raise Malformed("the form goes on behind its end")
    if body.count(mark) != len(parts) + 1:
        raise Malformed("the boundary of the form is found within a field; choose another")
    return Form(boundary, tuple(parts))


def rewritten_form(body: bytes, form: Form, *, model: str) -> bytes:
    """The form with another model and the same boundary; every other value as it came, under headers that can be read in one way only."""
    pieces: list[bytes] = []
    parts = [part for part in form.parts if part.name != b"model"]
    pieces.append(_head(form.boundary, Part(b"model", 0, 0, None, b"")) + model.encode() + b"\r\n")
    for part in parts:
        pieces += (_head(form.boundary, part), body[part.start : part.end], b"\r\n")
    pieces.append(b"--%b--\r\n" % form.boundary)
    return b"".join(pieces)


def form_with_file(body: bytes, form: Form, *, name: bytes, content: bytes) -> bytes:
    """The form with another content of one file and the same boundary. Raises Malformed if that content holds the boundary."""
    if b"--" + form.boundary in content:
        raise Malformed("the boundary of the form is found within a file; choose another")
    pieces: list[bytes] = []
    for part in form.parts:
        replaced = part.name == name and part.filename is not None
        pieces += (_head(form.boundary, part), content if replaced else body[part.start : part.end], b"\r\n")
    pieces.append(b"--%b--\r\n" % form.boundary)
    return b"".join(pieces)


def _part(head: bytes, *, start: int, end: int) -> Part:
    name: bytes | None = None
    filename: bytes | None = None
    kind = b""
    for line in head.split(b"\r\n"):
        disposition = _DISPOSITION.fullmatch(line)
        if disposition is not None and name is None:
            name = disposition[1] or disposition[2]
            filename = disposition[3] if disposition[3] is not None else disposition[4]
        elif (found := _TYPE.fullmatch(line)) is not None and not kind:
            kind = found[1]
        elif not line.lower().startswith((b"content-length:", b"content-transfer-encoding: binary")):
            raise Malformed("a field of the form has a header that the proxy does not know")
    if name is None:
        raise Malformed("a field of the form has no name")
    return Part(name, start, end, filename, kind)


def _head(boundary: bytes, part: Part) -> bytes:
    filename = b"" if part.filename is None else b'; filename="%b"' % part.filename
    kind = b"content-type: %b\r\n" % part.kind if part.kind else b""
    return b'--%b\r\ncontent-disposition: form-data; name="%b"%b\r\n%b\r\n' % (boundary, part.name, filename, kind)
